"""Words of texts in all scripts: Chinese, Japanese, Thai and their like put no spaces between them.

Pure functions of a text. In scripts with spaces a word is what stands between them; in the others single
characters (Han, kana) or overlapping pairs of characters (Thai, Lao, Khmer, Burmese) stand for words.
"""

from __future__ import annotations

import re

__all__ = ["first_words", "unspaced", "word_count", "words"]

_HAN = (
    "\u3005-\u3007\u3041-\u3096\u309d-\u309f\u30a1-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
)
_THAI = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
_UNSPACED = re.compile(f"[{_HAN}{_THAI}]")
_TOKEN = re.compile(f"[{_HAN}]|[{_THAI}]+|(?:(?![{_HAN}{_THAI}])[^\\W_])+(?:['’](?:(?![{_HAN}{_THAI}])[^\\W_])+)?")
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")
_RUN = re.compile(f"[{_HAN}]+|[{_THAI}]+")
_PER_WORD = {True: 2, False: 4}  # characters of a word, on average, in Han and kana, and in the others


def unspaced(text: str) -> bool:
    """Whether it holds a script that puts no spaces between words."""
    return not text.isascii() and _UNSPACED.search(text) is not None


def words(text: str) -> list[str]:
    """Words in lower case, without punctuation; in scripts without spaces characters, or pairs of them."""
    if not unspaced(text):
        return _WORD.findall(text.lower())
    return [part for token in _TOKEN.findall(text.lower()) for part in _parts(token)]


def word_count(text: str) -> int:
    """How many words there are: parts between spaces; two Han or kana characters, or four Thai ones, are one."""
    if not unspaced(text):
        return len(text.split())
    runs = sum(-(-len(run) // _PER_WORD[_is_han(run)]) for run in _RUN.findall(text))
    return runs + sum(any(map(str.isalnum, part)) for part in _RUN.sub(" ", text).split())


def first_words(text: str, count: int) -> str:
    """The first words as they are written; of an unspaced text as many characters as make so many words."""
    parts = text.split()[:count]
    if not parts or not unspaced(parts[0]):
        return " ".join(parts)
    return parts[0][: count * _PER_WORD[_is_han(parts[0])]]


def _is_han(text: str) -> bool:
    return re.match(f"[^{_THAI}]", text) is not None


def _parts(token: str) -> list[str]:
    if re.match(f"[{_THAI}]", token) is None or len(token) == 1:
        return [token]
    return [token[i : i + 2] for i in range(len(token) - 1)]
