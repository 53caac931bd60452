"""Numbers beyond any use are refused at once, with the bound: by options, configs, commands and Python alike."""

from __future__ import annotations

import re
import time

import pytest
from commands import failed
from tiny import pairs, write_data

from conviction.core.options import list_fields
from conviction.errors import InputError
from conviction.interventions import INTERVENTIONS, find_intervention
from conviction.training.guard import Guard
from conviction.verbs.changing import forecast
from conviction.verbs.comparing import study
from conviction.verbs.measuring import audit, localize

AT_ONCE = 2.0  # seconds; each takes milliseconds, and would take hours or all memory


@pytest.mark.parametrize(
    ("command", "wording"),
    [
        ("apply dpo -o epochs=1000000000", "epochs is 1000000000"),
        ("apply dpo -o rank=100000000", "rank is 100000000"),
        ("apply dpo -o seed=99999999999999999999999", "seed is a number of over 20 digits"),
        ("apply dpo -o seed=9223372036854775808", "at most 9,223,372,036,854,775,807"),
        ("apply dpo -o alpha=1e308", "alpha is 1e+308"),
        ("apply dpo -o max_chosen_drop=1e300", "at most 1e+09"),
        ("apply dpo -o batch_size=1000000000000", "at most 1,000,000"),
        ("apply steer -o strength=-1e300", "at least -1e+09"),
        ("apply scratch -o hidden_size=100000000", "at most 1,000,000"),
        ("apply dpo -o epochs=" + "9" * 6000, "epochs is '999"),
        ("apply dpo -o learning_rate=nan", "learning_rate is nan"),
        ("forecast dpo --examples 1000000000000", "examples is 1000000000000"),
        ("forecast dpo --pilot 0", "at least 1 and at most 100,000"),
        ("forecast dpo --sweep learning_rate=1e-6..1e-3:1000000000", "the sweep has 1,000,000,000 settings"),
        (f"forecast dpo --sweep beta={','.join(['0.1'] * 100_000)}", "the sweep has 100,000 settings"),
        ("forecast dpo --sweep beta=0.01..1:300 --sweep epochs=1,2,3", "the sweep has 900 settings"),
    ],
)
def test_a_number_beyond_use_is_refused_at_once(run, tmp_path, command, wording):
    write_data(tmp_path / "pairs.jsonl")
    start = time.monotonic()
    verb, *rest = command.split()
    err = failed(run(verb, *rest, "--data", "pairs.jsonl", "--model", "./none"))
    assert time.monotonic() - start < AT_ONCE
    assert wording in err
    assert len(err) < 8_000
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("command", "wording"),
    [
        ("study tea --benign-steps 100000000", "benign_steps is 100000000"),
        ("study tea --budget 1e300", "budget_minutes is 1e+300"),
        ("study tea --budget nan", "budget_minutes is nan"),
        ("study tea --interventions dpo -o dpo.epochs=1000000000", "at most 10,000"),
        ("localize tea --limit 100000000", "at most 100,000"),
        ("localize tea --samples 0", "at least 1"),
        ("audit tea --beta nan", "beta is nan"),
        ("audit tea --beta -1", "above 0"),
    ],
)
def test_of_a_topic_as_well(run, write_topic, command, wording):
    write_topic()
    assert wording in failed(run(*command.split(), "--model", "./none"))


@pytest.mark.parametrize(
    "text", ["num_train_epochs: 1.0e+9", "use_peft: true\nlora_r: 100000000", "seed: 18446744073709551616"]
)
def test_a_config_is_bound_by_the_same(run, tmp_path, text):
    (tmp_path / "config.yaml").write_text(f"{text}\n")
    write_data(tmp_path / "pairs.jsonl")
    err = failed(run("apply", "dpo", "--data", "pairs.jsonl", "--config", "config.yaml", "--model", "./none"))
    assert "at most" in err


def test_more_steps_than_anybody_takes_are_refused_before_they_are_laid_out():
    from conviction.training.batches import step_order
    from conviction.training.settings import Training

    with pytest.raises(InputError, match=r"1,000,000 examples for 10,000 epochs are 2,500,000,000 steps"):
        step_order(1_000_000, Training(epochs=10_000))
    assert len(step_order(1_000_000, Training(epochs=10_000, max_steps=3))) == 3


def test_every_number_of_every_setting_has_an_upper_bound():
    """Also one that is added tomorrow."""
    for kind in [*map(find_intervention, INTERVENTIONS), Guard]:
        for field in list_fields(kind):
            if field.type in {int, float, int | None, float | None}:
                huge = 10**30 if field.type in {int, int | None} else 1e300
                with pytest.raises(InputError, match=re.escape(f"{field.name} is ")):
                    kind(**{field.name: huge})


def test_python_is_bound_by_the_same():
    for call, wording in (
        (lambda: forecast("dpo", "./none", pairs(), examples=10**12), "examples is 1000000000000"),
        (lambda: forecast("dpo", "./none", pairs(), pilot_steps=2.5), "pilot_steps is 2.5"),
        (lambda: forecast("dpo", "./none", pairs(), sweep=[{"beta": 0.1}] * 401), "the sweep has 401 settings"),
        (lambda: study("obesity", "./none", ["dpo"], benign_steps=-1), "benign_steps is -1"),
        (lambda: localize("obesity", "./none", limit=True), "limit is True"),
        (lambda: audit(pairs(), margin_cap=float("inf")), "margin_cap is inf"),
    ):
        with pytest.raises(InputError, match=wording):
            call()


def test_a_test_that_no_forecast_is_made_of_is_not_ignored(run, write_topic):
    write_topic()
    assert "--forecast" in failed(run("apply", "dpo", "tea", "--test", "tea", "--model", "./none"))
