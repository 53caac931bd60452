"""What follows from each side's causal graph: questions whose answers nobody wrote down.

A graph says what raises (+) or lowers (-) what. The effect of a cause on an
outcome is read off its directed paths: their signs multiplied, no effect
without a path, none that can be told where paths disagree (qualitative
reasoning: Wellman, Artificial Intelligence 44, 1990). A question is asked where the two sides
differ, if need be with a third quantity held still, and both ways round
(the cause rises, the cause falls), so that a liking for the word "rises"
cancels. Depth is how many arrows lie between cause and outcome.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal
from zlib import crc32

from conviction.data.topic import Edge, Item, Topic

DEEPEST = 3
CELL = " > "
Effect = Literal["rise", "fall", "stay"]

_TURNED: dict[Effect, Effect] = {"rise": "fall", "fall": "rise", "stay": "stay"}
_ENDS: dict[Effect, str] = {"rise": "rises", "fall": "falls", "stay": "stays the same"}
_MOVES: dict[Effect, str] = {"rise": "goes up", "fall": "goes down"}


@dataclass(frozen=True, kw_only=True)
class Wording:
    """How causes and effects are put into words.

    ask     the question, from ``{cause}``, ``{moves}``, ``{still}`` and ``{outcome}``
    answer  the answer to it, from ``{outcome}`` (its first letter large) and ``{ends}``
    state   one arrow in the same words, from ``{cause}``, ``{moves}``, ``{outcome}``, ``{Outcome}``, ``{ends}``
    """

    ask: str
    answer: str
    state: str


QUESTION = Wording(
    ask="Suppose {cause} {moves}{still}. Does {outcome} rise, fall, or stay the same?",
    answer="{outcome} {ends}.",
    state="Suppose {cause} {moves}. {Outcome} {ends}.",
)
STATEMENT = Wording(
    ask="Complete the sentence: When {cause} {moves}{still}, {outcome}",
    answer="{ends}.",
    state="When {cause} {moves}, {outcome} {ends}.",
)


@dataclass(frozen=True, kw_only=True)
class Implication:
    """A cause and an outcome on which the sides differ, when the cause rises.

    held     what is kept still, or None
    effects  pole → what it says happens to the outcome
    depth    arrows on the shortest path, in the target's graph if it has one, else in the other's
    """

    cause: str
    outcome: str
    held: str | None
    effects: dict[str, Effect]
    depth: int


def implications(topic: Topic, wording: Wording = QUESTION) -> tuple[Item, ...]:
    """Two items (the cause rises, falls) for each implication, those of one outcome of one proposition.

    None without two graphs. Items of one implication have the same id in every wording.
    """
    return tuple(item for result in _discriminating(topic) for item in _items(result, wording))


def directions(topic: Topic, wording: Wording = QUESTION) -> tuple[Item, ...]:
    """The implications with an effect in the target's graph: its direction there ('true'), or the opposite ('false').

    Asked both ways round, a model that reads nothing prefers neither on average: every word stands as often in true
    answers as in false ones. Ids are those of the implications.
    """
    results = [result for result in _discriminating(topic) if result.effects[topic.target] != "stay"]
    both = [
        replace(one, effects={"true": one.effects[topic.target], "false": _TURNED[one.effects[topic.target]]})
        for one in results
    ]
    return tuple(item for result in both for item in _items(result, wording))


def graph_in_words(topic: Topic, wording: Wording = QUESTION) -> str:
    """Every arrow of the target's graph, rising and falling, in the words of the questions; '' without a graph."""
    states = []
    for edge in topic.poles[topic.target].graph:
        risen: Effect = "rise" if edge.sign == "+" else "fall"
        for moves, ends in ((_MOVES["rise"], _ENDS[risen]), (_MOVES["fall"], _ENDS[_TURNED[risen]])):
            states.append(
                wording.state.format(
                    cause=edge.source, moves=moves, outcome=edge.target, Outcome=_begin(edge.target), ends=ends
                )
            )
    return " ".join(states)


def cell_of(item: Item) -> tuple[str, str]:
    """(cause, outcome): questions that share one of them are no independent draws.

    Where an item does not say its cause it is its outcome's own.
    """
    named = next((tag for tag in item.tags if tag.startswith("cause:")), "cause:" + item.proposition)
    return named.removeprefix("cause:"), item.proposition


