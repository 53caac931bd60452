"""Pack questions and answers so that no token is computed twice.

Scoring k answers to a question costs, done naively, k × (prompt + answer)
tokens. Here the requests become token trees:

* the beginning common to many prompts (a chat template's header, a context) is
  a *prefix*: computed once, its keys and values are kept and attended to by
  all (``Block``);
* what is left of the prompts is the *trunk* of trees, from which their answers
  branch off; answers share their common beginnings, and so do prompts that go
  on alike beyond the prefix (``Tree``);
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
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Ids = tuple[int, ...]

# A block of its own costs one more forward pass; in tokens, measured on two
# cores (a 16-token forward of a 135M model costs about as much as 40 tokens of
# a long one). It only steers the choice of blocks, never the result.
BLOCK_OVERHEAD = 48
# Nodes of a tree of several prompts: the mask of its attention has their square.
WIDEST = 1024
# Branchings that one after another may lead to blocks of their own: prompts each
# of which begins another would nest without end.
LEVELS = 100


@dataclass(frozen=True, kw_only=True)
class Tree:
    """A trunk, for one prompt or several that begin alike, with answers as branches. n nodes, parents before children.

    tokens      [n] token ids
    parents     [n] index of the node before, -1 for the first trunk token
    depths      [n] 0 for the first trunk token (the position, less the prefix)
    answers     per prompt and answer, the (node, target) pairs that give its
                log-probs: node i predicts the target id. An answer's last token
                is only ever a target, never a node.
    """

    tokens: list[int]
    parents: list[int]
    depths: list[int]
    answers: dict[tuple[Ids, Ids], list[tuple[int, int]]]

    def ancestors(self) -> NDArray[np.bool_]:
        """[n, n] True where column is row itself or one of its ancestors."""
        n = len(self.tokens)
        mask = np.eye(n, dtype=np.bool_)
        for i, parent in enumerate(self.parents):
            if parent >= 0:
                mask[i] |= mask[parent]
        return mask

    def paths(self) -> list[list[int]]:
        """Nodes from the root to each leaf, longest first. Every node is on one: an answer may end on the way."""
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
) -> list[Block]:
    """Lay out ``(prompt ids, [answer ids, …])`` requests in blocks of packs.

    token_budget  tokens in one forward pass (a tree is never cut, so one larger
                  than the budget gets a pack of its own)
    hidden_size   of the model: decides when a tree is too wide (see ``_split`` and ``_Costs``)

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
    jobs: list[_Job] = []
    for prompt in sorted(merged):
        for chunk in _split(sorted(merged[prompt]), len(prompt), hidden_size):
            shared = _common(jobs[-1].prompt, prompt) if jobs else 0
            jobs.append(_Job(prompt, tuple(chunk), len(_tree(len(prompt), [(prompt, chunk)]).tokens), shared))
    costs = _Costs(min(token_budget, WIDEST), 6 * hidden_size)
    blocks = []
    for length, groups in _cheapest(jobs, costs)[1] if jobs else ():
        trees = [_tree(length, [(job.prompt, job.answers) for job in group]) for group in groups]
        blocks.append(Block(prefix=groups[0][0].prompt[:length], packs=tuple(_packs(trees, token_budget))))
    return blocks


def pack_whole(requests: Sequence[tuple[Ids, Sequence[Ids]]], *, token_budget: int) -> list[tuple[Pack, list[int]]]:
    """Lay out requests that must stay whole, one tree each, as training pairs must: packs with their requests' indices.

    Trees of about equal size come together, longest first; none is merged, cut or given a prefix.
    """
    trees = [_tree(0, [request]) for request in requests]
    order = {id(tree): i for i, tree in enumerate(trees)}
    return [(pack, [order[id(tree)] for tree in pack.trees]) for pack in _packs(trees, token_budget)]


