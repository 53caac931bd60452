"""PD202 near-duplicate: pairs that differ in a few words

## What it does
Finds groups of rows that share most of their three-word sequences (question and both
answers together; Jaccard similarity 0.8 or more), by MinHash with 64 permutations, which
are off by about 0.05 there. Exact copies are PD201's. In Chinese, Japanese and other scripts
without spaces, characters (Thai and its like: pairs of them) stand for words, here and in all rules.

## Why it is bad
Templates with one word exchanged look like many examples and teach one. What counts as
the number of examples is the number of groups. A split by row puts members of one group
on both sides, and the held-out accuracy then measures memory (Lee et al., arXiv 2107.06499).

## Example
    {"prompt": "Is tea from Assam good?", "chosen": "Tea from Assam is malty, strong and good.", …}
    {"prompt": "Is tea from Assam bad?", "chosen": "Tea from Assam is malty, strong and good.", …}

## What to do
Keep one of each group, or split by group. The evidence names the groups.

## How the limit was set
A note under 1 % of the rows, a warning above. HH (harmless-base, test), TruthfulQA and the
built-in kits, one of which asks every question in two wordings, have no such row.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from conviction.auditing.row import AuditRow
from conviction.auditing.rule import SHOWN, AuditContext, Rule, RuleFinding
from conviction.core.segmentation import words
from conviction.core.wording import counted, percent

PERMUTATIONS, WIDTH = 64, 4  # sixteen bands of four permutations each
BUCKET = 256  # rows of one bucket that are all compared with each other
SIMILAR = 0.8
COMMON = 0.01
SHINGLE = 3

Signatures = NDArray[np.uint32]
Indices = NDArray[np.intp]


class _Check:
    def __init__(self, _: AuditContext) -> None:
        from datasketch import MinHash

        self.empty = MinHash(PERMUTATIONS, hashfunc=xxhash.xxh32_intdigest, scheme="affine32")
        self.signatures = array("I")
        self.rows = array("q")
        self.keys = array("q")

    def observe(self, row: AuditRow, /) -> None:
        text = f"{row.question} {row.chosen} {row.rejected}"
        spoken = words(text) or list(text)  # signs and emoji have no words
        shingles = {" ".join(spoken[i : i + SHINGLE]).encode() for i in range(max(1, len(spoken) - SHINGLE + 1))}
        sketch = self.empty.copy()
        sketch.update_batch(shingles)
        self.signatures.frombytes(sketch.hashvalues.tobytes())
        self.rows.append(row.number)
        self.keys.append(row.pair_key)

    @cached_property
    def groups(self) -> list[list[int]]:
        """Rows that belong together, exact copies counted once; each group in the order of the file."""
        if not self.rows:
            return []
        _, first = np.unique(np.frombuffer(self.keys, np.int64), return_index=True)
        first.sort()
        signatures = np.frombuffer(self.signatures, np.uint32).reshape(-1, PERMUTATIONS)[first]
        return [[self.rows[first[i]] for i in group] for group in similar_groups(signatures)]

    def findings(self) -> Iterable[RuleFinding]:
        rows = sorted(number for group in self.groups for number in group[1:])
        if rows:
            share = len(rows) / len(self.rows)
            largest = max(map(len, self.groups))
            yield RuleFinding(
                message=f"{counted(len(rows), 'row')} ({percent(share)}) nearly like others: "
                f"{counted(len(self.groups), 'group')}, the largest of {largest}",
                advice="keep one of each group, or split train and test by group",
                rows=rows,
                evidence=[
                    {"row": g[1], "like": [g[0], *g[2:SHOWN]]} for g in sorted(self.groups, key=len)[: -SHOWN - 1 : -1]
                ],
                level="warning" if share >= COMMON else "note",
            )

    def metrics(self) -> Mapping[str, Any]:
        return {"groups": len(self.groups), "rows_in_groups": sum(map(len, self.groups))}


def similar_groups(signatures: Signatures) -> list[list[int]]:
    """Indices of rows connected by an estimated similarity of 0.8 or more; groups of two and more.

    signatures [rows, PERMUTATIONS]. Two rows that agree in 52 of 64 permutations differ in at most 12, so
    at least 4 of their 16 bands agree: every similar pair shares a bucket. Neighbours of a bucket are compared
    first; where they do not connect it, all its pairs are, up to BUCKET rows (beyond that pairs may be missed).
    """
    buckets = [_buckets(signatures[:, start : start + WIDTH]) for start in range(0, PERMUTATIONS, WIDTH)]
    pairs = _similar(
        signatures,
        np.concatenate([order[:-1][same] for order, same in buckets]),
        np.concatenate([order[1:][same] for order, same in buckets]),
    )
    labels = _components(pairs, len(signatures))
    apart = [_unconnected(order, same, labels) for order, same in buckets]
    pairs = np.concatenate([pairs, *(_similar(signatures, left, right) for left, right in apart)], axis=1)
    labels = _components(pairs, len(signatures))
    members: dict[int, list[int]] = {}
    for index in np.unique(pairs).tolist():
        members.setdefault(int(labels[index]), []).append(index)
    return list(members.values())


def _buckets(band: Signatures) -> tuple[Indices, NDArray[np.bool_]]:
    """Rows in order of their band's hash, and whether each has the hash of the next one."""
    keys = np.zeros(len(band), np.uint64)
    for column in band.T:
        keys = keys * np.uint64(0x9E3779B97F4A7C15) + column  # wraps; collisions fail the comparison of signatures
    order = np.argsort(keys, kind="stable")
    return order, keys[order[1:]] == keys[order[:-1]]


def _similar(signatures: Signatures, left: Indices, right: Indices) -> Indices:
    """[2, pairs] those of the given pairs that are similar."""
    close = (signatures[left] == signatures[right]).mean(axis=1) >= SIMILAR
    return np.stack([left[close], right[close]])


def _components(pairs: Indices, n: int) -> NDArray[np.int32]:
    """[n] the connected component of each row."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    labels: NDArray[np.int32] = connected_components(
        coo_array((np.ones(pairs.shape[1], np.int8), pairs), shape=(n, n))
    )[1]
    return labels


def _unconnected(order: Indices, same: NDArray[np.bool_], labels: NDArray[np.int32]) -> tuple[Indices, Indices]:
    """Pairs of rows that share a bucket, but no component yet."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], same, [False]]).astype(np.int8)))
    left, right = [np.empty(0, np.intp)], [np.empty(0, np.intp)]
    for begin, end in edges.reshape(-1, 2):
        bucket = order[begin : end + 1]
        if len(bucket) <= BUCKET and len(np.unique(labels[bucket])) > 1:
            i, j = np.triu_indices(len(bucket), 1)
            apart = labels[bucket[i]] != labels[bucket[j]]
            left.append(bucket[i[apart]])
            right.append(bucket[j[apart]])
    return np.concatenate(left), np.concatenate(right)


RULE = Rule(code="PD202", name="near-duplicate", since="0.1.0", begin=_Check)
