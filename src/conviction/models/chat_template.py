"""What a chat template does with a conversation, found by rendering it and not from names of tokens or models."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from jinja2.exceptions import TemplateError

from conviction.core.protocols import Message
from conviction.core.wording import printable
from conviction.errors import InputError, ModelError
from conviction.models.sandbox import LimitExceeded, TaskFailed, render

__all__ = ["PINNED_DATE", "ChatTemplate"]

Turns = list[dict[str, str]]

_PINNED = datetime(2024, 7, 26, tzinfo=UTC)
PINNED_DATE = f"{_PINNED:%d %b %Y}"
"""A measurement must not change overnight. This is the date that Llama 3's template falls back to."""

# Names under which templates expect the date as text. A template that calls methods of one gets none, and says so.
_DATE_VARIABLES = ("date_string", "date", "datetime", "current_date", "current_datetime", "today")

# transformers gives templates a clock, `strftime_now`; a macro of the same name, before the template, takes its place.
_CODES = {f"%{code}": _PINNED.strftime(f"%{code}") for code in "aAbBcdDeFGHIjmMpRSTuUVwWxXyYZzf"}
_CODES |= {f"%-{code}": _CODES[f"%{code}"].lstrip("0") or "0" for code in "dHIjmMSy"} | {"%%": "%"}
_CLOCK = (
    "{% macro strftime_now(format) %}{{ format"
    + "".join(f" | replace({code!r}, {value!r})" for code, value in _CODES.items())
    + " }}{% endmacro %}\n"  # templates are read without the line break after a block
)

_MARK, _NEXT = "~an-answer-stands-here~", "~a-question-stands-here~"

_TAG = r"([<\[])(think|thinking|THINK|seed:think)([>\]])"
_THOUGHT = re.compile(rf"\s*{_TAG}")
_THOUGHT_END = re.compile(_TAG.replace("(think", "/(think", 1))
_OPEN = re.compile(rf"{_TAG}\s*\Z")
_EMPTY = re.compile(rf"{_TAG}\s*(?:\1/\2\3\s*)?\Z")


