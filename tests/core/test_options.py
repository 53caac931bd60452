"""Settings: options become fields, fields know their range, and what is wrong is named with a way out."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conviction.core.options import (
    LARGEST,
    LARGEST_WHOLE,
    build,
    check_settings,
    flat,
    list_fields,
    parse_options,
    setting,
)
from conviction.errors import InputError
from conviction.interventions import INTERVENTIONS, find_intervention
from conviction.training.guard import Guard
from conviction.training.settings import Training, Weights


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """An intervention as they are: fields of its own, and settings inside settings."""

    beta: float = setting(0.1, "how hard to pull", above=0)
    loss: Literal["dpo", "ipo"] = setting("dpo", "which loss")
    quick: bool = setting(False, "spare the trouble")
    note: str = setting("", "said of it")
    weights: Weights = dataclasses.field(default_factory=Weights)
    training: Training = dataclasses.field(default_factory=lambda: Training(learning_rate=1e-6))

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """Settings of something else, which the same options fill."""

    patience: int = setting(3, "strikes", at_least=1)


def fault(act, *given, **named):
    with pytest.raises(InputError) as caught:
        act(*given, **named)
    return caught.value


def test_fields_are_listed_through_all_levels():
    fields = {field.name: field for field in list_fields(Tuning)}
    assert fields["beta"].path == ("beta",)
    assert fields["rank"].path == ("weights", "rank")
    assert fields["learning_rate"].path == ("training", "learning_rate")
    assert fields["learning_rate"].default == 1e-6, "as the outer class has it, not Training's own"
    assert fields["epochs"].default is None
    assert fields["scale"].type == float | None
    assert not {"weights", "training"} & fields.keys()
    assert fields.keys() == flat(Tuning()).keys()


@pytest.mark.parametrize("kind", [Weights, Training])
def test_every_option_says_what_it_means_and_its_default_is_valid(kind):
    fields = list(list_fields(kind))
    assert len({f.name for f in fields}) == len(fields)
    assert all(f.meaning and not f.meaning.endswith(".") for f in fields)
    assert flat(kind()) == {f.name: f.default for f in fields}


def test_names_are_unique_over_what_one_intervention_holds():
    names = [field.name for kind in (Weights, Training) for field in list_fields(kind)]
    assert len(set(names)) == len(names)


def test_options_are_split_over_the_classes():
    options = ["beta=0.2", "patience = 5", "rank=4", "max-steps=10", "quick=yes", "target_modules=q_proj, v_proj,"]
    tuning, ctx = parse_options([Tuning, RunContext], options)
    assert tuning == {"beta": 0.2, "rank": 4, "max_steps": 10, "quick": True, "target_modules": ("q_proj", "v_proj")}
    assert ctx == {"patience": 5}
    assert parse_options([Tuning], []) == [{}]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("learning_rate=1e-5", 1e-5),
        ("epochs=2", 2),
        ("scale=10", 10.0),
        ("scale=none", None),
        ("max_length=", None),
        ("num_layers=Null", None),
        ("quick=off", False),
        ("quick=1", True),
        ("loss=ipo", "ipo"),
        ("note=a=b, c", "a=b, c"),
        ("note=none", "none"),
    ],
)
def test_text_becomes_a_value_of_the_fields_type(option, value):
    [result] = parse_options([Tuning], [option])
    assert list(result.values()) == [value]
    assert type(result[option.partition("=")[0]]) is type(value)


@pytest.mark.parametrize(
    ("options", "wording", "hint"),
    [
        (["beta"], "option 'beta' is not key=value", "write -o beta=0.1"),
        (["learning_rat=1"], "there is no field 'learning_rat'", "did you mean 'learning_rate'?"),
        (["wieghts=1"], "there is no field 'wieghts'", "fields: beta, loss"),
        (["=1"], "there is no field ''", "fields: beta"),
        (["weights=1"], "there is no field 'weights'", "fields: beta"),
        (["beta=0.1", "rank=2", "beta=0.1"], "field 'beta' is given twice", "once"),
        (["max_steps=1", "max-steps=2"], "field 'max_steps' is given twice", "once"),
        (["epochs=1.5"], "epochs is '1.5'", "give a whole number"),
        (["batch_size=none"], "batch_size is 'none'", "give a whole number"),
        (["beta=much"], "beta is 'much'", "give a number"),
        (["scale=much"], "scale is 'much'", "give a number"),
        (["quick=maybe"], "quick is 'maybe'", "give true or false"),
    ],
)
def test_options_that_cannot_be_read(options, wording, hint):
    error = fault(parse_options, [Tuning, RunContext], options)
    assert error.message == wording
    assert hint in error.hint


@pytest.mark.parametrize(
    ("kind", "changes", "wording", "hint"),
    [
        (Training, {"learning_rate": 0.0}, "learning_rate is 0.0", "give a finite number above 0"),
        (Training, {"learning_rate": math.nan}, "learning_rate is nan", "give a finite number above 0"),
        (Training, {"learning_rate": math.inf}, "learning_rate is inf", "give a finite number above 0"),
        (Training, {"learning_rate": -1e-5}, "learning_rate is -1e-05", "above 0"),
        (Training, {"warmup": 1.0}, "warmup is 1.0", "at least 0 and below 1"),
        (Training, {"batch_size": 0}, "batch_size is 0", "at least 1"),
        (Training, {"seed": -(10**400)}, "seed is a number of over 20 digits", "at least 0"),
        (Training, {"learning_rate": "1e-5"}, "learning_rate is '1e-5'", "give a number"),
        (Training, {"epochs": 1.0}, "epochs is 1.0", "give a whole number"),
        (Training, {"epochs": True}, "epochs is True", "give a whole number"),
        (Training, {"batch_size": None}, "batch_size is None", "give a whole number"),
        (Training, {"schedule": "cosin"}, "schedule is 'cosin'", "did you mean 'cosine'? use one of: constant, linear"),
        (Training, {"schedule": None}, "schedule is None", "use one of: constant, linear, cosine"),
        (Training, {"precision": 16}, "precision is 16", "use one of: auto, fp32, bf16"),
        (Weights, {"rank": 0}, "rank is 0", "at least 1"),
        (Weights, {"dropout": 1}, "dropout is 1", "below 1"),
        (Weights, {"scale": 0}, "scale is 0", "above 0"),
        (Weights, {"target_modules": ["q_proj"]}, "target_modules is ['q_proj']", "give a tuple of names"),
        (Weights, {"tune": "full", "scale": 1.0}, "tune=full has no LoRA settings", "tune=lora"),
        (Weights, {"tune": "full", "target_modules": ("q_proj",)}, "tune=full has no LoRA settings", "tune=lora"),
        (Tuning, {"quick": 1}, "quick is 1", "give true or false"),
        (Tuning, {"note": 1}, "note is 1", "give str"),
    ],
)
def test_fields_know_their_type_range_and_choices(kind, changes, wording, hint):
    error = fault(kind, **changes)
    assert error.message == wording
    assert hint in error.hint
    assert fault(build, kind(), changes).message == wording


def test_numbers_of_numpy_are_numbers():
    assert Training(epochs=np.int64(2), learning_rate=np.float32(0.5)).epochs == 2
    assert Training(learning_rate=1).learning_rate == 1


def test_build_replaces_nested_fields_by_their_bare_names():
    start = Tuning()
    made = build(start, {"rank": 4, "learning_rate": 2e-6, "beta": 0.3})
    assert (made.weights.rank, made.training.learning_rate, made.beta) == (4, 2e-6, 0.3)
    assert made.training.epochs == start.training.epochs
    assert start == Tuning()
    assert build(start, {}) == start
    assert made.weights == Weights(rank=4)


# -- fields are flat in the constructor, as on the command line ---------------------------------------------------


KINDS = [*(find_intervention(name) for name in INTERVENTIONS), Guard]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_field_is_taken_and_read_by_its_bare_name(kind):
    start = kind()
    for field in list_fields(kind):
        assert getattr(start, field.name) == field.default
        assert kind(**{field.name: field.default}) == start
    assert kind(**flat(start)) == start
    assert pickle.loads(pickle.dumps(start)) == copy.deepcopy(start) == start  # noqa: S301  our own
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = start.nothing


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_unknown_field_names_the_nearest(kind):
    known = [field.name for field in list_fields(kind)][-1]
    error = fault(kind, **{known[:-1] + "_": 1})
    assert error.message == f"{getattr(kind, 'name', 'guard')} has no field '{known[:-1]}_'"
    assert f"did you mean '{known}'?" in error.hint


def test_nested_settings_and_flat_fields_go_together():
    sft = find_intervention("sft")
    assert sft().learning_rate == 1e-4, "the default of the intervention, not that of Training"
    assert sft(rank=4).training.learning_rate == 1e-4
    mixed = sft(weights=Weights(alpha=2.0), rank=4, learning_rate=1e-3)
    assert (mixed.weights, mixed.training.learning_rate) == (Weights(alpha=2.0, rank=4), 1e-3)
    assert dataclasses.replace(mixed, rank=2).weights == Weights(alpha=2.0, rank=2)
    assert dataclasses.replace(Guard(margin_cap=3.0), max_neutral_drop=0.2) == Guard(
        margin_cap=3.0, max_neutral_drop=0.2
    )
    assert fault(sft, rank=0).message == "rank is 0"
    assert fault(sft, weights=3).hint == "give Weights, or its fields by their names"


def test_what_the_settings_amount_to():
    assert Weights(rank=8, alpha=16).multiplier == 2
    assert Weights(rank=8, alpha=16, scale=10).multiplier == 10
    assert Training(batch_size=4, gradient_accumulation=8).examples_per_step == 32


def _values(field: dataclasses.Field[Any], annotation: Any) -> st.SearchStrategy[Any]:
    """Any valid value of a field, from its type and its range."""
    bounds = field.metadata["bounds"]
    low = next((bounds[word] for word in ("above", "at_least") if bounds[word] is not None), None)
    high = next((bounds[word] for word in ("below", "at_most") if bounds[word] is not None), None)
    kinds = get_args(annotation) if get_origin(annotation) not in {None, Literal, tuple} else (annotation,)
    made: list[st.SearchStrategy[Any]] = []
    for kind in kinds:
        if get_origin(kind) is Literal:
            made.append(st.sampled_from(get_args(kind)))
        elif get_origin(kind) is tuple:
            names = st.text("abcdefgh_.0123456789", min_size=1)
            made.append(st.lists(names, min_size=1).map(tuple))
        elif kind is int:
            most = LARGEST_WHOLE if high is None else high
            made.append(st.integers(-most if low is None else low, most))
        elif kind is float:
            exclude = {"exclude_min": bounds["above"] is not None, "exclude_max": bounds["below"] is not None}
            most = LARGEST if high is None else high
            made.append(st.floats(-most if low is None else low, most, allow_nan=False, **exclude))
        else:
            made.append({bool: st.booleans(), type(None): st.none()}[kind])
    return st.one_of(made)


def _settings(kind: type) -> st.SearchStrategy[Any]:
    hints = get_type_hints(kind)
    fields = {f.name: _values(f, hints[f.name]) for f in dataclasses.fields(kind)}
    return st.fixed_dictionaries(fields)


def _text(value: Any) -> str:
    return ",".join(value) if isinstance(value, tuple) else repr(value) if isinstance(value, float) else str(value)


@pytest.mark.parametrize("kind", [Weights, Training])
def test_what_a_run_records_builds_the_same_settings(kind):
    @given(_settings(kind))
    def round_trip(values):
        if values.get("tune") == "full":
            values |= {"scale": None, "target_modules": None}
        settings = kind(**values)
        options = [f"{name}={_text(value)}" for name, value in flat(settings).items()]
        [result] = parse_options([kind], options)
        assert build(kind(), result) == settings

    round_trip()


@given(_settings(Training), st.sampled_from(["dpo", "ipo"]), st.booleans())
def test_the_round_trip_holds_through_levels(values, loss, quick):
    settings = Tuning(training=Training(**values), loss=loss, quick=quick)
    options = [f"{name}={_text(value)}" for name, value in flat(settings).items()]
    tuning, ctx = parse_options([Tuning, RunContext], options)
    assert (build(Tuning(), tuning), ctx) == (settings, {})


@given(st.text())
def test_no_text_is_a_traceback(text):
    for name in ("beta", "rank", "scale", "quick", "loss", "target_modules"):
        with suppress(InputError):
            [result] = parse_options([Tuning], [f"{name}={text}"])
            build(Tuning(), result)
