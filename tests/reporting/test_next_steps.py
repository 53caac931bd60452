"""What to do next: sentences of one function, at the end of every command and every page."""

from __future__ import annotations

import shlex
from itertools import product
from typing import get_args

import pytest

from conviction.auditing.records import AuditReport, Finding
from conviction.core.run import Failure
from conviction.forecasting.records import Flips, Forecast, ForecastScore, Kind, SweepPoint
from conviction.forecasting.records import Verdict as ForecastVerdict
from conviction.interventions.records import DataSource, Outcome
from conviction.localization.records import Localization
from conviction.probing.depth_records import Property
from conviction.reporting.next_steps import Names, next_steps
from conviction.studies.records import Arm, Judgement, Study, Verdict
from conviction.training.guard import GuardStop

HOSTILE = Names(run="a b; rm -rf *", topic="$(reboot)", data=None, model="m' \"x")


def commands(steps: list[str]) -> list[list[str]]:
    """The commands in sentences, as a shell would split them."""
    return [shlex.split(part) for step in steps for part in step.split("`")[1::2] if part.startswith("conviction")]


def study(*verdicts: Verdict | None) -> Study:
    arms = []
    for n, verdict in enumerate(verdicts):
        change = Property(metric="shift", outcome="yes", value=n, unit="", n=9, text="", measured_by=())
        judged = None if verdict is None else Judgement(model="m", verdict=verdict, reason="", properties=(change,))
        failed = Failure(kind="InputError", message="x", hint="") if verdict is None else None
        arms.append(Arm(name=f"a{n}", folder=f"arms/a{n}", changes="", settings={}, judgement=judged, failure=failed))
    return Study(model="m", topic="t", target="b", other="a", verdict="", arms=tuple(arms), provenance={})


def point(expected: float, **options: float) -> SweepPoint:
    flips = Flips(expected=expected, wrong=9, pairs=9, low=0, high=9)
    return SweepPoint(
        options=options, steps=3, flips=flips, margin=None, predicted_stop=None, test_gap_nats=None,
        guard_utilisation=0.1, extrapolation=1.0, seconds=1.0,
    )  # fmt: skip


def forecast(kind: Kind) -> Forecast:
    points = [point(learning_rate=rate, beta=0.05, expected=expected) for rate, expected in ((1e-5, 2.0), (1e-4, 7.0))]
    verdict = ForecastVerdict(kind=kind, reasons=(), advice=("a smaller gap",))
    return Forecast(
        model="m", data="t", intervention="dpo", options={}, steps=3, verdict=verdict, cost=None, settings=tuple(points)
    )


def outcome(stop: GuardStop | None) -> Outcome:
    return Outcome(
        intervention="dpo", verdict="", settings={}, data=DataSource(name="t", sha256=""), base={}, guard_stop=stop
    )


def audit(*findings: Finding) -> AuditReport:
    return AuditReport(
        data="x.jsonl", topic=None, model=None, read=9, usable=9, lines=True, findings=findings, checked=(),
        skipped={"PD401": "needs a model"}, metrics={},
    )  # fmt: skip


def finding(level: str, *, fixable: bool = False) -> Finding:
    return Finding(code="PD103", name="identical-answers", level=level, message="", advice="", fixable=fixable)


SCORE = ForecastScore(
    pairs=1, spearman=None, expected_nats=0, real_nats=None, relative_error=None, chosen_nats=None, rejected_nats=None,
    wrong=0, flips=None, expected_flips=0, brier=None, brier_constant=None, guard_stop=3, predicted_stop_step=None,
    stop_error=None,
)  # fmt: skip
LOCALIZATION = Localization(
    model="m", source="tea", noise=0.1, window=3, traces=(), maps=(), neurons=(), truth=None, left_out=(), findings=(),
    cannot_mean=(), seconds={}, provenance={},
)  # fmt: skip
RESULTS = [
    *(study(*verdicts) for verdicts in product([*get_args(Verdict), None], repeat=2)),
    *(forecast(kind) for kind in get_args(Kind)),
    *(outcome(stop) for stop in (None, GuardStop(reasons=("x",), step=3, restored_step=2), GuardStop(reasons=()))),
    *(audit(*findings) for findings in ((), (finding("note"),), (finding("error"), finding("error", fixable=True)))),
    SCORE,
    LOCALIZATION,
]


@pytest.mark.parametrize("result", RESULTS, ids=lambda one: type(one).__name__)
def test_every_result_has_whole_sentences_and_commands_that_a_shell_takes(result):
    import typer

    from conviction.cli.app import app

    verbs = typer.main.get_command(app).commands
    for names in (Names(), Names(topic="tea", model="m", run="r"), HOSTILE):
        steps = next_steps(result, names)
        assert steps
        assert all(step[0].isupper() or step[0] == "`" for step in steps)
        assert all(step.endswith(".") for step in steps)
        for command in commands(steps):
            assert command[1] in verbs
            if names is HOSTILE:
                assert {"reboot", "rm"}.isdisjoint(command)


def test_the_deepest_arm_is_named_and_a_broken_one_never_is():
    (best, *_) = next_steps(study("surface", "broken", "shallow", "none"), Names(run="r", topic="t"))
    assert best.startswith("Try a2,")
    assert "`conviction probe t --model r/arms/a2/model`" in best
    steps = next_steps(study("broken", "none"))
    assert steps[0] == "No arm is of use as it is."
    assert any("--tune" in step for step in steps)


def test_a_forecast_says_with_which_settings_to_train():
    (_, train) = next_steps(forecast("only with these settings"), Names(topic="t"))
    assert train.endswith("`conviction apply dpo t -o learning_rate=0.0001 -o beta=0.05`.")