@dataclass(frozen=True)
class ChatTemplate:
    """The chat template of a tokenizer that has one."""

    tokenizer: Any

    @property
    def source(self) -> str:
        """Jinja; of several templates the default one."""
        own = self.tokenizer.chat_template
        return str(own.get("default") or next(iter(own.values())) if isinstance(own, dict) else own)

    def opening(self, messages: Sequence[Message]) -> str:
        """The text up to where an answer begins: after the channel's name or an empty thought, if there is one.

        It is the beginning of the closed conversation where that goes on from the generation prompt,
        else the generation prompt. Raises InputError for a conversation that the template refuses.
        """
        turns, asked = self._read(messages)
        before, _ = self._closed(turns)
        text = before if before.startswith(asked) else asked
        tag = _OPEN.search(text)
        return f"{text.rstrip()}\n\n{tag[1]}/{tag[2]}{tag[3]}\n\n" if tag else text

    def beginnings(self, messages: Sequence[Message], answers: Sequence[str]) -> tuple[str, list[str]]:
        """``opening`` for each answer, and what all have in common.

        An answer that brings its own thought is put after no other thought.
        """
        opening = self.opening(messages)
        empty = _EMPTY.search(opening)
        bare = opening[: empty.start()] if empty else opening
        thinking = f"{bare}{empty[1]}{empty[2]}{empty[3]}\n" if empty else opening

        def beginning(answer: str) -> str:
            if _THOUGHT.match(answer):
                return bare
            return thinking if _THOUGHT_END.search(answer) and not re.search(_TAG, answer) else opening

        each = [beginning(answer) for answer in answers]
        return each[0] if len(set(each)) == 1 else bare, each

    def endings(self, messages: Sequence[Message]) -> tuple[str, str]:
        """What stands after an answer that closes the conversation, and between one and the next user's text."""
        turns, _ = self._read(messages)
        _, between = self._closed(turns, {"role": "user", "content": _NEXT})
        return self._closed(turns)[1], between.partition(_NEXT)[0] if _NEXT in between else ""

    def keeps_system(self, messages: Sequence[Message]) -> bool:
        """Whether a system turn stays one. Raises InputError for a conversation that the template refuses."""
        return any(turn["role"] == "system" for turn in self._read(messages)[0])

    def _read(self, messages: Sequence[Message]) -> tuple[Turns, str]:
        """The turns that the template is given, and the generation prompt after them.

        A system text that the template refuses, or that changes nothing in what it prints, begins the first user turn.
        """
        marked = [Message(m.role, f"{m.content}{_MARK}") if m.role == "system" else m for m in messages]
        try:
            text = self._render(_as_turns(messages), generation=True)
            if marked == list(messages) or self._render(_as_turns(marked), generation=True) != text:
                self._check_last(messages, text)
                return _as_turns(messages), text
        except TemplateError:
            pass
        try:
            merged = _merge_system(messages)
            text = self._render(merged, generation=True)
            shown = self._render(_merge_system(marked), generation=True) != text
        except (TemplateError, StopIteration) as error:
            raise InputError(
                f"the model's chat template refuses a conversation ({error}): {messages[-1].content[:60]!r}",
                hint="let user and assistant take turns, the user first, or leave the conversation out",
            ) from error
        if not shown:
            raise InputError(
                f"the model's chat template drops system turn and first user turn: {messages[-1].content[:60]!r}",
                hint="use another chat template, or leave the system text out",
            )
        return merged, text

    def _check_last(self, messages: Sequence[Message], text: str) -> None:
        """Raise InputError if ``text`` is rendered without the last turn."""
        *before, last = messages
        if last.content.strip() in text:
            return
        marked = Message(last.role, f"{last.content}{_MARK}")
        if self._render(_as_turns([*before, marked]), generation=True) == text:
            raise InputError(
                f"the model's chat template drops the last turn: {last.content[:60]!r}",
                hint="use a chat template that takes texts: this one may want lists of parts, as for images",
            )

    def _closed(self, turns: Turns, *more: dict[str, str]) -> tuple[str, str]:
        """What the template writes before and after an answer; ('', '') where it shows none."""
        try:
            text = self._render([*turns, {"role": "assistant", "content": _MARK}, *more], generation=False)
        except TemplateError:
            return "", ""
        before, mark, after = text.rpartition(_MARK)
        return (before, after) if mark else ("", "")

    def _render(self, turns: Turns, *, generation: bool) -> str:
        """The template's text. Raises TemplateError where it fails in any way, ModelError where it has no end."""
        source = self.source
        dates = {name: PINNED_DATE for name in _DATE_VARIABLES if f"{name}." not in source}
        options = {"add_generation_prompt": generation, "enable_thinking": False, **dates}
        source = _CLOCK + source if "strftime_now" in source else source
        if not self._is_jinja:
            return str(self.tokenizer.apply_chat_template(turns, chat_template=source, tokenize=False, **options))
        special = {name: str(token) for name, token in self.tokenizer.special_tokens_map.items()}
        try:
            return render(source, {**special, "messages": turns, "tools": None, "documents": None, **options})
        except TaskFailed as error:
            raise TemplateError(printable(error)) from error
        except LimitExceeded as error:
            raise ModelError(
                f"the chat template of {printable(getattr(self.tokenizer, 'name_or_path', '')) or 'the model'} "
                f"does not come to an end: {error}",
                hint="use another chat template: the tokenizer's chat_template.jinja or tokenizer_config.json holds it",
            ) from error

    @property
    def _is_jinja(self) -> bool:
        """Whether the tokenizer renders templates as all of transformers' do, and not in a way of its own."""
        rendering = getattr(type(self.tokenizer), "apply_chat_template", None)
        return getattr(rendering, "__module__", None) == "transformers.tokenization_utils_base"


def _as_turns(messages: Sequence[Message]) -> Turns:
    return [{"role": m.role, "content": m.content} for m in messages]


def _merge_system(messages: Sequence[Message]) -> Turns:
    """Without system turns: their text begins the first user turn. Raises StopIteration if there is none."""
    system = "\n\n".join(m.content for m in messages if m.role == "system")
    turns = _as_turns([m for m in messages if m.role != "system"])
    if system:
        first = next(turn for turn in turns if turn["role"] == "user")
        first["content"] = f"{system}\n\n{first['content']}"
    return turns
