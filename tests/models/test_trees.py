"""Attention over token trees and the LM head, differentiated: plain rows and plain autograd are the oracle."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_module
from torch import Tensor

from conviction.models.engine import attention, logprobs
from conviction.models.engine.attention import KERNEL, Prefix, layout
from conviction.models.engine.logprobs import Head, answer_logprobs, find_head, predictions, token_logprobs
from conviction.models.engine.packing import Pack, pack_whole, plan

CPU = torch.device("cpu")

# -- the head -----------------------------------------------------------------

VOCABULARY, HIDDEN = 2500, 8  # three slices of the vocabulary, once slices are small

HEADS: dict[str, dict[str, Any]] = {
    "plain": {},
    "scaled": {"scale": 0.25},
    "softcapped": {"softcap": 3.0},
    "biased": {"bias": True},
    "all": {"scale": 1.7, "softcap": 4.0, "bias": True},
}


@pytest.fixture(autouse=True)
def _small_slices(monkeypatch):
    monkeypatch.setattr(logprobs, "SLICE_BYTES", 1)  # then the least width, 1024


def made(kind: str, *, exact: bool, dtype: torch.dtype = torch.float32, rows: int = 7) -> tuple[Tensor, Tensor, Head]:
    generator = torch.Generator().manual_seed(rows)
    extra = dict(HEADS[kind])
    if extra.get("bias"):
        extra["bias"] = torch.randn(VOCABULARY, generator=generator).to(dtype)
    weight = torch.randn(VOCABULARY, HIDDEN, generator=generator).to(dtype)
    hidden = torch.randn(rows, HIDDEN, generator=generator).to(dtype)
    targets = torch.randint(VOCABULARY, (rows,), generator=generator)
    targets[:3] = torch.tensor([0, 1024, VOCABULARY - 1])  # at the edges of slices
    return hidden, targets, Head(weight, exact=exact, **extra)


def plainly(hidden: Tensor, targets: Tensor, head: Head) -> Tensor:
    """Log-softmax over the whole vocabulary, in fp64."""
    logits = hidden.double() @ head.weight.double().T
    if head.bias is not None:
        logits = logits + head.bias.double()
    logits = logits * head.scale
    if head.softcap:
        logits = torch.tanh(logits / head.softcap) * head.softcap
    return torch.log_softmax(logits, -1).gather(1, targets[:, None])[:, 0]


def derived(values: Tensor, *wanted: Tensor) -> list[Tensor]:
    """Gradients of a weighted sum: every row counts differently."""
    towards = torch.linspace(-1, 2, len(values), dtype=values.dtype)
    return [g.double() for g in torch.autograd.grad((values * towards).sum(), wanted)]


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("kind", HEADS)
def test_a_frozen_heads_gradient_is_plain_autograds(kind, exact):
    hidden, targets, head = made(kind, exact=exact)
    hidden.requires_grad_(True)
    values, wanted = token_logprobs(hidden, targets, head), plainly(hidden, targets, head)
    assert "_FrozenHead" in type(values.grad_fn).__name__
    torch.testing.assert_close(values.double(), wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(derived(values, hidden)[0], derived(wanted, hidden)[0], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("kind", HEADS)
def test_a_trained_heads_gradients_are_plain_autograds(kind, exact):
    hidden, targets, head = made(kind, exact=exact)
    moved = [hidden, head.weight, *([] if head.bias is None else [head.bias])]
    for tensor in moved:
        tensor.requires_grad_(True)
    values, wanted = token_logprobs(hidden, targets, head), plainly(hidden, targets, head)
    torch.testing.assert_close(values.double(), wanted, atol=1e-5, rtol=1e-5)
    for ours, plain in zip(derived(values, *moved), derived(wanted, *moved), strict=True):
        torch.testing.assert_close(ours, plain, atol=2e-5, rtol=1e-4)


def test_a_head_of_which_only_the_bias_is_trained_is_not_taken_for_frozen():
    hidden, targets, head = made("biased", exact=True)
    assert head.bias is not None
    moved = (hidden.requires_grad_(True), head.bias.requires_grad_(True))
    ours, plain = (derived(f(hidden, targets, head), *moved) for f in (token_logprobs, plainly))
    for mine, wanted in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine, wanted, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize(("exact", "tolerance"), [(True, 1e-4), (False, 0.1)])
@pytest.mark.parametrize("kind", HEADS)
def test_half_precision_stays_near_the_exact_values(kind, exact, tolerance, trained):
    """Exact: rounding enters the gradient only. Otherwise logits are rounded: bf16 has 8 bits, logits are near 8."""
    hidden, targets, head = made(kind, exact=exact, dtype=torch.bfloat16, rows=40)
    moved = (hidden.requires_grad_(True), head.weight.requires_grad_(True))[: 1 + trained]
    head.weight.requires_grad_(trained)
    values, wanted = token_logprobs(hidden, targets, head), plainly(hidden, targets, head)
    assert values.dtype == torch.float32
    assert float((values - wanted).detach().abs().max()) <= tolerance
    for ours, plain in zip(derived(values, *moved), derived(wanted, *moved), strict=True):
        assert float((ours - plain).norm() / plain.norm()) < 0.02


@given(st.integers(1, 12), st.integers(1, 3000), st.floats(0.1, 4), st.sampled_from([None, 2.0, 30.0]))
@settings(deadline=None, max_examples=25)
def test_gradients_hold_for_any_vocabulary_and_sharpness(rows, vocabulary, sharpness, softcap):
    generator = torch.Generator().manual_seed(rows)
    hidden = (torch.randn(rows, 8, generator=generator) * sharpness * 3).requires_grad_(True)
    head = Head(torch.randn(vocabulary, 8, generator=generator), softcap=softcap)
    targets = torch.randint(vocabulary, (rows,), generator=generator)
    ours, plain = (derived(f(hidden, targets, head), hidden)[0] for f in (token_logprobs, plainly))
    torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-3)


def test_certainty_has_no_gradient_and_no_nan():
    """One logit 1000 above the rest, in another slice than theirs."""
    head = Head(torch.zeros(VOCABULARY, HIDDEN))
    head.weight[2000, 0] = 1.0
    hidden = torch.zeros(2, HIDDEN)
    hidden[:, 0] = 1000.0
    hidden.requires_grad_(True)
    values = token_logprobs(hidden, torch.tensor([2000, 3]), head)
    assert values.tolist() == pytest.approx([0.0, -1000.0])
    (gradient,) = torch.autograd.grad(values.sum(), hidden)
    assert gradient[:, 0].tolist() == pytest.approx([0.0, -1.0])


# -- rows and trees ---------------------------------------------------------------


def ready(architecture: str, **changes: Any) -> Any:
    module = tiny_module(architecture, **changes)
    module.set_attn_implementation(KERNEL)
    return module


def random_pairs(seed: int, count: int = 4) -> list[tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]]:
    """Prompts with two answers that begin alike, of many lengths."""
    rng = random.Random(seed)

    def ids(low: int, high: int) -> tuple[int, ...]:
        return tuple(rng.randrange(256) for _ in range(rng.randint(low, high)))

    pairs = []
    for _ in range(count):
        shared = ids(0, 12)
        pairs.append((ids(1, 25), ((*shared, 1, *ids(0, 14)), (*shared, 2, *ids(0, 14)))))
    return pairs


def pack_of(pairs: Any) -> Pack:
    ((pack, _),) = pack_whole(pairs, token_budget=10_000)
    return pack


def kinds(pack: Pack) -> set[str]:
    return {"rows" if b.visible is None else "trees" for b in layout(pack.trees, pack.starts, Prefix(), CPU).bins}


def read_pack(module: Any, pack: Pack, *, head: Head | None = None) -> dict[Any, Tensor]:
    values = answer_logprobs(module.base_model, head or find_head(module), pack, Prefix())
    _, _, where = predictions(pack)
    return {key: values[index] for key, index in where.items()}


def read_rows(module: Any, pack: Pack) -> dict[Any, Tensor]:
    result = {}
    for tree in pack.trees:
        for prompt, answer in tree.answers:
            ids = torch.tensor([(prompt + answer)[:-1]])
            out = module(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 :]
            result[prompt, answer] = torch.log_softmax(out, -1).gather(1, torch.tensor(answer)[:, None])[:, 0]
    return result


def scalar(result: dict[Any, Tensor]) -> Tensor:
    """A preference-like sum in which no answer counts as another."""
    return sum(((-1) ** i * (1 + i / 3) * result[key].sum() for i, key in enumerate(sorted(result))), torch.zeros(()))


def compare(result: dict[Any, Tensor], expected: dict[Any, Tensor], weights: list[Tensor]) -> None:
    assert result.keys() == expected.keys()
    for key, values in expected.items():
        torch.testing.assert_close(result[key], values, atol=1e-4, rtol=1e-4)
    ours = torch.autograd.grad(scalar(result), weights)
    for mine, plain in zip(ours, torch.autograd.grad(scalar(expected), weights), strict=True):
        assert torch.isfinite(mine).all()
        torch.testing.assert_close(mine, plain, atol=3e-4 * max(1.0, float(plain.abs().max())), rtol=1e-3)


MODELS = ["llama", "gpt2", "qwen3", "gemma3-sliding", "mistral-sliding", "granite-scaled", "cohere-scaled"]


@pytest.mark.parametrize("frozen_head", [False, True])
@pytest.mark.parametrize("architecture", MODELS)
def test_pairs_in_a_pack_have_the_log_probs_and_gradients_of_separate_forwards(architecture, frozen_head):
    module = ready(architecture, tie_word_embeddings=False)
    module.get_output_embeddings().weight.requires_grad_(not frozen_head)
    weights = [p for p in module.parameters() if p.requires_grad]
    pack = pack_of(random_pairs(1))
    compare(read_pack(module, pack), read_rows(module, pack), weights)


def test_a_tied_head_is_trained_through_both_of_its_places():
    module = ready("llama", tie_word_embeddings=True)
    embedding = module.get_input_embeddings().weight
    assert module.get_output_embeddings().weight is embedding
    pack = pack_of(random_pairs(2))
    compare(read_pack(module, pack), read_rows(module, pack), [embedding])


@pytest.mark.parametrize("architecture", ["llama", "gemma3-sliding", "mistral-sliding"])
@pytest.mark.parametrize("seed", range(4))
def test_causal_rows_and_dense_trees_are_the_same(architecture, seed, monkeypatch):
    module = ready(architecture)
    weights = list(module.parameters())
    pairs = random_pairs(seed)
    pack = pack_of(pairs)
    as_rows = read_pack(module, pack)
    assert kinds(pack) == {"rows"}, "a pair is never more work as rows"

    def whole(tree: Any, start: int, _prefix: int) -> list[Any]:
        depths = attention.np.array(tree.depths, dtype=attention.np.int64)
        return [attention._Member(start + attention.np.arange(len(depths)), depths, tree.ancestors())]

    monkeypatch.setattr(attention, "_members", whole)
    assert kinds(pack) == {"trees"}
    compare(as_rows, read_pack(module, pack), weights)


@pytest.mark.parametrize("architecture", ["llama", "mistral-sliding"])
def test_many_answers_on_a_long_prompt_are_a_tree_and_right(architecture):
    module = ready(architecture)
    pack = pack_of([(tuple(range(60)), tuple((7, i, 9, i) for i in range(100, 112))), ((3, 4), ((5, 6), (5, 7, 8)))])
    assert kinds(pack) == {"rows", "trees"}, "one pack holds both"
    compare(read_pack(module, pack), read_rows(module, pack), list(module.parameters()))


@pytest.mark.parametrize("architecture", ["llama", "mistral-sliding"])
def test_a_prefix_before_the_trees_changes_nothing(architecture):
    module = ready(architecture)
    pairs = [((*range(60), 100 + i), ((5, 6, 7 + i), (5, 9))) for i in range(4)]
    (block,) = plan(pairs, token_budget=512, hidden_size=32)
    assert len(block.prefix) == 60
    prefix = logprobs.compute_prefix(module.base_model, block.prefix, CPU)
    (pack,) = block.packs
    values = answer_logprobs(module.base_model, find_head(module), pack, prefix)
    _, _, where = predictions(pack)
    result = {key: values[index] for key, index in where.items()}
    compare(result, read_rows(module, pack), list(module.parameters()))


token = st.integers(0, 2)
short = st.lists(token, min_size=1, max_size=14).map(tuple)
many = st.lists(st.tuples(short, st.lists(short, min_size=1, max_size=5, unique=True)), min_size=1, max_size=5)
_BUILT: dict[str, Any] = {}


@given(many, st.sampled_from(["llama", "mistral-sliding"]))
@settings(deadline=None, max_examples=40)
def test_any_trees_are_read_as_separate_rows(requests, architecture):
    module = _BUILT.setdefault(architecture, _BUILT.get(architecture) or ready(architecture))
    pack = pack_of(requests)
    with torch.inference_mode():
        result, expected = read_pack(module, pack), read_rows(module, pack)
    for key, values in expected.items():
        torch.testing.assert_close(result[key], values, atol=1e-4, rtol=1e-4)


@given(many, st.sampled_from(["llama", "mistral-sliding"]), st.integers(1, 60))
@settings(deadline=None, max_examples=40)
def test_any_plan_is_read_as_separate_rows(requests, architecture, budget):
    module = _BUILT.setdefault(architecture, _BUILT.get(architecture) or ready(architecture))
    with torch.inference_mode():
        for block in plan(requests, token_budget=budget, hidden_size=4096):  # so wide that prompts often share a tree
            prefix = logprobs.compute_prefix(module.base_model, block.prefix, CPU)
            for pack in block.packs:
                values = answer_logprobs(module.base_model, find_head(module), pack, prefix)
                _, _, where = predictions(pack)
                for key, expected in read_rows(module, pack).items():
                    torch.testing.assert_close(values[where[key]], expected, atol=1e-4, rtol=1e-4)


@given(many)
def test_a_layout_leads_every_token_to_its_place_and_back(requests):
    pack = pack_of(requests)
    made_ = layout(pack.trees, pack.starts, Prefix(), CPU)
    gathered = torch.cat([b.gather for b in made_.bins])
    assert gathered[made_.scatter].tolist() == list(range(len(pack.tokens)))
    assert torch.cat([b.depths.flatten() for b in made_.bins])[made_.scatter].tolist() == pack.depths.tolist()


@pytest.mark.parametrize("seed", range(5))
def test_little_of_a_bin_is_padding(seed):
    pack = pack_of([*random_pairs(seed, 20), *((tuple(range(n)), ((1, 2), (3, 4))) for n in (200, 60))])
    bins = layout(pack.trees, pack.starts, Prefix(), CPU).bins
    real = sum(len(path) for tree in pack.trees for path in tree.paths())
    assert kinds(pack) == {"rows"}
    assert real <= sum(b.gather.numel() for b in bins) <= real / 0.75
    assert len(bins) < 20


def test_layers_of_one_kind_share_their_masks():
    pack = pack_of(random_pairs(3))
    made_ = layout(pack.trees, pack.starts, Prefix(), CPU)
    x = torch.randn(1, 2, len(pack.tokens), 4)
    for layer in range(3):
        for window in (None, 5):
            made_.attend(x, x, x, layer=layer, scale=None, window=window, dropout=0.0)
    assert set(made_.masks) == {(None, torch.float32), (5, torch.float32)}
    assert made_.masks[None, torch.float32] == [None] * len(made_.bins), (
        "causal rows need none: the fused kernel's case"
    )


def test_every_padded_query_sees_something():
    """Fused kernels give NaN for a query that sees nothing, and NaN spreads through the backward pass."""
    pack = pack_of([(tuple(range(n)), ((1, 2), (3, 4))) for n in (40, 33)])
    made_ = layout(pack.trees, pack.starts, Prefix(), CPU)
    assert sum(b.gather.numel() for b in made_.bins) > sum(len(p) for t in pack.trees for p in t.paths())
    for b in made_.bins:
        mask = b.mask(0, 5, torch.float32)
        assert mask is not None
        assert bool((mask == 0).any(-1).all())


def test_answers_that_begin_alike_are_predicted_once():
    pack = pack_of([((1, 2), ((5, 6, 7), (5, 6, 8)))])
    nodes, targets, where = predictions(pack)
    assert (len(nodes), targets) == (4, [5, 6, 7, 8])
    assert where[(1, 2), (5, 6, 8)].tolist() == [0, 1, 3]


def test_two_trees_of_the_same_text_count_twice_where_they_are_counted():
    """The same prompt and answer in two pairs: one value, and its gradient once for each."""
    module = ready("llama")
    pack = pack_of([((1, 2, 3), ((5, 6), (7,))), ((1, 2, 3), ((5, 6), (8, 9)))])
    result = read_pack(module, pack)
    expected = read_rows(module, pack)
    assert set(result) == {((1, 2, 3), a) for a in ((5, 6), (7,), (8, 9))}
    compare(result, expected, list(module.parameters()))


def test_rounded_logits_give_no_probability_over_one():
    """The target's logit is computed by itself and must be rounded as it is in its slice."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(VOCABULARY, 64, generator=generator).to(torch.bfloat16)
    targets = torch.randint(VOCABULARY, (500,), generator=generator)
    hidden = (weight[targets].float() + 0.1 * torch.randn(500, 64, generator=generator)).to(torch.bfloat16)
    values = token_logprobs(hidden.requires_grad_(True), targets, Head(weight, exact=False))
    assert float(values.detach().max()) <= 1e-4
