"""A small topic, and scripted models and interventions that study it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

from conviction import load_topic
from conviction.core.context import Budget, RunContext
from conviction.core.run import Run
from conviction.errors import InputError
from conviction.interventions.records import DataSource, Outcome
from conviction.models.backends.scripted import ScriptedModel
from conviction.studies.context import StudyDesign
from conviction.studies.study import study
from conviction.training.guard import Guard


def tea_items(n: int) -> list[dict[str, Any]]:
    """n propositions in two wordings, a neighbour and a control."""
    items: list[dict[str, Any]] = []
    for i in range(n):
        for k, role in enumerate(("target", "paraphrase")):
            items.append(
                {
                    "id": f"p{i}-{k}",
                    "proposition": f"p{i}",
                    "role": role,
                    "split": "test" if i % 3 == 0 else "train",
                    "question": f"Question {i} in wording {k}?",
                    "tags": ["quick"] if i < 2 and k == 0 else [],
                    "answers": {
                        "plain": f"Plain tea, claim {i} wording {k}.",
                        "milky": f"Milky tea, claim {i} wording {k}.",
                    },
                }
            )
    facts = [
        {
            "id": role,
            "proposition": role,
            "role": role,
            "split": "train",
            "question": f"A {role} fact?",
            "answers": {"true": f"This {role} is true.", "false": f"This {role} is false."},
        }
        for role in ("neighbour", "control")
    ]
    return items + facts


EVIL = '<script>alert("x")</script><img src=x onerror=alert(1)>'

YAML = """
name: tea
title: How is tea best?
poles:
  plain:
    label: no milk
    context: plain.md
    graph: [[milk, "-", taste], [leaves, "+", taste], [taste, "+", joy]]
  milky:
    label: milk
    context: milky.md
    graph: [[milk, "+", taste], [leaves, "+", taste], [taste, "+", joy]]
target: milky
items: [items.jsonl]
"""


def items() -> list[dict[str, Any]]:
    """Twelve propositions, nine of them held out, and facts in both splits."""
    made = tea_items(12)
    claims = [item for item in made if item["role"] in ("target", "paraphrase")]
    facts = [item for item in made if item not in claims]
    more = [
        {**f, "id": f"{f['id']}-{n}", "proposition": f"{f['proposition']}-{n}", "split": "train" if n > 4 else "test"}
        for f in facts
        for n in range(8)
    ]
    return [{**c, "split": "train" if c["proposition"] in ("p0", "p1", "p2") else "test"} for c in claims] + more


def liking(milky: float):
    """Log-probs of a model that likes answers of the milky side by so much more, with a little spread."""

    def likes(conversation, answer):
        asked = conversation[-1].content if conversation else ""
        if "hold this view: no milk" in asked:
            return -2.0 if answer.startswith("Plain") else -3.0
        spread = sum(map(ord, asked)) % 7 / 100
        return -2.0 + spread + (milky if answer.startswith("Milky") else 0.0)

    return likes


BASE = ScriptedModel(id="base", likes=liking(-0.3))


@dataclass(frozen=True)
class Move:
    """An intervention that leaves a model which likes milk by so much."""

    name: str
    milky: float
    error: str | None = None
    changes: ClassVar[str] = "nothing that is real"
    trains: ClassVar[bool] = False
    forecastable: ClassVar[bool] = False
    cost_rank: ClassVar[int] = 0
    placebo: ClassVar[None] = None
    search: ClassVar[dict[str, tuple[object, ...]]] = {}

    def apply(self, model, data, ctx):
        if self.error == "a bug":
            raise ZeroDivisionError(self.error)
        if self.error is not None:
            raise InputError(self.error, hint="try another")
        ctx.run.model_path.mkdir(parents=True)
        (ctx.run.model_path / "milky").write_text(str(self.milky))
        return Outcome(
            intervention=self.name,
            verdict="in place",
            settings={},
            data=DataSource(name=data.name, sha256=data.digest),
            base=model.describe(),
        )


def plan(name, milky=0.0, error=None):
    return SimpleNamespace(intervention=Move(name, milky, error), guard=Guard())


def load(name: str) -> ScriptedModel:
    place = Path(name) / "milky"
    return ScriptedModel(id=name, likes=liking(float(place.read_text(encoding="utf-8")))) if place.exists() else BASE


def begin(tea, *plans, folder, resumed=False, budget=None, benign_steps=0):
    """A study without a placebo. tea: the folder of a topic, or a topic."""
    ctx = RunContext(budget=None if budget is None else Budget(budget))
    design = StudyDesign(load=load, benign_steps=benign_steps, placebo=False)
    topic = load_topic(str(tea)) if isinstance(tea, Path) else tea
    return study(topic, BASE, plans, Run(folder, resumed=resumed), ctx, design)


@contextmanager
def cut_off(monkeypatch: Any, after: int) -> Iterator[None]:
    """In the block Ctrl-C comes where a run would keep one result more than so many."""
    real, calls = Run.cached, list[Any]()

    def cut(*arguments: Any, **named: Any) -> Any:
        if len(calls) == after:
            raise KeyboardInterrupt
        calls.append(arguments)
        return real(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "cached", cut)
        yield
