"""Scores are held against the model's own forward on the actual rows, and the untrained policy as well."""

from __future__ import annotations

import copy
import dataclasses
from contextlib import closing, contextmanager

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import LIMITED, byte_tokenizer, context, pairs, tiny_model, tiny_module

from conviction import Dpo
from conviction.core.protocols import Query, chat
from conviction.errors import ModelError
from conviction.models.engine.selfcheck import SAMPLED, SECOND_LOOK, rescore, rows_to_rescore
from conviction.models.engine.torch_engine import TorchEngine
from conviction.models.engine.unpacked import score_unpacked
from conviction.models.hf import HFModel
from conviction.models.score_cache import ScoreCache
from conviction.training.loop import train

LENGTHS = (3, 40, 260, 310)
QUERIES = [Query(chat("abcd"[i] * n), ("Yes, it is so.", "No " + "x" * (n // 4))) for i, n in enumerate(LENGTHS)]


def rows_of(model: HFModel, query: Query) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    prompt, answers = model.encoder.encode(query.messages, query.answers)
    return [(prompt, answer) for answer in answers]


def alone(model: HFModel, query: Query) -> list[float]:
    """What the model's own forward gives, in a copy that nothing else has touched."""
    return [x for row in rows_of(model, query) for x in score_unpacked(model.untouched, [row])[0]]  # type: ignore[attr-defined]


def limited(architecture: str) -> HFModel:
    module = tiny_module(architecture)
    untouched = copy.deepcopy(module)
    model = HFModel(id=architecture, engine=TorchEngine(module, byte_tokenizer()))
    model.untouched = untouched  # type: ignore[attr-defined]
    return model


def flat(scores) -> list[float]:
    return [x for group in scores for s in group for x in s.logprobs]


@pytest.mark.parametrize("architecture", LIMITED)
def test_no_row_depends_on_the_company_of_longer_ones(architecture):
    model = limited(architecture)
    assert model.check.packed, model.check.reason
    assert model.engine.packable_length == 200
    assert flat(model.logprobs(QUERIES, fresh=True)) == pytest.approx(
        [x for q in QUERIES for x in alone(model, q)], abs=1e-4
    )
    assert model.check.packed, "short rows stay packed"
    rescored = model.describe()["rescored"]
    assert rescored["longest_row_tokens"] > 310
    assert rescored["max_difference_nats"] < 1e-4


@pytest.mark.parametrize("architecture", LIMITED)
def test_rows_that_packing_scores_wrongly_are_found_and_scored_again(architecture, monkeypatch):
    """Were the limit not known, the longest of the actual rows would show it."""
    monkeypatch.setattr(TorchEngine, "_longest_packable", lambda self: None)
    model = limited(architecture)
    assert model.check.packed, "the short rows of the check at load see nothing"
    expected = [x for q in QUERIES for x in alone(model, q)]
    assert flat(model.logprobs(QUERIES)) == pytest.approx(expected, abs=1e-4)
    assert not model.check.packed
    assert "scored again by the model's own forward differ" in model.check.reason
    assert model.describe()["rescored"]["max_difference_nats"] > 1e-3
    again = limited(architecture)  # another process: it packs, and finds nothing wrong in the cache
    assert flat(again.logprobs(QUERIES)) == pytest.approx(expected, abs=1e-4)


def test_a_wrong_score_in_the_cache_is_found():
    model = tiny_model()
    expected = flat(model.logprobs(QUERIES))
    rows = [row for query in QUERIES for row in rows_of(model, query)]
    with closing(ScoreCache(model.scope())) as cache:
        cache.keep({row: (-9.0,) * len(row[1]) for row in rows})
    again = tiny_model()
    assert flat(again.logprobs(QUERIES)) == pytest.approx(expected, abs=1e-4)
    assert again.describe()["rescored"]["max_difference_nats"] > 1
    with closing(ScoreCache(model.scope())) as cache:
        assert cache.find(rows) == {}


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.lists(st.integers(0, 9), min_size=1), st.lists(st.integers(0, 9), min_size=1))))
def test_the_sample_holds_the_longest_row_and_depends_on_the_rows_alone(rows):
    rows = list(dict.fromkeys((tuple(p), tuple(a)) for p, a in rows))
    sample = rows_to_rescore(rows, None)
    assert sample == rows_to_rescore(rows[::-1], None)
    assert len(set(sample)) == len(sample) >= min(3, len(rows))
    if rows:
        assert max(len(p) + len(a) for p, a in sample) == max(len(p) + len(a) for p, a in rows)


def test_one_row_in_so_many_is_scored_again():
    rows = [((i, i + 1), (i + 2,)) for i in range(100 * SAMPLED)]
    assert 50 < len(rows_to_rescore(rows, None)) < 150


class HalfPrecision:
    """An engine whose separate rows are all 0, and round by 0.01, every tenth row by 0.1."""

    dtype = "bfloat16"

    def __init__(self):
        self.step = 0.0

    def score(self, rows):
        return [{row: (self.step * (10 if row[0][0] % 10 == 0 else 1),) * len(row[1]) for row in rows}]

    @contextmanager
    def rounded(self):
        self.step = 0.01
        yield
        self.step = 0.0


ROWS = [((i, *range(i)), (1, 2)) for i in range(60)]


@pytest.mark.parametrize(
    ("packed", "accepted"),
    [
        pytest.param(lambda row, first: 0.1 * (row == first), True, id="one row rounds as others of the model do"),
        pytest.param(lambda row, first: 0.4, False, id="all rows are wrong"),
        pytest.param(lambda row, first: 0.4 * (len(row[0]) > 50), False, id="long rows are wrong"),
        pytest.param(lambda row, first: 0.4 * (row == first), False, id="one row is far off"),
    ],
)
def test_a_sample_that_does_not_agree_is_scored_again_with_more_rows(packed, accepted):
    """Were the sample alone to decide, one token that rounds far would make all later rows ten times as slow."""
    engine = HalfPrecision()
    first = rows_to_rescore(ROWS, None)[0]
    assert not any(row[0][0] % 10 == 0 for row in rows_to_rescore(ROWS, None))
    agreement = rescore(engine, {row: (packed(row, first),) * 2 for row in ROWS}, None)
    assert agreement is not None
    assert agreement.accepted == accepted
    assert agreement.rows == len(rows_to_rescore(ROWS, None)) + SECOND_LOOK


@pytest.mark.parametrize("architecture", LIMITED)
def test_long_rows_are_trained_one_by_one(architecture):
    model = limited(architecture)
    data = pairs(2)
    long = dataclasses.replace(data.pairs[0], messages=chat("?" * 260))
    task = Dpo(max_steps=1, rank=2).task(model, dataclasses.replace(data, pairs=(long, data.pairs[1])), context())
    assert not task.packed
    assert train(task, context()).steps == 1
    assert Dpo(max_steps=1, rank=2).task(model, data, context()).packed


def test_a_copy_that_reads_weights_otherwise_is_refused_before_training(monkeypatch):
    """As codes of a quantised layer would be, taken for its weights: reference and guard would be wrong alike."""
    from conviction.training import policy

    copied = policy._copy

    def misread(module, dtype):
        copy = copied(module, dtype)
        layer = copy.model.layers[1].mlp.down_proj
        layer.weight = torch.nn.Parameter(layer.weight * 3, requires_grad=False)
        return copy

    monkeypatch.setattr(policy, "_copy", misread)
    model = tiny_model()
    with pytest.raises(ModelError, match=r"do not agree on 'p\d': mean log-prob -\d.*own forward, -\d") as refused:
        Dpo(max_steps=1, rank=2).apply(model, pairs(4), context())
    assert "unquantised" in refused.value.hint


def test_a_few_examples_that_round_far_do_not_refuse_a_run(monkeypatch):
    """Of three rows in bf16 one in twenty differs by more than three times the rounding of all three."""
    from conviction.training import untrained

    compared, real = [], untrained.compare

    def few_differ(engine, separate, scored, **named):
        agreement = real(engine, separate, scored, **named)
        compared.append(agreement.rows)
        return agreement if agreement.rows > 6 else dataclasses.replace(agreement, accepted=False)

    monkeypatch.setattr(untrained, "compare", few_differ)
    assert not Dpo(max_steps=1, rank=2, learning_rate=2e-3).apply(tiny_model(), pairs(24), context()).notes
    assert compared == [6, 2 * (3 + SECOND_LOOK)]
