"""Degeneration measures: hand-worked values, and collapse told from prose."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conviction import Generation
from conviction.probing.health import (
    compression_ratio,
    degeneration,
    neutral_text,
    ngram_entropy,
    non_alphanumeric_share,
    repeated_ngram_rate,
)


def test_repeated_4grams():
    assert repeated_ngram_rate([1, 2, 3, 4, 5, 6]) == 0
    assert repeated_ngram_rate([1] * 10) == pytest.approx(1 - 1 / 7)
    assert repeated_ngram_rate([1, 2, 3]) == 0


def test_ngram_entropy_is_romes_ge():
    # 8 distinct tokens: 7 bigrams and 6 trigrams, all different
    assert ngram_entropy(list(range(8))) == pytest.approx(0.5 * (2 / 3 * math.log2(7) + 4 / 3 * math.log2(6)))
    assert ngram_entropy([3] * 20) == 0


def test_dots_and_dashes_are_told_from_prose():
    prose = neutral_text()[0]
    assert non_alphanumeric_share(". - . - ...") == 1
    assert non_alphanumeric_share(prose) < 0.06
    assert compression_ratio("- . " * 100) > 10
    assert compression_ratio(prose) < 3


@given(st.lists(st.integers(0, 50), max_size=60), st.text(max_size=80))
def test_measures_stay_in_their_ranges(tokens, text):
    assert 0 <= repeated_ngram_rate(tokens) < 1
    assert ngram_entropy(tokens) >= 0
    assert 0 <= non_alphanumeric_share(text) <= 1
    assert compression_ratio(text) > 0


def test_a_batch_is_averaged_over_answers():
    result = degeneration([Generation("a b", (1, 2), ended=True), Generation("- -", (3, 3), ended=False)])
    assert result.non_alphanumeric_share == 0.5
    assert result.end_of_text_rate == 0.5
    assert degeneration([Generation("", (), ended=True)]).end_of_text_rate == 1