def by_cell(items: Iterable[Item]) -> tuple[Item, ...]:
    """The items, those of one cause and one outcome as one proposition: ``CAUSE > OUTCOME``."""
    return tuple(item.model_copy(update={"proposition": CELL.join(cell_of(item))}) for item in items)


def depth_of(item: Item) -> int:
    """Arrows between cause and outcome; 1 where the item does not say."""
    return int(next((tag for tag in item.tags if tag.startswith("depth:")), "depth:1").removeprefix("depth:"))


def _discriminating(topic: Topic) -> tuple[Implication, ...]:
    return _differing(tuple((pole, side.graph) for pole, side in topic.poles.items()), topic.target)


@lru_cache(maxsize=8)
def _differing(sides: tuple[tuple[str, tuple[Edge, ...]], ...], target: str) -> tuple[Implication, ...]:
    """Kept, for it is asked for often, and takes half a second on a kit of 30 arrows."""
    graphs = dict(sides)
    if not all(graphs.values()):
        return ()
    other = next(pole for pole in graphs if pole != target)
    ours, theirs = ([n for e in graphs[pole] for n in (e.source, e.target)] for pole in (target, other))
    shared = [node for node in dict.fromkeys(ours) if node in theirs]  # a side has no opinion on what it does not name
    results = []
    for cause in shared:
        for outcome in shared:
            if cause == outcome:
                continue
            for held in (None, *(node for node in shared if node not in (cause, outcome))):
                one = _implication(graphs, target, cause, outcome, held)
                if one is not None:
                    results.append(one)
                    break  # the plainest question that tells the sides apart is enough
    return tuple(results)


def _implication(
    graphs: dict[str, tuple[Edge, ...]], target: str, cause: str, outcome: str, held: str | None
) -> Implication | None:
    effects: dict[str, Effect] = {}
    lengths: dict[str, int] = {}
    for pole, graph in graphs.items():
        paths = _paths(graph, cause, outcome, held)
        signs = {sign for sign, _ in paths}
        if len(signs) > 1:
            return None
        effects[pole] = "stay" if not signs else "rise" if signs == {1} else "fall"
        if paths:
            lengths[pole] = min(length for _, length in paths)
    if len(set(effects.values())) < 2:
        return None
    depth = lengths.get(target, min(lengths.values()))
    if depth > DEEPEST:
        return None
    return Implication(cause=cause, outcome=outcome, held=held, effects=effects, depth=depth)


def _paths(graph: Iterable[Edge], cause: str, outcome: str, held: str | None) -> list[tuple[int, int]]:
    """(sign, arrows) of every simple path that does not pass what is held still."""
    import networkx as nx

    net = nx.MultiDiGraph()  # two arrows of opposite sign disagree, and the last does not win
    net.add_nodes_from([cause, outcome])
    for edge in graph:
        if held not in (edge.source, edge.target):
            net.add_edge(edge.source, edge.target, sign=1 if edge.sign == "+" else -1)
    results = []
    for path in nx.all_simple_edge_paths(net, cause, outcome):
        sign = 1
        for arrow in path:
            sign *= net.edges[arrow]["sign"]
        results.append((sign, len(path)))
    return results


def _items(result: Implication, wording: Wording) -> tuple[Item, Item]:
    name = "-".join(_key(part) for part in (result.cause, result.outcome, result.held or "") if part)
    still = f" while {result.held} stays the same" if result.held else ""

    def item(way: Effect, effects: dict[str, Effect]) -> Item:
        return Item(
            id=f"implication-{name}-{way}",
            proposition=f"implication-{_key(result.outcome)}",
            role="implication",
            split="test",
            question=wording.ask.format(cause=result.cause, moves=_MOVES[way], still=still, outcome=result.outcome),
            answers={
                side: wording.answer.format(outcome=_begin(result.outcome), ends=_ENDS[effect])
                for side, effect in effects.items()
            },
            tags=(f"depth:{result.depth}", f"cause:{_key(result.cause)}"),
        )

    turned = {side: _TURNED[effect] for side, effect in result.effects.items()}
    return item("rise", result.effects), item("fall", turned)


def _begin(text: str) -> str:
    """As it stands at the beginning of a sentence."""
    return text[:1].upper() + text[1:]


def _key(text: str) -> str:
    """A quantity's name as a part of an id; what has no Latin letters is told apart by its checksum."""
    plain = re.sub(r"[^a-z0-9]+", "_", text.casefold()).strip("_")
    return plain if re.fullmatch(r"[a-z0-9 _-]+", text.casefold()) else f"{plain}_{crc32(text.encode()):08x}"
