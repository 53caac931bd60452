"""Words of texts with and without spaces between them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conviction.core.segmentation import first_words, unspaced, word_count, words


@pytest.mark.parametrize(
    ("text", "expected", "count"),
    [
        ("It's a 2nd tea-time.", ["it's", "a", "2nd", "tea", "time"], 4),
        ("天空为什么是蓝的？", list("天空为什么是蓝的"), 4),
        ("お茶はTOKYOで", ["お", "茶", "は", "tokyo", "で"], 4),
        ("น้ำชา", ["น้", "้ำ", "ำช", "ชา"], 2),
        ("차는 맛있다", ["차는", "맛있다"], 2),  # Korean has spaces
        ("", [], 0),
    ],
)
def test_words(text, expected, count):
    assert (words(text), word_count(text)) == (expected, count)


def test_first_words():
    assert first_words("Yes, I  do.", 2) == "Yes, I"
    assert first_words("当然可以，很高兴。", 2) == "当然可以"
    assert first_words(" ", 2) == ""


@given(st.text(max_size=60))
def test_words_of_any_text(text):
    assert all(words(text))
    assert word_count(text) >= 0
    if not unspaced(text):
        assert word_count(text) == len(text.split())
