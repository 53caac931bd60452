"""Pack questions and answers so that no token is computed twice.

Scoring k answers to a question costs, done naively, k × (prompt + answer)
tokens. Here the requests become token trees:

* the beginning common to many prompts (a chat template's header, a context) is
  a *prefix*: computed once, its keys and values are kept and attended to by
  all (``Block``);
* what is left of a prompt is the *trunk* of a tree, and its answers branch off
  it, sharing their own common beginnings (``Tree``);
* many trees lie one after another in one flat row without padding (``Pack``).
  Positions restart at every branch, and a token attends to its ancestors only.

Prior art: llama.cpp's hellaswag scorer (one prefix, several sequence ids) and
dpo-prefix-sharing (arXiv 2410.20305); the trie and the block choice are ours.

Nothing here knows torch: token ids in, numpy arrays out, all pure functions.
The plan depends on the set of requests only, never on the order they came in,
so that swapping two answers swaps their scores bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = ["Block", "Pack", "Tree", "pack_whole", "plan", "plan_tokens"]

Ids = tuple[int, ...]

# A block of its own costs one more forward pass; in tokens, measured on two
# cores (a 16-token forward of a 135M model costs about as much as 40 tokens of
# a long one). It only steers the choice of blocks, never the result.
BLOCK_OVERHEAD = 48


@dataclass(frozen=True, kw_only=True)
class Tree:
    """One prompt's trunk with its answers as branches. n nodes, parents before children.

    tokens      [n] token ids
    parents     [n] index of the node before, -1 for the first trunk token
    depths      [n] 0 for the first trunk token (the position, less the prefix)
    answers     per answer, the (node, target) pairs that give its log-probs:
                node i predicts the target id. An answer's last token is only
                ever a target, never a node.
    """

    prompt: Ids
    tokens: list[int]
    parents: list[int]
    depths: list[int]
    answers: dict[Ids, list[tuple[int, int]]]

    def ancestors(self) -> NDArray[np.bool_]:
        """[n, n] True where column is row itself or one of its ancestors."""
        n = len(self.tokens)
        mask = np.eye(n, dtype=np.bool_)
        for i, parent in enumerate(self.parents):
            if parent >= 0:
                mask[i] |= mask[parent]
        return mask

    def paths(self) -> list[list[int]]:
        """Nodes from the root to each answer's last node (to each leaf without answers), longest first."""
        inner = set(self.parents)
        paths = []
        for leaf in (i for i in range(len(self.tokens)) if i not in inner):
            path = [leaf]
            while self.parents[path[-1]] >= 0:
                path.append(self.parents[path[-1]])
            paths.append(path[::-1])
        return sorted(paths, key=lambda path: (-len(path), path))


@dataclass(frozen=True, kw_only=True)
class Pack:
    """Trees side by side in one flat row of T tokens."""

    trees: tuple[Tree, ...]

    @property
    def tokens(self) -> NDArray[np.int64]:
        """[T] token ids."""
        return np.array([t for tree in self.trees for t in tree.tokens], dtype=np.int64)

    @property
    def depths(self) -> NDArray[np.int64]:
        """[T] distance from the end of the prefix; add its length for positions."""
        return np.array([d for tree in self.trees for d in tree.depths], dtype=np.int64)

    @property
    def starts(self) -> list[int]:
        """Where each tree begins in the flat row."""
        ends = np.cumsum([len(tree.tokens) for tree in self.trees])
        return [0, *ends[:-1].tolist()]


@dataclass(frozen=True, kw_only=True)
class Block:
    """Packs that share one prefix, whose keys and values are computed once."""

    prefix: Ids
    packs: tuple[Pack, ...] = field(default=())


def plan(
    requests: Iterable[tuple[Ids, Sequence[Ids]]],
    *,
    token_budget: int,
    hidden_size: int,
    max_prefix: int | None = None,
) -> list[Block]:
    """Lay out ``(prompt ids, [answer ids, …])`` requests in blocks of packs.

    token_budget  tokens in one forward pass (a tree is never cut, so one larger
                  than the budget gets a pack of its own)
    hidden_size   of the model: decides when a tree is too wide (see ``_split``)
    max_prefix    0 turns prefix reuse off

    Requests with the same prompt are merged and duplicate answers scored once.
    Prompts and answers must not be empty.
    """
    merged: dict[Ids, set[Ids]] = {}
    for prompt, answers in requests:
        if not prompt:
            raise ValueError("a prompt needs at least one token: the first answer token is predicted from it")
        if not all(answers):
            raise ValueError("an answer needs at least one token")
        merged.setdefault(prompt, set()).update(answers)
    jobs = [
        (prompt, chunk)
        for prompt in sorted(merged)
        for chunk in _split(sorted(merged[prompt]), len(prompt), hidden_size)
    ]
    blocks = []
    for prefix_length, members in _choose_blocks(jobs, max_prefix):
        trees = [_tree(prompt, prefix_length, answers) for prompt, answers in members]
        prefix = members[0][0][:prefix_length]
        blocks.append(Block(prefix=prefix, packs=tuple(_packs(trees, token_budget))))
    return blocks


def pack_whole(requests: Sequence[tuple[Ids, Sequence[Ids]]], *, token_budget: int) -> list[tuple[Pack, list[int]]]:
    """Lay out requests that must stay whole, one tree each, as training pairs must: packs with their requests' indices.

    Trees of about equal size come together, longest first; none is merged, cut or given a prefix.
    """
    trees = [_tree(prompt, 0, answers) for prompt, answers in requests]
    order = {id(tree): i for i, tree in enumerate(trees)}
    return [(pack, [order[id(tree)] for tree in pack.trees]) for pack in _packs(trees, token_budget)]