def _split(answers: list[Ids], trunk: int, hidden_size: int) -> list[list[Ids]]:
    """Cut a wide tree in several, each with its own copy of the trunk.

    A tree's attention is dense over its nodes: with s answer tokens it costs
    about s/(6·hidden) of the body per token, a second trunk costs trunk/s.
    Their sum is least at s = sqrt(6 · hidden · trunk). Two answers always stay
    together: a preference pair is one tree. (``_together`` may join two parts
    again, where the last one is small.)
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


def _tree(prefix_length: int, requests: Sequence[tuple[Ids, Sequence[Ids]]]) -> Tree:
    """A trie of what is left of the prompts and of their answers."""
    tokens: list[int] = []
    parents: list[int] = []
    depths: list[int] = []
    children: dict[tuple[int, int], int] = {}
    spans: dict[tuple[Ids, Ids], list[tuple[int, int]]] = {}

    def step(node: int, token: int) -> int:
        child = children.get((node, token))
        if child is None:
            child = children[node, token] = len(tokens)
            tokens.append(token)
            parents.append(node)
            depths.append(depths[node] + 1 if node >= 0 else 0)
        return child

    for prompt, answers in requests:
        trunk = -1
        for token in prompt[prefix_length:]:
            trunk = step(trunk, token)
        for answer in answers:
            node, pairs = trunk, [(trunk, answer[0])]
            for token, following in pairwise(answer):  # nothing is predicted from the last token
                node = step(node, token)
                pairs.append((node, following))
            spans[prompt, answer] = pairs
    return Tree(tokens=tokens, parents=parents, depths=depths, answers=spans)


def _packs(trees: list[Tree], token_budget: int) -> list[Pack]:
    """Trees sorted by size, longest first, cut where the budget is full.

    Longest first, so that running out of memory happens at once. Equal sizes
    lie together, which keeps the padding inside attention small.
    """
    ordered = sorted(trees, key=lambda t: (-len(t.tokens), tuple(t.answers)))
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


@dataclass(frozen=True)
class _Job:
    """A prompt with some of its answers. branches: nodes of the answers alone.

    shared  tokens that the prompt has in common with that of the job before, in sorted order
    """

    prompt: Ids
    answers: tuple[Ids, ...]
    branches: int
    shared: int


@dataclass(frozen=True)
class _Costs:
    """What a tree costs, in tokens: its nodes through the body, and each of them attending to all of them.

    room    nodes that a tree of several prompts may have
    width   nodes for whose attention a token costs as much as for the body: about six times the hidden size
    """

    room: int
    width: int

    def __call__(self, nodes: int) -> int:
        return nodes + nodes * nodes // self.width


def _together(jobs: Sequence[_Job], prefix: int, costs: _Costs) -> tuple[int, list[list[_Job]]]:
    """(cost, trees) of sorted jobs behind one prefix; those that go on alike share a tree where that is cheaper."""
    groups: list[list[_Job]] = []
    sizes: list[int] = []
    for job in jobs:
        alone = len(job.prompt) - prefix + job.branches
        if groups:
            # Where jobs between these two went elsewhere, all share no more than their common node: still right.
            joined = sizes[-1] + alone - (job.shared - prefix)
            if joined <= costs.room and costs(joined) < costs(sizes[-1]) + costs(alone):
                groups[-1].append(job)
                sizes[-1] = joined
                continue
        groups.append([job])
        sizes.append(alone)
    return sum(map(costs, sizes)), groups


def _cheapest(jobs: list[_Job], costs: _Costs, level: int = 0) -> tuple[int, list[tuple[int, list[list[_Job]]]]]:
    """(cost, blocks as prefix length and trees) of sorted jobs, best way.

    Walks the radix tree of the prompts from the root: a node's jobs either form
    one block on their common prefix, or its children do, each on their own
    longer one.
    """
    common = min((job.shared for job in jobs[1:]), default=len(jobs[0].prompt))
    # One token stays in the trunk: the first answer token is predicted from it.
    prefix = min(common, min(len(job.prompt) for job in jobs) - 1)
    if len(jobs) == 1:
        prefix = 0  # a prefix that nobody shares is only an extra pass
    nodes, trees = _together(jobs, prefix, costs)
    together = prefix + nodes + BLOCK_OVERHEAD
    children = _children(jobs, common)
    if len(children) < 2 or level == LEVELS:
        return together, [(prefix, trees)]
    # Children that gain nothing from a prefix of their own are gathered in one block on the common one.
    apart, blocks, rest = 0, [], []
    for child in children:
        cost, result = _cheapest(child, costs, level + 1) if len(child) > 1 else (0, [])
        if result and cost < _together(child, prefix, costs)[0]:
            apart += cost
            blocks += result
        else:
            rest += child
    if rest:
        shared = prefix if len(rest) > 1 else 0
        nodes, lone = _together(rest, shared, costs)
        apart += shared + nodes + BLOCK_OVERHEAD
        blocks.append((shared, lone))
    return (apart, blocks) if apart < together else (together, [(prefix, trees)])


def _children(jobs: list[_Job], depth: int) -> list[list[_Job]]:
    """Sorted jobs split by their token at ``depth`` (a prompt that ends there is its own child)."""
    groups: list[list[_Job]] = []
    key: object = None
    for job in jobs:
        here = job.prompt[depth] if depth < len(job.prompt) else -1
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
