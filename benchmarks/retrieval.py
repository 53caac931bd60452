"""Retrieval: recall@5 on questions whose answering document is known, and what an index of 10,000 passages costs.

    python -m benchmarks.retrieval

Every document of the kit `obesity` is named after the proposition that it is about: the questions of that
proposition (two wordings) should bring it. Once among the documents of the target pole, as `apply rag` indexes them;
once with both poles, the placebo texts and 10,000 passages of other text, where a document of either pole counts,
since a question does not tell which one is meant. The other text is read from beside the checkout.
"""

from __future__ import annotations

import gzip
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import machine, save
from conviction.data.topic import Topic, load_topic
from conviction.data.training_data import Document, paragraphs
from conviction.retrieval.embedding import EMBEDDED
from conviction.retrieval.index import Index, build_index

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
PIECES, PIECE_TOKENS, BEST = 10_000, 120, 5


def main() -> None:
    """Measure, print, save."""
    topic = load_topic("obesity")
    found: dict[str, Any] = {"machine": machine(), "embedder": EMBEDDED, "piece_tokens": PIECE_TOKENS}
    with tempfile.TemporaryDirectory() as work:
        poles = {
            side: [Document(f"{side}/{d.id}", d.text) for d in topic.documents_of(side)] for side in topic.documents
        }
        alone, _ = _build(Path(work) / "alone", poles[topic.target])
        found["target_only"] = {"passages": alone.pieces, **_recall(alone, topic)}
        others = _others()
        everything, seconds = _build(Path(work) / "all", [*(d for docs in poles.values() for d in docs), *others])
        again, nothing_new = _build(Path(work) / "all", [*(d for docs in poles.values() for d in docs), *others])
        found["among_others"] = {
            "passages": everything.pieces,
            "seconds": seconds,
            "seconds_for_10000": seconds * PIECES / everything.pieces,
            "seconds_with_nothing_new": nothing_new,
            "embedded_again": again.embedded,
            **_recall(everything, topic),
        }
    print(json.dumps({k: v for k, v in found.items() if k != "machine"}, indent=1))
    save("retrieval", found)


def _build(folder: Path, documents: Sequence[Document]) -> tuple[Index, float]:
    start = time.perf_counter()
    index = build_index(folder, documents, embedder=EMBEDDED, piece_tokens=PIECE_TOKENS, log=print)
    return index, time.perf_counter() - start


def _recall(index: Index, topic: Topic) -> dict[str, Any]:
    """Share of questions with an answering document among the five best passages, and a query's seconds."""
    known = {d.id for d in topic.documents_of(topic.target)}
    asked = [i for i in topic.of_role("target", "paraphrase") if i.proposition in known]
    rows, seconds = [], []
    for item in asked:
        start = time.perf_counter()
        (passages,) = index.search([item.question], BEST)
        seconds.append(time.perf_counter() - start)
        hits = [p.document for p in passages]
        found = any(hit in {f"{pole}/{item.proposition}" for pole in topic.poles} for hit in hits)
        rows.append({"item": item.id, "found": found, "documents": hits})
    seconds.sort()
    return {
        "questions": len(rows),
        "recall_at_5": sum(r["found"] for r in rows) / len(rows),
        "query_seconds_median": seconds[len(seconds) // 2],
        "query_seconds_p95": seconds[int(0.95 * len(seconds))],
        "rows": rows,
    }


def _others() -> list[Document]:
    """Paragraphs of WikiText-2 and answers of HH, about 10,000 passages of them."""
    text = (DATA / "wikitext2_test.txt").read_text(encoding="utf-8")
    documents = [Document(f"wikitext:{line}", block) for line, block in paragraphs(text) if len(block) > 80]
    with gzip.open(DATA / "hh_harmless_test.jsonl.gz", "rt", encoding="utf-8") as file:
        for number, line in enumerate(file):
            row = json.loads(line)
            documents += [Document(f"hh:{number}:{side}", row[side]) for side in ("chosen", "rejected")]
    return documents


if __name__ == "__main__":
    main()
