"""What an edited model writes, against what it wrote before: neutral text can look well while these fall apart.

ROME on the embedded model wrote "hormone hormone hormone" or "you're the day away" wherever a subject of its forty
facts came up, and sense everywhere else; neutral text had lost less than a tenth of a nat.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from conviction.core.options import build
from conviction.core.protocols import Generation, Message, Query, chat
from conviction.data.facts import Fact
from conviction.models.hf import HFModel
from conviction.training.drift import EVERYDAY, choose_samples, read_samples
from conviction.training.guard import Guard, sample_violations
from conviction.training.sensors import SENSORS, Threshold

__all__ = ["BaselineAnswers", "GenerationCheck", "baseline", "check"]

SUBJECT = "Tell me about {}."
CANDIDATES = 8


@dataclass(frozen=True)
class BaselineAnswers:
    """Questions of one kind, with what the untouched model answers (greedy), and the limits that its answers have."""

    about: str
    prompts: tuple[tuple[Message, ...], ...]
    before: tuple[Generation, ...]
    limits: Guard


@dataclass(frozen=True)
class GenerationCheck:
    """What was seen once a model held so many ``facts``. reason: why it may not stay so; None: it may."""

    facts: int
    reason: str | None = None
    readings: tuple[tuple[BaselineAnswers, Mapping[str, float], tuple[Generation, ...]], ...] = ()

    def summary(self) -> str:
        """Of the answers, in words."""
        return "; ".join(
            f"{kind.about}: {', '.join(s.show(sample[n]) for n, s in SENSORS.items() if s.show and n in sample)}"
            for kind, sample, _ in self.readings
        )

    def evidence(self) -> dict[str, Any]:
        """The guard's measures, and the answers before and after."""
        kinds = [
            {
                "about": asked.about,
                "sample": dict(sample),
                "answers": [
                    {"prompt": prompt[-1].content, "before": before.text, "after": after.text}
                    for prompt, before, after in zip(asked.prompts, asked.before, now, strict=True)
                ],
            }
            for asked, sample, now in self.readings
        ]
        return {"facts": self.facts, "reason": self.reason, "kinds": kinds}


def baseline(model: HFModel, facts: Sequence[Fact], guard: Guard) -> tuple[BaselineAnswers, ...]:
    """Questions about the facts' subjects, and everyday ones: of each kind four that the model answers without looping.

    Questions that the model's context has no room for are left out.
    """
    subjects = list(dict.fromkeys(fact.subject for fact in facts))
    spread = [subjects[i * len(subjects) // CANDIDATES] for i in range(min(CANDIDATES, len(subjects)))]
    kinds = {
        "the subjects": (
            [SUBJECT.format(subject) for subject in spread],
            _where_edited(guard),
        ),
        "everyday matters": (list(EVERYDAY), guard),
    }
    kept = []
    for about, (questions, limits) in kinds.items():
        asked = [p for q in questions if model.fits(Query(p := chat(q), ()), room=guard.sample_tokens)]
        if asked:
            prompts, before = choose_samples(asked, model.generate(asked, max_new_tokens=guard.sample_tokens))
            kept.append(BaselineAnswers(about, tuple(prompts), tuple(before), limits))
    return tuple(kept)


def _where_edited(guard: Guard) -> Guard:
    """The guard with its limits for answers that an edit is meant to change."""
    thresholds = [s.judge for s in SENSORS.values() if isinstance(s.judge, Threshold) and s.judge.where_edited != 1]
    return build(guard, {t.limit.name: t.where_edited * getattr(guard, t.limit.name) for t in thresholds})


def check(model: HFModel, asked: Sequence[BaselineAnswers], facts: int) -> GenerationCheck:
    """Ask the edited model the same."""
    prompts = [prompt for kind in asked for prompt in kind.prompts]
    tokens = asked[0].limits.sample_tokens if asked else 0
    answers = iter(model.generate(prompts, max_new_tokens=tokens) if prompts else [])
    readings, reasons = [], []
    for kind in asked:
        now = tuple(next(answers) for _ in kind.prompts)
        sample = read_samples(kind.prompts, kind.before, now)
        readings.append((kind, sample, now))
        if violations := sample_violations(sample, kind.limits):
            reasons.append(f"on {kind.about} {', '.join(violations)}")
    return GenerationCheck(facts, "; ".join(reasons) or None, tuple(readings))
