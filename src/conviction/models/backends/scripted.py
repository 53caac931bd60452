"""A model that says what it is told: for tests of code that asks models, and for teaching.

From Python it takes two functions. From the command line it takes a JSON file::

    conviction probe obesity --backend scripted --model script.json

    {"likes": {"calories": -1.2, "insulin": -1.5}, "otherwise": -2.0, "writes": {"Why": "Because."}}

likes      the first of these phrases that an answer contains → its mean log-prob per token, nats
otherwise  of answers that contain none of them (-1 if left out)
writes     the first of these phrases that the last turn contains → what is answered; else that turn itself

Tokens are words. A conversation is rendered as JSON, so that a script sees turns and not ids.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import xxhash
from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError

from conviction.core.protocols import Message, Progress
from conviction.core.storage import user_path
from conviction.errors import ModelError, ModelNotFoundError
from conviction.models.engine.packing import Ids
from conviction.models.engine.protocol import Continuation, Row, Scores
from conviction.models.language_model import EngineModel

Conversation = tuple[Message, ...]
Likes = Callable[[Conversation, str], float]
Writes = Callable[[Conversation], str]

_TOKEN = re.compile(r"\S+\s*|\s+")  # a word with what follows it, so that tokens joined are the text again
_BEGIN = "<|conversation|>"


@dataclass
class WordTokenizer:
    """Words as tokens, as far as ``PromptEncoder`` needs a tokenizer. An id is a hash of its token."""

    chat_template: str = "turns as JSON"
    bos_token_id: None = None
    eos_token_id: None = None
    all_special_ids: tuple[int, ...] = ()
    _tokens: dict[int, str] = field(default_factory=dict)

    def __call__(self, text: str, *, add_special_tokens: bool = True) -> SimpleNamespace:
        """``input_ids`` of a text."""
        del add_special_tokens
        tokens = _TOKEN.findall(text)
        ids = [xxhash.xxh3_64_intdigest(token.encode(errors="surrogatepass")) >> 1 for token in tokens]
        self._tokens.update(zip(ids, tokens, strict=True))
        return SimpleNamespace(input_ids=ids)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text again."""
        del skip_special_tokens
        return "".join(self._tokens[i] for i in ids)

    def apply_chat_template(self, turns: Sequence[dict[str, str]], **_options: Any) -> str:
        """One line."""
        return f"{_BEGIN}{json.dumps([[t['role'], t['content']] for t in turns])}\n"


@dataclass(frozen=True)
class ScriptedEngine:
    """An ``Engine`` without weights.

    likes   (conversation, answer) → mean log-prob per token, in nats; a plain text is an answer to ()
    writes  conversation → greedy answer
    """

    likes: Likes
    writes: Writes
    tokenizer: WordTokenizer = field(default_factory=WordTokenizer)
    architecture: str = "scripted"
    dtype: str = "float64"
    context_length: None = None
    trainable: bool = False
    hidden_states: bool = False
    cacheable: bool = False  # its functions may say anything

    def score(self, rows: Sequence[Row]) -> Iterator[Scores]:
        """Every word of an answer gets the same log-prob."""
        for prompt, answer in rows:
            conversation, text = self._read(prompt, answer)
            yield {(prompt, answer): [self.likes(conversation, text)] * len(answer)}

    def generate(
        self, prompts: Sequence[Ids], max_new_tokens: int, *, seed: int | None = None, progress: Progress | None = None
    ) -> list[Continuation]:
        """The scripted texts, cut to ``max_new_tokens`` words, whatever the ``seed``."""
        del seed
        written = []
        for prompt in prompts:
            conversation, _ = self._read(prompt, ())
            ids = tuple(self.tokenizer(" ".join(self.writes(conversation).split())).input_ids)
            cut = tuple(self.tokenizer(self.tokenizer.decode(ids[:max_new_tokens]).rstrip()).input_ids)
            written.append(Continuation(cut, ended=len(ids) <= max_new_tokens))
        if progress is not None:
            progress(len(written), len(prompts))
        return written

    def scope(self) -> tuple[str, ...]:
        """It has no content that could be hashed."""
        return (self.architecture,)

    def describe(self) -> dict[str, Any]:
        """It has no weights to speak of."""
        return {"architecture": self.architecture}

    def _read(self, prompt: Ids, answer: Ids) -> tuple[Conversation, str]:
        """Turns and answer; no turns where the prompt is a plain text that the answer goes on."""
        before, after = self.tokenizer.decode(prompt), self.tokenizer.decode(answer)
        if not before.startswith(_BEGIN):
            return (), before + after
        return tuple(Message(role, content) for role, content in json.loads(before.removeprefix(_BEGIN))), after


class ScriptedModel(EngineModel):
    """A ``LanguageModel`` out of two functions, as ``ScriptedEngine`` takes them."""

    def __init__(
        self,
        *,
        id: str = "scripted",
        likes: Likes = lambda _conversation, _answer: -1.0,
        writes: Writes = lambda conversation: conversation[-1].content,
    ) -> None:
        super().__init__(id=id, engine=ScriptedEngine(likes, writes))


class Script(BaseModel):
    """What a script's file may hold."""

    model_config = ConfigDict(extra="forbid")

    likes: dict[str, FiniteFloat]
    otherwise: FiniteFloat = -1.0
    writes: dict[str, str] = {}

    def engine(self) -> ScriptedEngine:
        """What it describes."""

        def likes(_conversation: Conversation, answer: str) -> float:
            return next((value for phrase, value in self.likes.items() if phrase in answer), self.otherwise)

        def writes(conversation: Conversation) -> str:
            asked = conversation[-1].content
            return next((text for phrase, text in self.writes.items() if phrase in asked), asked)

        return ScriptedEngine(likes, writes)


def load(name: str, *, device: str, dtype: str, trust_remote_code: bool, log: Callable[[str], None]) -> ScriptedEngine:
    """An engine from the path of a script; device and dtype mean nothing to it.

    Raises ModelNotFoundError if there is no such file, ModelError for one that is no script.
    """
    del device, dtype, trust_remote_code, log
    hint = 'give --model a JSON file: {"likes": {"a phrase of an answer": -1.2}, "otherwise": -2.0}'
    path = user_path(name)
    if not os.path.isfile(path):
        raise ModelNotFoundError(f"there is no script '{name}'", hint=hint)
    try:
        return Script.model_validate_json(path.read_text(encoding="utf-8")).engine()
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ModelError(f"{path} is no script: {where + ': ' if where else ''}{first['msg']}", hint=hint) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} cannot be read ({error})", hint=hint) from error
