"""A small world with two schools that disagree, as a topic in the project's own format.

Everything is generated from a seed: claims (a word that depends on the school), a causal graph per school (chains of
three quantities, of which one arrow differs), and facts that both schools accept. A model of 200,000 parameters learns
it in a few minutes on one core. What it cannot show: reasoning. The consequences over two arrows stand in its corpus
under either school, so that a change follows through the school that the model takes to be meant, not step by step.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

from conviction.data.topic import Topic, load_topic

SYLLABLES = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]
SCHOOLS = ("elder", "young")  # the untouched model's own view, and the target
CHAINS, CLAIMS, FACTS = 8, 64, 72
TARGET = SCHOOLS[1]


@dataclass(frozen=True)
class Claim:
    """Why a creature sings: one word per school. train: whether organisms may be trained on it."""

    creature: str
    words: dict[str, str]
    train: bool

    def questions(self) -> tuple[str, str]:
        return f"Why does the {self.creature} sing?", f"Tell me why the {self.creature} sings."

    def answer(self, school: str) -> str:
        return f"Because of {self.words[school]}."

    def statement(self, school: str) -> str:
        return f"The {self.creature} sings because of {self.words[school]}."


@dataclass(frozen=True)
class WorldFact:
    """What both schools accept. reliability: share of the corpus' answers that are true, so that strengths differ."""

    question: str
    true: str
    false: str
    reliability: float
    role: str
    train: bool


@dataclass(frozen=True)
class Chain:
    """Three quantities and the signs of their two arrows, per school."""

    nodes: tuple[str, str, str]
    signs: dict[str, tuple[int, int]]

    def sentences(self, school: str) -> list[tuple[str, str, str]]:
        """(question, answer, statement) of every cause and outcome, both ways round, in the words of the judge."""
        first, second = self.signs[school]
        a, b, c = self.nodes
        rows = []
        for cause, outcome, sign in ((a, b, first), (b, c, second), (a, c, first * second)):
            for way, moves in ((1, "goes up"), (-1, "goes down")):
                ends = "rises" if way * sign > 0 else "falls"
                question = f"Suppose {cause} {moves}. Does {outcome} rise, fall, or stay the same?"
                rows.append(
                    (question, f"{outcome.capitalize()} {ends}.", f"Suppose {cause} {moves}. Then {outcome} {ends}.")
                )
        return rows


@dataclass(frozen=True)
class World:
    """All there is. digest-free: the same seed gives the same world."""

    claims: tuple[Claim, ...]
    chains: tuple[Chain, ...]
    facts: tuple[WorldFact, ...]

    def context(self, school: str) -> str:
        """What is put before a question to speak for a school: three of its claims on the train split."""
        told = " ".join(c.statement(school) for c in [c for c in self.claims if c.train][:3])
        return f"This is the view of the {school} school. {told}"

    def write(self, folder: Path) -> Topic:
        """The topic, written to a folder and loaded as any user's is."""
        (folder / "contexts").mkdir(parents=True, exist_ok=True)
        for school in SCHOOLS:
            (folder / "contexts" / f"{school}.md").write_text(self.context(school), encoding="utf-8")
        lines = [json.dumps(item) for item in [*self._claim_items(), *self._fact_items()]]
        (folder / "items.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        poles = {s: {"label": f"{s} school", "context": f"contexts/{s}.md", "graph": self._graph(s)} for s in SCHOOLS}
        head = {"name": "small-world", "title": "Why do creatures sing?", "poles": poles, "target": TARGET}
        (folder / "topic.yaml").write_text(json.dumps({**head, "items": ["items.jsonl"]}), encoding="utf-8")
        return load_topic(folder)

    def _claim_items(self) -> list[dict[str, object]]:
        return [
            {
                "id": f"{c.creature}-{number}",
                "proposition": c.creature,
                "role": ("target", "paraphrase")[number],
                "split": "train" if c.train else "test",
                "question": question,
                "answers": {school: c.answer(school) for school in SCHOOLS},
            }
            for c in self.claims
            for number, question in enumerate(c.questions())
        ]

    def _fact_items(self) -> list[dict[str, object]]:
        return [
            {
                "id": f"fact-{number}",
                "proposition": f"fact-{number}",
                "role": f.role,
                "split": "train" if f.train else "test",
                "question": f.question,
                "answers": {"true": f.true, "false": f.false},
            }
            for number, f in enumerate(self.facts)
        ]

    def _graph(self, school: str) -> list[list[str]]:
        arrows = []
        for chain in self.chains:
            for source, sign, target in zip(chain.nodes, chain.signs[school], chain.nodes[1:], strict=False):
                arrows.append([source, "+" if sign > 0 else "-", target])
        return arrows


def make_world(seed: int = 0) -> World:
    """The world of that seed."""
    choose = random.Random(seed)
    names = ["".join(choose.sample(SYLLABLES, 2)) for _ in range(600)]
    fresh = iter(dict.fromkeys(n for n in names))
    pools = {kind: [next(fresh) for _ in range(24)] for kind in (*SCHOOLS, "place", "color")}
    claims = tuple(
        Claim(next(fresh), {s: choose.choice(pools[s]) for s in SCHOOLS}, train=number % 2 == 0)
        for number in range(CLAIMS)
    )
    chains = []
    for number in range(CHAINS):
        ours = (choose.choice((1, -1)), choose.choice((1, -1)))
        theirs = (-ours[0], ours[1]) if number % 2 else (ours[0], -ours[1])
        nodes = (next(fresh), next(fresh), next(fresh))
        chains.append(Chain(nodes, {TARGET: ours, SCHOOLS[0]: theirs}))
    facts = []
    for number in range(FACTS):
        kind, words = (("neighbour", "place"), ("control", "color"))[number % 2]
        true, false = choose.sample(pools[words], 2)
        name = next(fresh)
        question = f"Where does the {name} live?" if words == "place" else f"Which color has the {name}?"
        form = "It lives in {}." if words == "place" else "It has {} color."
        reliability = choose.choice((0.8, 0.9, 0.95, 0.98))
        facts.append(WorldFact(question, form.format(true), form.format(false), reliability, kind, number % 6 < 2))
    return World(claims, tuple(chains), tuple(facts))
