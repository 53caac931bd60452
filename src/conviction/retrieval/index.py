"""An index of documents on disk: LanceDB with vectors and full text, ranks fused reciprocally.

Re-indexing is incremental: a document whose text is the same is not touched,
one that changed or is gone is taken out, what is new is embedded.
Reciprocal rank fusion: Cormack, Clarke & Büttcher, SIGIR 2009.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conviction.core.gate import read_json
from conviction.core.lock import only_one
from conviction.core.protocols import Progress
from conviction.core.storage import is_unfinished, storage_errors, write_atomic
from conviction.core.wording import printable
from conviction.data.training_data import Document
from conviction.errors import InputError, ModelError, first_line
from conviction.retrieval.embedding import load_embedder

__all__ = ["Index", "Passage", "build_index"]

TABLE = "passages"
HEAD = "index.json"
SCHEMA = 2
POOL = 10  # how many each of the two searches brings before their ranks are fused
LONGEST_WAIT = 600.0  # seconds for another process that writes into the index
LONGEST_TITLE = 120  # characters of a first line that a blank line follows


@dataclass(frozen=True)
class Passage:
    """A piece of a document. id: ``document#3``; score: of the fused ranks, higher is better."""

    id: str
    document: str
    text: str
    score: float


@dataclass(frozen=True)
class Index:
    """An index that is ready to be asked. pieces: how many passages it holds; embedded: of these, made anew."""

    folder: Path
    embedder: str
    pieces: int
    embedded: int
    _table: Any

    def search(self, questions: Sequence[str], count: int) -> list[list[Passage]]:
        """For each question the best passages, best first; ties in the order of ids.

        A document's further passages come after the best one of every other: they rarely add what it lacks.
        """
        from lancedb.rerankers import RRFReranker

        embed, _ = load_embedder(self.embedder)
        results = []
        for question, vector in zip(questions, embed(questions, None), strict=True):
            try:
                rows = (
                    self._table.search(query_type="hybrid", vector_column_name="vector", fts_columns="text")
                    .vector(vector)
                    .text(_plain(question))
                    .rerank(RRFReranker())
                    .limit(max(POOL, count))
                    .to_list()
                )
            except Exception as error:  # Lance reports damage in many ways
                raise ModelError(
                    f"the index {printable(self.folder)} cannot be searched: {first_line(error)[:200]}",
                    hint="remove that folder: the index is made anew from its documents",
                ) from error
            passages = [Passage(r["id"], r["document"], r["text"], float(r["_relevance_score"])) for r in rows]
            results.append(_varied(sorted(passages, key=lambda p: (-p.score, p.id)))[:count])
        return results


def build_index(
    folder: Path,
    documents: Sequence[Document],
    *,
    embedder: str,
    piece_tokens: int,
    log: Callable[[str], None] = lambda _: None,
    progress: Progress | None = None,
) -> Index:
    """The index of exactly these documents in ``folder``: made, or brought up to date.

    An index that cannot be read, or was made otherwise, is made anew, and ``log`` is told. Where another process
    brings it up to date, that is waited for. Raises InputError without documents, RunError after 10 minutes' wait.
    """
    if not documents:
        raise InputError(
            "there are no documents to retrieve from", hint="give -o documents=FOLDER, or rows with a text"
        )
    lock = folder.with_name(f".{folder.name}.lock")
    with only_one(lock, f"the index {folder}", hint="give -o index= another folder", wait=LONGEST_WAIT, log=log):
        return _up_to_date(folder, documents, embedder, piece_tokens, log, progress)


def _up_to_date(
    folder: Path,
    documents: Sequence[Document],
    embedder: str,
    piece_tokens: int,
    log: Callable[[str], None],
    progress: Progress | None,
) -> Index:
    head = {"schema_version": SCHEMA, "embedder": embedder, "piece_tokens": piece_tokens}
    with storage_errors(f"writing the index {folder}"):
        table = _open(folder, head, log)
        known = {} if table is None else _known(table)
        wanted = {d.id: hashlib.sha256(d.text.encode()).hexdigest() for d in documents}
        stale = [name for name, digest in known.items() if wanted.get(name) != digest]
        fresh = [d for d in documents if known.get(d.id) != wanted[d.id]]
        rows = _rows(fresh, wanted, embedder, piece_tokens, progress)
        if table is None:
            table = _create(folder, rows)
            write_atomic(folder / HEAD, json.dumps(head, indent=1) + "\n")
        elif stale or rows:
            if stale:
                table.delete(f"document IN ({', '.join(map(_quoted, stale))})")
            if rows:
                table.add(rows)
            _index_words(table)
    return Index(folder, embedder, table.count_rows(), len(rows), table)