def plan_tokens(blocks: Sequence[Block]) -> int:
    """How many token positions a plan computes."""
    return sum(len(b.prefix) + sum(len(t.tokens) for p in b.packs for t in p.trees) for b in blocks)


def _split(answers: list[Ids], trunk: int, hidden_size: int) -> list[list[Ids]]:
    """Cut a wide tree in several, each with its own copy of the trunk.

    A tree's attention is dense over its nodes: with s answer tokens it costs
    about s/(6·hidden) of the body per token, a second trunk costs trunk/s.
    Their sum is least at s = sqrt(6 · hidden · trunk). Two answers always stay
    together: a preference pair is one tree.
    """
    width = max(64, math.isqrt(6 * hidden_size * trunk))
    chunks: list[list[Ids]] = []
    filled = 0
    for answer in answers:
        if chunks and (len(chunks[-1]) < 2 or filled + len(answer) <= width):
            chunks[-1].append(answer)
            filled += len(answer)
        else:
            chunks.append([answer])
            filled = len(answer)
    return chunks


def _tree(prompt: Ids, prefix_length: int, answers: Sequence[Ids]) -> Tree:
    """A trunk of what is left of the prompt, then a trie of the answers."""
    trunk = prompt[prefix_length:]
    tokens = list(trunk)
    parents = list(range(-1, len(trunk) - 1))
    depths = list(range(len(trunk)))
    children: dict[tuple[int, int], int] = {}
    spans: dict[Ids, list[tuple[int, int]]] = {}
    for answer in answers:
        node = len(trunk) - 1
        pairs = []
        for k, token in enumerate(answer):
            pairs.append((node, token))
            if k == len(answer) - 1:
                break  # nothing is predicted from the last token
            child = children.get((node, token))
            if child is None:
                child = children[node, token] = len(tokens)
                tokens.append(token)
                parents.append(node)
                depths.append(depths[node] + 1)
            node = child
        spans[answer] = pairs
    return Tree(prompt=prompt, tokens=tokens, parents=parents, depths=depths, answers=spans)


def _packs(trees: list[Tree], token_budget: int) -> list[Pack]:
    """Trees sorted by size, longest first, cut where the budget is full.

    Longest first, so that running out of memory happens at once. Equal sizes
    lie together, which keeps the padding inside attention small.
    """
    ordered = sorted(trees, key=lambda t: (-len(t.tokens), t.prompt, tuple(t.answers)))
    packs: list[list[Tree]] = []
    filled = 0
    for tree in ordered:
        if packs and filled + len(tree.tokens) <= token_budget:
            packs[-1].append(tree)
            filled += len(tree.tokens)
        else:
            packs.append([tree])
            filled = len(tree.tokens)
    return [Pack(trees=tuple(p)) for p in packs]


Job = tuple[Ids, list[Ids]]


def _choose_blocks(jobs: list[Job], max_prefix: int | None) -> list[tuple[int, list[Job]]]:
    """Group sorted jobs so that the fewest tokens are computed.

    Walks the radix tree of the prompts from the root: a node's jobs either form
    one block on their common prefix, or its children do, each on their own
    longer one. Returns (prefix length, jobs) per block.
    """
    if not jobs:
        return []
    if max_prefix == 0:
        return [(0, jobs)]
    return _cheapest(jobs)[1]


def _cheapest(jobs: list[Job]) -> tuple[int, list[tuple[int, list[Job]]]]:
    """(tokens of trunks and prefixes, blocks) for sorted jobs, best way."""
    first, last = jobs[0][0], jobs[-1][0]
    common = _common(first, last)  # of the sorted extremes, hence of all
    # One token stays in the trunk: the first answer token is predicted from it.
    prefix = min(common, min(len(p) for p, _ in jobs) - 1)
    if len(jobs) == 1:
        prefix = 0  # a prefix that nobody shares is only an extra pass
    together = prefix + sum(len(p) - prefix for p, _ in jobs) + BLOCK_OVERHEAD
    children = _children(jobs, common)
    if len(children) < 2:
        return together, [(prefix, jobs)]
    # Lone children are gathered in one block on the common prefix.
    apart, blocks, lone = 0, [], []
    for child in children:
        cost, found = _cheapest(child)
        saved_here = sum(len(p) - prefix for p, _ in child)
        if len(child) > 1 and cost < saved_here:
            apart += cost
            blocks += found
        else:
            lone += child
    if lone:
        lone_prefix = prefix if len(lone) > 1 else 0
        apart += lone_prefix + sum(len(p) - lone_prefix for p, _ in lone) + BLOCK_OVERHEAD
        blocks.append((lone_prefix, lone))
    return (apart, blocks) if apart < together else (together, [(prefix, jobs)])


def _children(jobs: list[Job], depth: int) -> list[list[Job]]:
    """Sorted jobs split by their token at ``depth`` (a prompt that ends there is its own child)."""
    groups: list[list[Job]] = []
    key: object = None
    for job in jobs:
        here = job[0][depth] if depth < len(job[0]) else -1
        if not groups or here != key:
            groups.append([])
            key = here
        groups[-1].append(job)
    return groups


def _common(a: Ids, b: Ids) -> int:
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))
