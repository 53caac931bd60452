"""Conversations to token ids: the one place where chat templates are applied.

The template is rendered to text and encoded with ``add_special_tokens=False``
(it brings its own BOS); the answer is encoded by itself and concatenated. A
template ends in a special token or a newline, so this is what the model sees
when it generates; a space before the answer belongs to the answer. Where joint
encoding would differ, it is counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from conviction.core.protocols import Message, Query, chat
from conviction.errors import InputError, ModelError
from conviction.models.chat_template import ChatTemplate

Ids = tuple[int, ...]


@dataclass(frozen=True)
class PromptEncoder:
    """Renders and encodes for one tokenizer. ``context_length`` None: unlimited."""

    tokenizer: Any
    context_length: int | None

    @property
    def template(self) -> str:
        """The chat template's source, or the name of the plain format used without one."""
        return str(self.tokenizer.chat_template or "plain: Question/Answer")

    @property
    def system_turn(self) -> str | None:
        """What becomes of system turns, where the template gives them no turn of their own; None: it does."""
        try:
            alone = self._chat is None or self._chat.keeps_system(chat("?", system="?"))
        except InputError:
            return "this chat template takes no system text: conversations with a system turn are refused"
        note = "this chat template ignores or refuses the system role: system texts begin the first user turn"
        return None if alone else note

    def render(self, messages: Sequence[Message]) -> str:
        """The text after which the model's answer begins."""
        return self._lay(messages, ())[0]

    def encode_prompt(self, messages: Sequence[Message]) -> Ids:
        """Ids of the rendered conversation; at least one."""
        return self.encode(messages, ())[0]

    def encode(self, messages: Sequence[Message], answers: Sequence[str]) -> tuple[Ids, tuple[Ids, ...]]:
        """Ids of a conversation, and of each answer as it stands after it. Raises InputError for an empty one.

        An answer that brings a thought (``<think>``) takes the place of the template's empty one; beside such an
        answer, the empty thought of another is part of that answer.
        """
        if not all(answer.strip() for answer in answers):
            raise InputError(
                f"an answer to {messages[-1].content[:60]!r} is empty",
                hint="give every answer at least one visible character",
            )
        text, written = self._lay(messages, answers)
        prompt = self._ids(text) if self._chat is not None else self.encode_text(text)
        ids = tuple(self._after(text, answer) for answer in written[: len(answers)])
        if not prompt or not all(ids):
            raise ModelError(
                f"the tokenizer has no tokens for {messages[-1].content[:60]!r} or an answer to it",
                hint="it is damaged, or not that of the model: get a complete copy",
            )
        return prompt, ids

    def encode_ending(self, messages: Sequence[Message]) -> Ids:
        """Ids that end the model's turn: what it must learn to write in order to stop, and is stopped by.

        What the template writes after an answer, up to and including the first special tokens (or, without any,
        added ones) that stand there in the middle of a conversation, too; if it closes no conversation, the one that
        stands between this turn and the next; else the end-of-text token.
        """
        eos = self.tokenizer.eos_token_id
        plain = () if eos is None else (int(eos),)
        if self._chat is None:
            return plain
        closing, between = (self._after(".", text) for text in self._chat.endings(messages))
        for marks in self._marks():
            for ids in (closing, between):
                stop = next((i for i, token in enumerate(ids, 1) if token in marks), 0)
                while (
                    stop
                    and stop < len(closing)
                    and closing[stop] in marks
                    and closing[: stop + 1] == between[: stop + 1]
                ):
                    stop += 1
                if stop and ids[stop - 1] != self.tokenizer.bos_token_id:
                    return ids[:stop]
        return plain

    def stop_ids(self) -> frozenset[int]:
        """Tokens that the model's turn ends with: the template's, and the end of text."""
        try:
            ending = self.encode_ending(chat("?"))
        except InputError:  # a template that takes no such conversation
            ending = ()
        eos = self.tokenizer.eos_token_id
        ends = set(ending).intersection(set().union(*self._marks()))
        return frozenset(ends if eos is None else {*ends, int(eos)})

    def _marks(self) -> tuple[set[int], set[int]]:
        """Tokens that are no text: special ones, also where they have no name, and added ones that can be seen."""
        added = getattr(self.tokenizer, "added_tokens_decoder", {})
        special = {*self.tokenizer.all_special_ids, *(i for i, token in added.items() if token.special)}
        return special, {i for i, token in added.items() if token.content.strip()}

    def joint_mismatches(self, query: Query) -> int:
        """Answers of which encoding prompt and answer together would give other ids."""
        text, written = self._lay(query.messages, query.answers)
        prompt = self._ids(text)
        return sum(self._ids(text + answer) != prompt + self._after(text, answer) for answer in written)

    def encode_text(self, text: str) -> Ids:
        """Ids of a plain text, after BOS where the tokenizer has one."""
        return self.bos() + self._ids(text)

    def encode_continuation(self, text: str) -> Ids:
        """Ids of what follows a plain text after one space."""
        return self._ids(text if self._adds_space else f" {text}")

    def bos(self) -> Ids:
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
        prompt, answers = self.encode(query.messages, query.answers)
        return self.context_length is None or len(prompt) + max([room, *map(len, answers)]) <= self.context_length

    @property
    def _chat(self) -> ChatTemplate | None:
        return ChatTemplate(self.tokenizer) if self.tokenizer.chat_template else None

    @cached_property
    def _adds_space(self) -> bool:
        """Whether the tokenizer puts a space before every text, as if a word began there (Llama 2, Mistral)."""
        return self._ids("\na") != self._ids("\n") + self._ids("a")

    def _lay(self, messages: Sequence[Message], answers: Sequence[str]) -> tuple[str, list[str]]:
        """The prompt that all answers have in common, and what stands after it, with each answer."""
        answers = answers or ("",)
        if self._chat is None:
            prompt, begins = _render_plain(messages), [f"{_render_plain(messages)} "] * len(answers)
        else:
            prompt, begins = self._chat.beginnings(messages, answers)
        prompt = prompt.rstrip(" ")
        return prompt, [f"{begin}{answer}"[len(prompt) :] for begin, answer in zip(begins, answers, strict=True)]

    def _after(self, before: str, text: str) -> Ids:
        """Ids of a text that goes on from another, without a space that the tokenizer would put before it."""
        if self._adds_space:
            joint, own = self._ids(before + text), self._ids(before)
            if joint[: len(own)] == own:
                return joint[len(own) :]
        return self._ids(text)

    def _ids(self, text: str) -> Ids:
        return tuple(self.tokenizer(text, add_special_tokens=False).input_ids)


def _render_plain(messages: Sequence[Message]) -> str:
    """A format for models that have no chat template."""
    names = {"system": "", "user": "Question: ", "assistant": "Answer: "}
    return "".join(f"{names[m.role]}{m.content}\n\n" for m in messages).rstrip("\n") + "\nAnswer:"