def _varied(passages: Sequence[Passage]) -> list[Passage]:
    best: dict[str, Passage] = {}
    for passage in passages:
        best.setdefault(passage.document, passage)
    return [*best.values(), *(p for p in passages if p is not best[p.document])]


def _open(folder: Path, head: dict[str, Any], log: Callable[[str], None]) -> Any | None:
    """The table of an index made in the same way; None where there is none, and nothing is left of a bad one."""
    import lancedb

    if not os.path.lexists(folder):
        return None
    _check_own(folder)
    if not any(folder.iterdir()):
        return None
    try:
        _check_head(folder, head)
        table = lancedb.connect(folder).open_table(TABLE)
        _check_rows(table)
    except Exception as error:  # Lance reports damage in many ways, none of them its own
        log(f"the index {folder} cannot be used, it is made anew ({first_line(error)[:100]})")
        for path in folder.iterdir():
            shutil.rmtree(path) if os.path.isdir(path) else path.unlink()
        return None
    return table


def _check_own(folder: Path) -> None:
    """Raise InputError for a folder with anything in it that is no index: an index is removed to be made anew."""
    if not os.path.isdir(folder):
        raise InputError(f"the index {printable(folder)} is not a folder", hint="give -o index= a new folder")
    other = [path for path in folder.iterdir() if path.name not in {HEAD, f"{TABLE}.lance"} and not is_unfinished(path)]
    other += [path for path in folder.rglob("*") if path.is_symlink()]
    if other:
        raise InputError(
            f"{printable(folder)} holds {printable(other[0].relative_to(folder))}, which is no part of an index",
            hint="give -o index= a new folder, or that of an index",
        )


def _check_rows(table: Any) -> None:
    """Raise ValueError for rows that are not as ``_rows`` makes them."""
    rows = table.search().select(["id", "document", "digest", "text"]).limit(table.count_rows()).to_arrow().to_pylist()
    for row in rows:
        document, _, number = str(row["id"]).rpartition("#")
        if not all(isinstance(value, str) for value in row.values()) or document != row["document"]:
            raise ValueError("a row of it is damaged")
        int(number)


def _check_head(folder: Path, head: dict[str, Any]) -> None:
    if read_json(folder / HEAD, ModelError, hint="") != head:
        raise ValueError("it was made with another embedder, piece length or version")


def _known(table: Any) -> dict[str, str]:
    """Document → digest of the text that is indexed."""
    result = table.search().select(["document", "digest"]).limit(table.count_rows()).to_arrow()
    return dict(zip(result["document"].to_pylist(), result["digest"].to_pylist(), strict=True))


def _rows(
    documents: Sequence[Document],
    digests: dict[str, str],
    embedder: str,
    piece_tokens: int,
    progress: Progress | None,
) -> list[dict[str, Any]]:
    if not documents:
        return []
    from semantic_text_splitter import TextSplitter
    from tokenizers import Tokenizer

    embed, tokenizer = load_embedder(embedder)
    counting = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    counting.no_truncation()
    counting.no_padding()  # a file may ask for any length
    splitter = TextSplitter.from_huggingface_tokenizer(counting, piece_tokens)
    pieces = []
    for d in documents:
        title, body = _title(d.text)  # goes with every piece: what a piece is about often stands nowhere else
        pieces += [(d, n, f"{title}{text}") for n, text in enumerate(splitter.chunks(body))]
    vectors = embed([text for _, _, text in pieces], progress)
    return [
        {"id": f"{d.id}#{n}", "document": d.id, "digest": digests[d.id], "text": text, "vector": vector}
        for (d, n, text), vector in zip(pieces, vectors, strict=True)
    ]


def _title(text: str) -> tuple[str, str]:
    """A first line that stands alone, with its end; and what is left."""
    first, blank, rest = text.partition("\n\n")
    if blank and rest.strip() and "\n" not in first.strip() and len(first) <= LONGEST_TITLE:
        return f"{first.strip()}\n", rest
    return "", text


def _create(folder: Path, rows: list[dict[str, Any]]) -> Any:
    import lancedb

    folder.mkdir(parents=True, exist_ok=True)
    table = lancedb.connect(folder).create_table(TABLE, rows)
    _index_words(table)
    return table


def _index_words(table: Any) -> None:
    from lancedb.index import FTS

    # Stop words stay: "without", "not" and "more" are what tells one question of a dispute from another.
    table.create_index("text", config=FTS(remove_stop_words=False), replace=True)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _plain(question: str) -> str:
    """Words only: what full-text search might take for an operator is left out."""
    return " ".join("".join(c if c.isalnum() else " " for c in question).split())
