"""Attention out of matrix multiplications: torch's own in fp32 is the oracle."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from conviction.models.causal import causal_attention
from conviction.models.engine.attention import Prefix, layout
from conviction.models.engine.packing import pack_whole


def exact(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    return scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True).transpose(1, 2)


def inputs(n: int, length: int, heads: int, key_heads: int, dim: int, seed: int = 0) -> list[torch.Tensor]:
    torch.manual_seed(seed)
    return [torch.randn(n, length, h, dim) for h in (heads, key_heads, key_heads)]


def with_gradients(function, tensors, scale):
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    out = function(*leaves, scale)
    direction = torch.linspace(-1, 1, out.numel()).sin().view_as(out).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, direction)]


@settings(deadline=None, max_examples=25)
@given(
    n=st.integers(1, 3),
    length=st.integers(1, 300),
    key_heads=st.sampled_from([1, 2, 3]),
    share=st.sampled_from([1, 3]),
    dim=st.sampled_from([8, 16]),
)
def test_in_fp32_it_is_torchs_attention_there_and_back(n, length, key_heads, share, dim):
    tensors = inputs(n, length, key_heads * share, key_heads, dim)
    scale = dim**-0.5
    for result, expected in zip(
        with_gradients(causal_attention, tensors, scale), with_gradients(exact, tensors, scale), strict=True
    ):
        torch.testing.assert_close(result, expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize(
    ("n", "length", "dim"), [(1, 256, 64), (2, 320, 64), (1, 577, 64), (1, 300, 80), (2, 300, 128)]
)
def test_in_bf16_it_is_about_as_near_to_fp32_as_torchs_kernel(n, length, dim):
    half = [t.bfloat16() for t in inputs(n, length, 6, 3, dim)]
    scale = dim**-0.5  # no power of two for 80 and 128
    truth = with_gradients(exact, [t.float() for t in half], scale)
    ours, theirs = (with_gradients(f, half, scale) for f in (causal_attention, exact))
    for result, rival, expected in zip(ours, theirs, truth, strict=True):
        off, rival_off = ((x.float() - expected).norm() / expected.norm() for x in (result, rival))
        assert off < max(2.5 * rival_off, 0.006)


def test_a_later_token_changes_nothing_before_it():
    tensors = [t.bfloat16() for t in inputs(1, 300, 4, 2, 16)]
    before = causal_attention(*tensors, 0.25)
    for t in tensors:
        t[:, 200:] += 1
    after = causal_attention(*tensors, 0.25)
    torch.testing.assert_close(after[:, :200], before[:, :200], atol=0, rtol=0)
    assert not torch.equal(after[:, 200:], before[:, 200:])


def test_packed_rows_take_it_only_where_rounding_is_allowed():
    answers = [tuple(range(10, 320)), tuple(range(400, 690))]
    ((pack, _),) = pack_whole([((1, 2, 3), answers)], token_budget=10_000)
    rows = sum(len(t.tokens) for t in pack.trees)
    query, key, value = (torch.randn(1, heads, rows, 16, dtype=torch.bfloat16) for heads in (4, 2, 2))
    result = {}
    for is_exact in (True, False):
        attention = layout(pack.trees, pack.starts, Prefix(), torch.device("cpu"), exact=is_exact)
        result[is_exact] = attention.attend(query, key, value, layer=0, scale=0.25, window=None, dropout=0.0)
    assert result[True].shape == result[False].shape == (1, rows, 4, 16)
    torch.testing.assert_close(result[False].float(), result[True].float(), atol=0.03, rtol=0.03)
    assert not torch.equal(result[False], result[True])  # another kernel
