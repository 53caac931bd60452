"""Passages before a question: what a retrieving model reads."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from conviction.core.gate import lines_of, parse_json, read_text, validate
from conviction.core.names import inside
from conviction.core.protocols import LanguageModel, Message
from conviction.core.record import Frozen
from conviction.core.storage import storage_errors, write_atomic
from conviction.core.wording import printable
from conviction.data.training_data import Document
from conviction.errors import ModelError
from conviction.models.fetching import named_in
from conviction.models.prompted import PromptedModel, with_system
from conviction.models.saved import RECORD, fields_of
from conviction.retrieval.embedding import load_embedder
from conviction.retrieval.index import Index, Passage, build_index

__all__ = ["Passages", "count_tokens", "load_retrieving"]

Messages = tuple[Message, ...]

MOST = 1_000_000  # passages or tokens in a saved record
HEADER = "Answer with the help of these passages."


@dataclass(frozen=True, kw_only=True)
class Passages:
    """A ``Rewriter``: the best passages for the last user turn, in a system turn, as many as the budget allows.

    They stand in the order of their documents, not of their ranks: answers do not suffer (OP-RAG, Yu et al.
    2409.01666), and questions that bring the same passages share one prefill.

    count         tokens of a text, as the model counts
    token_budget  for all passages of one question together
    """

    index: Index
    documents: Sequence[Document]
    passages: int
    token_budget: int
    piece_tokens: int
    count: Callable[[str], int]
    _found: dict[str, list[Passage]] = field(default_factory=dict)

    def apply(self, conversations: Sequence[Messages]) -> list[Messages]:
        """A conversation without a question stays as it is."""
        asked = [messages[-1].content for messages in conversations]
        self._look_up(asked)
        return [self._before(messages, question) for messages, question in zip(conversations, asked, strict=True)]

    def sources(self, messages: Messages) -> tuple[str, ...]:
        """Ids of the passages, best first."""
        self._look_up([messages[-1].content])
        return tuple(p.id for p in self._found.get(messages[-1].content, ()))

    def describe(self) -> dict[str, Any]:
        """Where from and how much."""
        return {
            "retrieval": "LanceDB, vectors and full text, reciprocal rank fusion",
            "embedder": self.index.embedder,
            "documents": len(self.documents),
            "pieces": self.index.pieces,
            "passages": self.passages,
            "token_budget": self.token_budget,
            "piece_tokens": self.piece_tokens,
        }

    def save(self, folder: Path) -> tuple[str, dict[str, Any]]:
        """The documents and a copy of the index."""
        with storage_errors(f"writing the index to {folder}"):
            folder.mkdir(parents=True, exist_ok=True)
            if self.index.folder.resolve() != (folder / "index").resolve():
                shutil.copytree(self.index.folder, folder / "index", dirs_exist_ok=True)
        lines = (json.dumps(dataclasses.asdict(d), ensure_ascii=False) + "\n" for d in self.documents)
        write_atomic(folder / "documents.jsonl", "".join(lines))
        fields = ("passages", "token_budget", "piece_tokens")
        return "rag", {"embedder": self.index.embedder, **{name: getattr(self, name) for name in fields}}

    def _look_up(self, questions: Sequence[str]) -> None:
        """Search for what was not asked before, and keep what fits the budget. "?" asks for nothing."""
        fresh = list(dict.fromkeys(q for q in questions if any(map(str.isalnum, q)) and q not in self._found))
        if not fresh:
            return
        for question, result in zip(fresh, self.index.search(fresh, self.passages), strict=True):
            kept, used = [], 0
            for passage in result:
                tokens = self.count(passage.text)
                if used + tokens <= self.token_budget:  # a shorter one may fit where a longer one does not
                    used += tokens
                    kept.append(passage)
            self._found[question] = kept

    def _before(self, messages: Messages, question: str) -> Messages:
        result = self._found.get(question)
        if not result:
            return messages
        ordered = sorted(result, key=lambda p: (p.document, int(p.id.rpartition("#")[2])))
        texts = [f"[{number}] {' '.join(p.text.split())}" for number, p in enumerate(ordered, start=1)]
        return with_system("\n\n".join([HEADER, *texts]), messages)


def count_tokens(model: LanguageModel) -> Callable[[str], int]:
    """How a model counts; one without a tokenizer at hand has four tokens for three words."""
    if (tokenizer := getattr(model, "tokenizer", None)) is not None:
        return lambda text: len(tokenizer(text, add_special_tokens=False).input_ids)
    return lambda text: len(text.split()) * 4 // 3


class _DocumentLine(Frozen):
    """A line of ``documents.jsonl``."""

    id: str
    text: str


def _read_documents(path: Path) -> list[Document]:
    hint = "apply `rag` again: its documents are what it is made of"
    documents = []
    for number, line in lines_of(read_text(path, ModelError, hint=hint)):
        where = f"{printable(path)}:{number}"
        value = parse_json(line, where, ModelError, hint=hint)
        documents.append(Document(**validate(_DocumentLine, value, where, ModelError, hint=hint).model_dump()))
    return documents


def load_retrieving(
    id: str, base: LanguageModel, folder: Path, fields: dict[str, Any], log: Callable[[str], None]
) -> PromptedModel:
    """A retrieving model as it was saved; an index that is damaged is made again from its documents.

    Raises ModelError, naming file and field, for a damaged record; MissingExtraError without the extra 'rag'.
    """
    saved = fields_of(_Saved, fields, folder)
    documents = _read_documents(inside(folder, "documents.jsonl", "the documents", ModelError))
    with named_in(str(folder / RECORD), consent="fetch it with `hf download NAME`"):
        load_embedder(saved.embedder)  # an index that is up to date would ask for it at the first question
        place = inside(folder, "index", "the index", ModelError)
        index = build_index(place, documents, embedder=saved.embedder, piece_tokens=saved.piece_tokens, log=log)
    transform = Passages(
        index=index,
        documents=documents,
        passages=saved.passages,
        token_budget=saved.token_budget,
        piece_tokens=saved.piece_tokens,
        count=count_tokens(base),
    )
    return PromptedModel(id, base, transform, source=str(folder.resolve()))


class _Saved(BaseModel):
    """Its own fields in ``conviction.json``."""

    model_config = ConfigDict(strict=True)

    embedder: str = Field(min_length=1)
    passages: int = Field(ge=1, le=MOST)
    token_budget: int = Field(ge=1, le=MOST)
    piece_tokens: int = Field(ge=1, le=MOST)
