"""Conversations to token ids: the one place where chat templates are applied.

The template is rendered to text and encoded with ``add_special_tokens=False``
(it brings its own BOS); the answer is encoded by itself and concatenated. A
template ends in a special token or a newline, so this is what the model sees
when it generates; where joint encoding would differ, it is counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError

from conviction.core.protocols import Message, Query
from conviction.errors import InputError

# Llama-3 templates print today's date; a measurement must not change overnight.
# This is the date their own template falls back to.
PINNED_DATE = "26 Jul 2024"

_MARK = "~end-of-answer~"


@dataclass(frozen=True)
class PromptEncoder:
    """Renders and encodes for one tokenizer. ``context_length`` None: unlimited."""

    tokenizer: Any
    context_length: int | None

    @property
    def template(self) -> str:
        """The chat template's source, or the name of the plain format used without one."""
        return str(self.tokenizer.chat_template or "plain: Question/Answer")

    def render(self, messages: Sequence[Message]) -> str:
        """The text after which the model's answer begins."""
        if not self.tokenizer.chat_template:
            return _render_plain(messages)
        turns = [{"role": m.role, "content": m.content} for m in messages]
        try:
            text = self._apply(turns)
        except TemplateError:
            # Some templates (Gemma) know no system role: it moves into the user turn.
            text = self._apply_merged(messages)
        if text.rstrip().endswith("<think>"):  # a thinking template: score right after an empty thought
            text = text.rstrip() + "\n\n</think>\n\n"
        return text

    def _apply_merged(self, messages: Sequence[Message]) -> str:
        try:
            return self._apply(_merge_system(messages))
        except TemplateError as error:
            raise InputError(
                f"the model's chat template refuses a conversation ({error}): {messages[-1].content[:60]!r}",
                hint="let user and assistant take turns, the user first, or leave the conversation out",
            ) from error

    def _apply(self, turns: list[dict[str, str]]) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True, enable_thinking=False, date_string=PINNED_DATE
            )
        )

    def encode_prompt(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Ids of the rendered conversation; at least one."""
        text = self.render(messages)
        ids = self._ids(text)
        if not self.tokenizer.chat_template:
            ids = self.bos() + ids
        return ids

    def encode_answer(self, answer: str, messages: Sequence[Message]) -> tuple[int, ...]:
        """Ids of an answer as it stands after the prompt."""
        if not answer.strip():
            raise InputError(
                f"an answer to {messages[-1].content[:60]!r} is empty",
                hint="give every answer at least one visible character",
            )
        return self._ids(self._lead() + answer)

    def encode_ending(self, answer: str, messages: Sequence[Message]) -> tuple[int, ...]:
        """Ids that end the model's turn after ``answer``: what it must learn to write in order to stop.

        From the template, up to and including its first special token; without a template the end-of-text token.
        """
        eos = self.tokenizer.eos_token_id
        plain = () if eos is None else (int(eos),)
        if not self.tokenizer.chat_template:
            return plain
        # The mark, for an answer such as "end" may stand in the ending itself.
        last = {"role": "assistant", "content": answer + _MARK}
        try:
            try:
                text = self._closed([{"role": m.role, "content": m.content} for m in messages] + [last])
            except TemplateError:
                text = self._closed([*_merge_system(messages), last])
        except TemplateError:
            return plain
        _, result, rest = text.rpartition(_MARK)
        ids = self._ids(rest) if result else ()
        special = set(self.tokenizer.all_special_ids)
        stop = next((i for i, token in enumerate(ids) if token in special), None)
        return plain if stop is None else ids[: stop + 1]

    def _closed(self, turns: list[dict[str, str]]) -> str:
        return str(self.tokenizer.apply_chat_template(turns, tokenize=False, date_string=PINNED_DATE))

    def joint_encoding_differs(self, messages: Sequence[Message], answer: str) -> bool:
        """Whether encoding prompt and answer together would give other ids."""
        text = self.render(messages)
        return self._ids(text + self._lead() + answer) != self._ids(text) + self._ids(self._lead() + answer)

    def encode_text(self, text: str) -> tuple[int, ...]:
        """Ids of a plain text, after BOS where the tokenizer has one."""
        return self.bos() + self._ids(text)

    def encode_continuation(self, text: str) -> tuple[int, ...]:
        """Ids of what follows a plain text after one space."""
        return self._ids(" " + text)

    def bos(self) -> tuple[int, ...]:
        """The beginning-of-text id that this tokenizer puts before a plain text, if any."""
        ids = self.tokenizer("a").input_ids
        bos = self.tokenizer.bos_token_id
        return (int(bos),) if bos is not None and ids and ids[0] == bos else ()

    def check_length(self, prompt: Sequence[int], answer: Sequence[int], name: str) -> None:
        """Raise if prompt and answer do not fit in the model's context; ``name`` is what the user knows them by."""
        total = len(prompt) + len(answer)
        if self.context_length is not None and total > self.context_length:
            raise InputError(
                f"{len(prompt)} prompt + {len(answer)} answer tokens exceed the model's context of "
                f"{self.context_length} ({name[:60]!r})",
                hint="shorten the answer or the context text, or use a model with a longer context",
            )

    def fits(self, query: Query, room: int) -> bool:
        """Whether the conversation and each of the answers, or ``room`` tokens, fit in the context."""
        prompt = len(self.encode_prompt(query.messages))
        longest = max([room, *(len(self.encode_answer(answer, query.messages)) for answer in query.answers)])
        return self.context_length is None or prompt + longest <= self.context_length

    def _lead(self) -> str:
        """Without a template the prompt ends in 'Answer:' and the space belongs to the answer."""
        return "" if self.tokenizer.chat_template else " "

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=False).input_ids)


def _merge_system(messages: Sequence[Message]) -> list[dict[str, str]]:
    system = "\n\n".join(m.content for m in messages if m.role == "system")
    turns = [{"role": m.role, "content": m.content} for m in messages if m.role != "system"]
    if system and turns:
        turns[0] = {**turns[0], "content": f"{system}\n\n{turns[0]['content']}"}
    return turns


def _render_plain(messages: Sequence[Message]) -> str:
    """A format for models that have no chat template."""
    names = {"system": "", "user": "Question: ", "assistant": "Answer: "}
    return "".join(f"{names[m.role]}{m.content}\n\n" for m in messages).rstrip("\n") + "\nAnswer:"
