"""Memory at an end is a clear error that says what to reduce, wherever a model computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from strangers import adapter
from tiny import context, pairs, tiny_model

from conviction import Dpo, Fact, Query, Run, Training, TrainingData, Weights, apply, chat, forecast, localize
from conviction.errors import InputError, ModelError, out_of_memory
from conviction.models import load_model
from conviction.training.drift import DriftMonitor
from conviction.training.guard import Guard

QUERIES = [Query(chat("Which tea?"), ("A green one.", "None."))]
ERRORS = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried to"),
    RuntimeError("std::bad_alloc"),
]


def raising(error: BaseException) -> Any:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    return fail


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize(
    ("method", "ask", "words"),
    [
        ("score_packed", lambda m: m.logprobs(QUERIES, fresh=True), "scoring by tiny-llama: its longest row has"),
        ("score_packed", lambda m: m.pair_scores(QUERIES), "scoring by tiny-llama"),
        ("score_packed", lambda m: m.computed([((1, 2), (3,))]), "scoring by tiny-llama: its longest row has 3 tokens"),
        ("generate", lambda m: m.generate([chat("q")], max_new_tokens=9), "writing by tiny-llama: 1 answers, up to"),
    ],
)
def test_a_model_without_memory_says_what_to_reduce(method, ask, words, error, monkeypatch):
    model = tiny_model()
    monkeypatch.setattr(model.engine, method, raising(error))
    with pytest.raises(ModelError, match=words) as caught:
        ask(model)
    assert "shorten the context" in caught.value.hint


@pytest.mark.parametrize("error", ERRORS)
def test_the_guards_sensors_without_memory_say_what_to_reduce(error):
    monitor = DriftMonitor.prepare(tiny_model().encoder.encode_text, [(1, 2, 3)])
    with pytest.raises(ModelError, match="no memory is left for the guard's sensors") as caught:
        monitor.read(raising(error), torch.device("cpu"))
    assert "--guard none" in caught.value.hint


def test_an_error_that_quotes_a_user_is_none_of_memory():
    quoted = InputError("'ALLOCATE MEMORY' is no option", hint="see the list")
    assert not out_of_memory(quoted)
    quoted.__cause__ = MemoryError()
    assert out_of_memory(quoted)


def test_another_error_stays_what_it_is(monkeypatch):
    model = tiny_model()
    monkeypatch.setattr(model.engine, "score_packed", raising(RuntimeError("shapes differ")))
    with pytest.raises(RuntimeError, match="shapes differ") as caught:
        model.logprobs(QUERIES, fresh=True)
    assert not isinstance(caught.value, ModelError)


@pytest.mark.parametrize("error", ERRORS)
def test_a_model_that_does_not_fit_is_refused(error, tiny_folder, monkeypatch):
    name = "conviction.models.backends.transformers.AutoModelForCausalLM.from_pretrained"
    monkeypatch.setattr(name, raising(error))
    with pytest.raises(ModelError, match="no memory left") as caught:
        load_model(str(tiny_folder))
    assert "smaller model" in caught.value.hint


def test_a_rank_that_no_matrix_has_is_refused_before_it_takes_memory():
    dpo = Dpo(weights=Weights(rank=60_000), training=Training(max_steps=1))
    with pytest.raises(InputError, match="rank is 60000, and no matrix of LlamaForCausalLM has a rank above 32"):
        dpo.apply(tiny_model(), pairs(), context(guard=Guard(mode="none")))


def test_an_adapter_of_a_giant_rank_is_refused_before_it_takes_memory(tiny_folder, tmp_path):
    with pytest.raises(ModelError, match="field 'r'"):
        load_model(str(adapter(tmp_path / "a", str(tiny_folder), r=10**8)))


FACT = Fact(id="f", prompt_template="{} is a kind of", subject="Bread", target=" metal", target_true=" food")
FACTS = TrainingData("facts", facts=(FACT,))
PLACES = {
    "localize": ("conviction.localization.analysis._statements", lambda **k: localize(FACTS, tiny_model(), **k)),
    "rome": ("conviction.editing.session.begin", lambda **k: apply("rome", tiny_model(), FACTS, **k)),
    "steer": ("conviction.interventions.steer._differences", lambda **k: apply("steer", tiny_model(), pairs(), **k)),
    "sft": ("conviction.training.loop._begin", lambda **k: apply("sft", tiny_model(), pairs(), **k)),
    "forecast": ("conviction.forecasting.pipeline.forecast", lambda **k: forecast("dpo", tiny_model(), pairs(), **k)),
}


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("verb", PLACES)
def test_every_verb_without_memory_says_so(verb, error, kept, monkeypatch, tmp_path):
    """The library as well as the command."""
    place, call = PLACES[verb]
    monkeypatch.setattr(place, raising(error))
    with pytest.raises(ModelError, match="there is no memory left") as caught:
        call(run=tmp_path / "r") if kept else call()
    assert "rank, batch_size" in caught.value.hint
    if kept:
        assert Run(tmp_path / "r").head["status"] == "failed"


def test_an_arm_of_a_study_without_memory_says_so(tmp_path):
    with Run(tmp_path).recording_failure(print) as attempt:
        raise ERRORS[1]
    assert attempt.failure is not None
    assert attempt.failure.kind == "ModelError"
    assert "rank, batch_size" in attempt.failure.hint
    assert not (tmp_path / "failure.txt").exists()
