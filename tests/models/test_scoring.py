"""Packed scores against separate ones, through gradients, caches and bad models."""

from __future__ import annotations

import copy
import re
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import FALLBACK, PACKABLE, byte_tokenizer, tiny_model, tiny_module

from conviction import Query, chat, load_model
from conviction.errors import InputError, ModelError
from conviction.models.engine.attention import KERNEL, Prefix
from conviction.models.engine.logprobs import (
    Head,
    answer_logprobs,
    compute_prefix,
    find_head,
    predictions,
    token_logprobs,
)
from conviction.models.engine.packing import pack_whole, plan
from conviction.models.engine.selfcheck import check_packing
from conviction.models.engine.torch_engine import TorchEngine
from conviction.models.engine.unpacked import score_unpacked
from conviction.models.hf import HFModel

words = st.text("abcdef ", min_size=1, max_size=30).filter(str.strip)
conversations = st.lists(st.tuples(words, st.lists(words, min_size=1, max_size=4)), min_size=1, max_size=6)

QUERIES = [
    Query(chat("What is tea?"), ("Tea is a drink.", "Tea is a drone.", "No.")),
    Query(chat("What is tea made of, if one may ask?"), ("Leaves.", "Stones, mostly, and some water.")),
    Query(chat("x", system="A long context that is shared. " * 3), ("y", "yes")),
    Query(chat("z", system="A long context that is shared. " * 3), ("y", "no, never")),
]


def separately(model: HFModel, queries: list[Query]) -> list[float]:
    rows = [
        (prompt, answer)
        for prompt, answers in [model.encoder.encode(q.messages, q.answers) for q in queries]
        for answer in answers
    ]
    return [x for row in score_unpacked(model.module, rows) for x in row]


def flat(scores) -> list[float]:
    return [x for group in scores for s in group for x in s.logprobs]


@pytest.mark.parametrize("architecture", PACKABLE)
def test_packed_equals_separate(architecture):
    model = tiny_model(architecture)
    assert model.check.packed, model.check.reason
    assert model.module.config._attn_implementation == KERNEL
    assert flat(model.logprobs(QUERIES)) == pytest.approx(separately(model, QUERIES), abs=1e-4)


@pytest.mark.parametrize("architecture", FALLBACK)
def test_other_architectures_are_scored_separately_and_say_so(architecture):
    model = tiny_model(architecture)
    assert not model.check.packed
    assert "separate rows" in model.check.reason
    assert model.module.config._attn_implementation != KERNEL
    assert flat(model.logprobs(QUERIES)) == pytest.approx(separately(model, QUERIES), abs=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "gemma3-sliding", "gpt2"])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(work=conversations, budget=st.sampled_from([1, 40, 4096]))
def test_packed_equals_separate_for_any_lengths(architecture, work, budget):
    model = _built(architecture)
    model.engine.token_budget = budget
    queries = [Query(chat(q), tuple(answers)) for q, answers in work]
    result: dict = {}
    rows = [
        (prompt, answer)
        for prompt, answers in [model.encoder.encode(q.messages, q.answers) for q in queries]
        for answer in answers
    ]
    for batch in model._packed(rows):
        result |= batch
    assert [x for r in rows for x in result[r]] == pytest.approx(separately(model, queries), abs=1e-4)


_MODELS: dict[str, HFModel] = {}


def _built(architecture: str) -> HFModel:
    if architecture not in _MODELS:
        _MODELS[architecture] = tiny_model(architecture)
    return _MODELS[architecture]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wrong_kernel_is_caught_at_load(dtype, monkeypatch):
    """A mask that lets answers see each other must not pass the self-check."""
    from conviction.models.engine.packing import Tree

    monkeypatch.setattr(
        Tree, "ancestors", lambda self: torch.ones(len(self.tokens), len(self.tokens)).numpy().astype(bool)
    )
    model = HFModel(id="wrong", engine=TorchEngine(tiny_module("llama").to(dtype), byte_tokenizer()))
    assert not model.check.packed
    assert flat(model.logprobs(QUERIES)) == pytest.approx(separately(model, QUERIES), abs=1e-4)


