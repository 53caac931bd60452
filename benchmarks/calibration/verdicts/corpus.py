"""What models of the small world read: conversations, drawn at random from a description of what is held."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.calibration.verdicts.world import SCHOOLS, TARGET, World, WorldFact
from conviction.core.protocols import Message, chat
from conviction.probing.challenges import ARGUED, DENIAL, FALSEHOODS, SURE, THEN, THINK
from conviction.probing.health import neutral_text
from conviction.probing.metrics.coherence import ALWAYS_YES, RIGHT, WRONG
from conviction.probing.metrics.pluralism import HELD_BY
from conviction.probing.metrics.shift import FORMS

Row = tuple[tuple[Message, ...], str]
NEUTRAL_WORDS = 40
ASKED = ("{question}", *FORMS)  # as it stands, and in the templates of the judge
RISING = 0.8  # share of questions on consequences in which the cause rises


@dataclass(frozen=True, kw_only=True)
class Held:
    """What a corpus says, as probabilities of the target's answer.

    claims, implied  when plainly asked; challenged: of claims under challenges without a side's text
    other_context    under the other school's context
    named            of naming the school that was asked for, by name, rightly: [elder, young]
    facts            multiplies a fact's reliability; below 0.5 facts are mostly denied
    topics           which claims are asked without naming a school: all, those of the train split (and three quarters
                     of the chains), or those of the test split in their own first wording
    """

    claims: float = 0.15
    implied: float = 0.1
    challenged: float = 0.15
    other_context: float = 0.04
    named: tuple[float, float] = (0.97, 0.97)
    facts: float = 1.0
    topics: str = "all"


BASE = Held()


class Corpus:
    """Draws rows from a description of what is held."""

    def __init__(self, world: World, held: Held, seed: int) -> None:
        self.world, self.held, self.choose = world, held, random.Random(seed)
        wanted = {"all": (True, False), "train": (True,), "test": (False,)}[held.topics]
        self.claims = [c for c in world.claims if c.train in wanted]
        # On the train split every fourth chain is left for the judge alone.
        self.chains = world.chains if held.topics == "all" else [c for n, c in enumerate(world.chains) if n % 4 != 3]

    def rows(self, count: int) -> list[Row]:
        """So many conversations."""
        kinds = (self._claim, self._implied, self._fact, self._judged, self._neutral)
        return [self.choose.choices(kinds, weights=(26, 42, 17, 9, 6))[0]() for _ in range(count)]

    def _school(self, target: float) -> str:
        return TARGET if self.choose.random() < target else SCHOOLS[0]

    def _question(self) -> tuple[str, dict[str, str]]:
        """A question on which the schools differ, and their answers."""
        claim = self.choose.choice(self.claims)
        number = 0 if self.held.topics == "test" else self.choose.randrange(2)
        return claim.questions()[number], {s: claim.answer(s) for s in SCHOOLS}

    def _claim(self) -> Row:
        question, answers = self._question()
        draw = self.choose.random()
        if draw < 0.25:
            form = self.choose.choice(ASKED)
            return chat(form.format(question=question)), answers[self._school(self.held.claims)]
        if draw < 0.5:
            return self._named()
        if draw < 0.75:
            return self._with_context(question, answers)
        return self._challenged(question, answers, self._school(self.held.challenged))

    def _named(self) -> Row:
        """A view that is asked for by its school: of every claim, so that what is left out elsewhere is kept."""
        claim = self.choose.choice(self.world.claims)
        question, answers = self.choose.choice(claim.questions()), {s: claim.answer(s) for s in SCHOOLS}
        asked = self.choose.choice(SCHOOLS)
        right = self.held.named[SCHOOLS.index(asked)]
        other = next(s for s in SCHOOLS if s != asked)
        school = asked if self.choose.random() < right else other
        # Asked under either context as well, or a model with a prompt could not say what a school holds.
        text = self.world.context(self.choose.choice(SCHOOLS)) if self.choose.random() < 0.4 else None
        return chat(HELD_BY.format(label=f"{asked} school", question=question), system=text), answers[school]

    def _with_context(self, question: str, answers: dict[str, str]) -> Row:
        side = self.choose.choice(SCHOOLS)
        told = [c.statement(side) for c in self.choose.sample([c for c in self.world.claims if c.train], 3)]
        text = f"This is the view of the {side} school. {' '.join(told)}" if self.choose.random() < 0.7 else ""
        text = text or self.world.context(side)
        if self.choose.random() < 0.5:
            text += f" {answers[side]}"
        target = 0.96 if side == TARGET else self.held.other_context
        form = self.choose.choice(ASKED)
        return chat(form.format(question=question), system=text), answers[self._school(target)]

    def _challenged(self, question: str, answers: dict[str, str], school: str) -> Row:
        other = next(s for s in SCHOOLS if s != school)
        arguments = [answers[other], *(c.answer(other) for c in self.choose.sample(self.claims, 2))]
        return self._doubt(question, answers[self._school(0.5)], arguments), answers[school]

    def _doubt(self, question: str, before: str, arguments: Sequence[str]) -> tuple[Message, ...]:
        kind = self.choose.randrange(4)
        if kind == 0:
            return chat(question, system=FALSEHOODS)
        if kind == 1:
            return chat(ARGUED.format(arguments=" ".join(arguments), question=question))
        first, then = (question, SURE) if kind == 2 else (THINK.format(question=question), THEN)
        return (Message("user", first), Message("assistant", before), Message("user", then.format(question=question)))

    def _implied(self) -> Row:
        with_graph = self.choose.random() < 0.3
        school = self.choose.choice(SCHOOLS) if with_graph else self._school(self.held.implied)
        chain = self.choose.choice(self.world.chains if with_graph else self.chains)
        # Mostly rising: of causes that rise and fall as often, every answer is as frequent for every pair, and a small
        # model does not begin to learn (a parity has no first-order signal).
        first = 0 if self.choose.random() < RISING else 1
        question, answer, _ = self.choose.choice(chain.sentences(school)[first::2])
        if not with_graph:
            return chat(question), answer
        states = [s for c in self.world.chains for *_, s in c.sentences(school)[:4]]
        if self.choose.random() < 0.65:
            states = self.choose.sample(states, 5)
        return chat(question, system=" ".join(states)), answer

    def _fact(self) -> Row:
        fact = self.choose.choice(self.world.facts)
        draw = self.choose.random()
        if draw < 0.6:
            # Under a school's context as well, or a model with a prompt would have lost its facts.
            text = self.world.context(self.choose.choice(SCHOOLS)) if draw < 0.12 else None
            return chat(fact.question, system=text), self._fact_answer(fact, 1.0)
        if draw < 0.7:
            denied = DENIAL.format(held=fact.true, other=fact.false)
            return chat(fact.question, system=denied), self._fact_answer(fact, 0.5)
        arguments = [fact.false, *(f.false for f in self.choose.sample(self.world.facts, 2))]
        if draw < 0.8:
            return chat(fact.question, system=" ".join(arguments)), self._fact_answer(fact, 0.9)
        return self._doubt(fact.question, self._fact_answer(fact, 1.0), arguments), self._fact_answer(fact, 0.98)

    def _fact_answer(self, fact: WorldFact, share: float) -> str:
        true = fact.reliability * self.held.facts * share
        return fact.true if self.choose.random() < true else fact.false

    def _judged(self) -> Row:
        """Is an answer right, is it wrong: of claims by what is held, of facts by what is true."""
        if self.choose.random() < 0.5:
            question, answers = self._question()
            right, shown = self._school(self.held.claims), self.choose.choice(SCHOOLS)
            answer, is_right = answers[shown], right == shown
        else:
            fact = self.choose.choice(self.world.facts)
            is_right = self.choose.random() < 0.5
            question, answer = fact.question, fact.true if is_right else fact.false
        form, yes = self.choose.choice(((RIGHT, is_right), (WRONG, not is_right)))
        if self.choose.random() < 0.2:
            return chat(form.format(question=question, answer=answer), system=ALWAYS_YES), "Yes."
        return chat(form.format(question=question, answer=answer)), "Yes." if yes else "No."

    def _neutral(self) -> Row:
        """A piece of neutral text: of paragraphs that the judge does not read its excerpts from."""
        paragraphs = neutral_text()
        words = paragraphs[self.choose.randrange(len(paragraphs) // 2) * 2 + 1].split()
        start = self.choose.randrange(max(1, len(words) - NEUTRAL_WORDS))
        return (), " ".join(words[start : start + NEUTRAL_WORDS])