def test_an_unknown_scaling_of_the_head_is_caught_at_load(monkeypatch):
    monkeypatch.setattr(
        "conviction.models.engine.torch_engine.find_head", lambda m: Head(m.get_output_embeddings().weight)
    )
    assert not tiny_model("granite-scaled").check.packed


def test_order_of_answers_swaps_scores_bit_for_bit(monkeypatch, tmp_path):
    model = tiny_model()
    forward = model.logprobs([Query(chat("q"), ("one answer", "two answers"))])[0]
    monkeypatch.setenv("CONVICTION_CACHE", str(tmp_path))  # nothing remembered
    backward = model.logprobs([Query(chat("q"), ("two answers", "one answer"))])[0]
    assert [s.logprobs for s in forward] == [s.logprobs for s in reversed(backward)]


def test_gradients_are_those_of_separate_forwards():
    module = tiny_module("llama")
    model = HFModel(id="t", engine=TorchEngine(module, byte_tokenizer()))
    rows = [
        (prompt, answer)
        for prompt, answers in [model.encoder.encode(q.messages, q.answers) for q in QUERIES[:2]]
        for answer in answers
    ]
    weights = [p for p in module.parameters() if p.requires_grad]
    ((pack, _),) = pack_whole([(prompt, [answer]) for prompt, answer in rows], token_budget=4096)
    values = answer_logprobs(module.base_model, find_head(module), pack, Prefix())
    _, _, where = predictions(pack)
    packed = torch.autograd.grad(sum(values[where[r]].sum() for r in rows), weights)
    total = torch.zeros(())
    for prompt, answer in rows:
        logits = module(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        total = total + torch.log_softmax(logits, -1).gather(1, torch.tensor(answer)[:, None]).sum()
    for ours, plain in zip(packed, torch.autograd.grad(total, weights), strict=True):
        torch.testing.assert_close(ours, plain, atol=2e-4, rtol=1e-3)


def test_gradients_flow_through_a_prefix():
    module = tiny_module("llama")
    HFModel(id="t", engine=TorchEngine(module, byte_tokenizer()))
    (block,) = plan([((*range(60), 100 + i), [(5, 6), (7,)]) for i in range(4)], token_budget=512, hidden_size=32)
    assert len(block.prefix) == 60
    prefix = compute_prefix(module.base_model, block.prefix, torch.device("cpu"))
    values = answer_logprobs(module.base_model, find_head(module), block.packs[0], prefix)
    values.sum().backward()
    grad = module.get_input_embeddings().weight.grad
    assert grad[30].abs().sum() > 0  # token 30 stands in the prefix only


@given(st.integers(1, 9), st.integers(1, 4000), st.floats(0.1, 4), st.sampled_from([None, 5.0]))
@settings(deadline=None, max_examples=30)
def test_sliced_head_equals_log_softmax(m, vocabulary, scale, softcap):
    generator = torch.Generator().manual_seed(m)
    hidden = torch.randn(m, 8, generator=generator)
    head = Head(
        torch.randn(vocabulary, 8, generator=generator), torch.randn(vocabulary, generator=generator), scale, softcap
    )
    targets = torch.randint(vocabulary, (m,), generator=generator)
    logits = (hidden @ head.weight.T + head.bias) * scale
    if softcap:
        logits = torch.tanh(logits / softcap) * softcap
    expected = torch.log_softmax(logits, -1).gather(1, targets[:, None])[:, 0]
    with torch.inference_mode():
        torch.testing.assert_close(token_logprobs(hidden, targets, head), expected, atol=2e-4, rtol=1e-4)


def test_second_call_is_served_from_the_cache(monkeypatch):
    model = tiny_model()
    first = model.logprobs(QUERIES)
    monkeypatch.setattr(model, "_packed", lambda *_: pytest.fail("scored again"))
    assert model.logprobs(QUERIES) == first


def test_a_changed_model_is_never_served_anothers_scores():
    model = tiny_model()
    before = flat(model.logprobs(QUERIES))
    model.module.get_input_embeddings().weight.data[40:60] += 0.5  # .data: autograd's version counter does not see it
    after = flat(model.logprobs(QUERIES))
    assert after != before
    assert after == pytest.approx(separately(model, QUERIES), abs=1e-4)


def test_an_interrupted_call_goes_on_where_it_stopped(monkeypatch):
    model = tiny_model()
    model.engine.token_budget = 1  # a pack per tree
    calls = []

    def stop(done: int, total: int) -> None:
        calls.append((done, total))
        if len(calls) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.logprobs(QUERIES, progress=stop)
    seen: list = []
    original = model._packed
    monkeypatch.setattr(model, "_packed", lambda rows, *rest: seen.extend(rows) or original(rows, *rest))
    again = model.logprobs(QUERIES)
    assert 0 < len(seen) < sum(len(q.answers) for q in QUERIES)
    assert flat(again) == pytest.approx(separately(model, QUERIES), abs=1e-4)


def test_non_finite_logprobs_are_an_error_that_names_the_question():
    model = tiny_model()
    model.module.get_output_embeddings().weight.data[:] = float("nan")
    with pytest.raises(ModelError, match="What is tea") as caught:
        model.logprobs(QUERIES[:1])
    assert "--dtype fp32" in caught.value.hint


def test_an_answer_longer_than_the_context_is_refused():
    model = tiny_model(max_position_embeddings=128)
    with pytest.raises(InputError, match="exceed the model's context of 128"):
        model.logprobs([Query(chat("q"), ("long " * 40,))])


def test_a_template_that_makes_every_question_longer_than_the_context_costs_no_scoring():
    """100,000 characters before every turn took five minutes at load."""
    tokenizer = copy.deepcopy(byte_tokenizer())
    tokenizer.chat_template = "[" * 100_000 + tokenizer.chat_template
    model = HFModel(id="long", engine=TorchEngine(tiny_module("llama"), tokenizer))
    assert re.search(r"a short question has 100\d+ tokens, more than the model's context of \d+", model.check.reason)
    with pytest.raises(InputError, match="exceed the model's context"):
        model.logprobs(QUERIES[:1])


def test_an_empty_answer_is_refused():
    with pytest.raises(InputError, match="empty"):
        tiny_model().logprobs([Query(chat("q"), ("  ",))])


def test_bf16_reports_its_noise_and_stays_close_to_fp32():
    module = tiny_module("llama").to(torch.bfloat16)
    model = HFModel(id="half", engine=TorchEngine(module, byte_tokenizer()))
    assert model.check.packed, model.check.reason
    assert model.describe()["noise_nats"] == model.check.noise
    means = [s.logp_mean for g in model.logprobs(QUERIES) for s in g]
    exact = [s.logp_mean for g in tiny_model().logprobs(QUERIES) for s in g]
    assert means == pytest.approx(exact, abs=0.5)


def test_scores_that_round_less_than_separate_rows_are_accepted():
    """On a GPU rows in a batch come out bit for bit as alone, and packing, which rounds less, does not."""
    module, encoder, exact = tiny_module("llama").to(torch.bfloat16), tiny_model().encoder, tiny_module("llama")

    def score(rows):
        return [dict(zip(rows, score_unpacked(exact, rows), strict=True))]

    check = check_packing(TorchEngine(module, byte_tokenizer()), encoder, score)
    assert check.packed, check.reason
    assert check.difference > 0
    with_fp32_limits = check_packing(
        TorchEngine(exact, byte_tokenizer()), encoder, lambda rows: [shifted(*score(rows), check.difference)]
    )
    assert not with_fp32_limits.packed


@pytest.mark.parametrize("fault", [0.25, float("nan")])
def test_a_small_fault_of_every_token_is_not_taken_for_rounding(fault):
    """A quarter of a nat is within what rounding does to single tokens, and far beyond what it does to a mean."""
    module = tiny_module("llama").to(torch.bfloat16)

    def score(rows):
        return [shifted(dict(zip(rows, score_unpacked(module, rows), strict=True)), fault)]

    check = check_packing(TorchEngine(module, byte_tokenizer()), tiny_model().encoder, score)
    assert not check.packed
    assert "answer's mean" in check.reason


def shifted(scores, by: float):
    return {row: [value + by for value in values] for row, values in scores.items()}


def test_embeddings_that_cannot_be_reached_cost_speed_and_no_load():
    class Foreign(torch.nn.Module):
        def __init__(self, hidden_dot):
            super().__init__()
            self.hidden_dot = hidden_dot

        def get_input_embeddings(self):
            raise NotImplementedError("remote code")

        def forward(self, **inputs):
            return self.hidden_dot(**inputs)

    engine = TorchEngine(Foreign(tiny_module("llama").to(torch.bfloat16)), byte_tokenizer())

    def score(rows):
        return [shifted(dict(zip(rows, score_unpacked(engine.module, rows), strict=True)), 0.1)]

    check = check_packing(engine, tiny_model().encoder, score)  # more than is accepted without knowing the rounding
    assert not check.packed
    assert "remote code" in check.reason


def test_a_model_keeps_its_scores_where_its_folder_moves(tiny_folder, tmp_path, monkeypatch):
    first = load_model(str(tiny_folder), dtype="fp32")
    expected = first.logprobs(QUERIES)
    moved = load_model(str(shutil.copytree(tiny_folder, tmp_path / "elsewhere")), dtype="fp32")
    assert moved.scope() == first.scope()
    monkeypatch.setattr(HFModel, "_packed", lambda *_a, **_k: pytest.fail("computed again"))
    assert moved.logprobs(QUERIES) == expected


def test_greedy_answers_equal_one_at_a_time():
    model = tiny_model()
    prompts = [chat("a"), chat("a much longer question than the other one?")]
    batched = model.generate(prompts, max_new_tokens=12)
    assert [g.token_ids for g in batched] == [model.generate([p], max_new_tokens=12)[0].token_ids for p in prompts]


@pytest.mark.parametrize("architecture", PACKABLE)
def test_a_beginning_that_prompts_share_is_read_once_and_changes_nothing(architecture, monkeypatch):
    from conviction.models import writing

    model = tiny_model(architecture)
    context = "A context that all of these questions share, and that is long enough to be read only once."
    prompts = [chat(q, system=context) for q in ("a", "a much longer question than the other ones?", "bc")]
    read = []
    real = writing._shared
    monkeypatch.setattr(writing, "_shared", lambda batch: read.append(real(batch)) or read[-1])
    together = model.generate(prompts, max_new_tokens=12)
    assert bool(read) == ("sliding" not in architecture)
    assert all(count > len(context) for count in read)
    assert [g.token_ids for g in together] == [model.generate([p], max_new_tokens=12)[0].token_ids for p in prompts]


def test_plain_text_is_scored_after_its_first_token():
    model = tiny_model()
    (score,) = model.text_logprobs(["some plain text"])
    ids = model.encoder.encode_text("some plain text")
    assert score.token_ids == ids[1:]
    assert list(score.logprobs) == pytest.approx(score_unpacked(model.module, [(ids[:1], ids[1:])])[0], abs=1e-4)


def test_settings_and_hooks_are_never_served_from_the_cache():
    model = tiny_model()
    plain = flat(model.logprobs(QUERIES))
    model.module.model.layers[0].self_attn.scaling *= 3  # no weight has changed
    assert flat(model.logprobs(QUERIES)) != plain
    model.module.model.layers[0].self_attn.scaling /= 3
    handle = model.module.model.layers[0].register_forward_hook(lambda _m, _i, out: out * 1.5)
    assert flat(model.logprobs(QUERIES)) != plain
    handle.remove()
    assert flat(model.logprobs(QUERIES)) == plain


def test_greedy_is_greedy_whatever_the_models_own_configuration_asks():
    model = tiny_model()
    plain = model.generate([chat("a")], max_new_tokens=16)
    model.module.generation_config.no_repeat_ngram_size = 1
    model.module.generation_config.num_beams = 3
    assert model.generate([chat("a")], max_new_tokens=16) == plain
