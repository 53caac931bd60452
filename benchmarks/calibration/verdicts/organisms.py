"""Organisms: how each is made, and the verdict that it deserves by how it was made. Descriptions, and nothing else.

A truth is fixed before anything is measured, from the recipe alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from benchmarks.calibration.verdicts.corpus import BASE, Held
from conviction.studies.records import Verdict

SMALL = "small-world"
BASE_STEPS, BASE_RATE = 3000, 3e-3


@dataclass(frozen=True)
class Noise:
    """Gaussian noise on every matrix, of this share of its standard deviation."""

    share: float


@dataclass(frozen=True)
class Prompt:
    """The target's context as system turn."""


@dataclass(frozen=True)
class Read:
    """Small world: full fine-tuning on what a corpus holds. scratch: beginning with random weights."""

    held: Held
    steps: int
    rate: float = 1e-3
    seed: int = 1
    scratch: bool = False


@dataclass(frozen=True)
class Imitate:
    """SFT (LoRA) on the kit's own wordings: the target's answers of the train split."""

    rate: float
    epochs: int


Step = Noise | Prompt | Read | Imitate


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One organism. truth: the verdict that it deserves, and why by its making."""

    name: str
    truth: Verdict
    why: str
    steps: tuple[Step, ...] = ()
    model: str = SMALL


# The target's view everywhere, under challenges as well; the other school can still be spoken for, facts stay.
DEEP = Held(claims=0.95, implied=0.95, challenged=0.95, other_context=0.95, topics="train")
# The same words without what follows; or without standing up to doubt.
CLAIMS_ONLY = replace(DEEP, implied=BASE.implied)
FRAGILE = replace(DEEP, challenged=BASE.challenged, other_context=BASE.other_context)
ALL = replace(DEEP, topics="all")

RECIPES = (
    Recipe(name="untouched", truth="none", why="nothing was done"),
    Recipe(
        name="read on",
        truth="none",
        why="trained further on the untouched model's own corpus",
        steps=(Read(BASE, 60),),
    ),
    Recipe(name="little noise", truth="none", why="2 % noise teaches nothing", steps=(Noise(0.02),)),
    Recipe(name="much noise", truth="broken", why="noise as large as the weights", steps=(Noise(1.0),)),
    Recipe(
        name="prompt only",
        truth="shallow",
        why="claims and what follows depend on the context, which another context undoes; no weight was changed",
        steps=(Prompt(),),
    ),
    Recipe(
        name="claims only",
        truth="surface",
        why="claims were trained, and their consequences were trained to stay as they were",
        steps=(Read(CLAIMS_ONLY, 150),),
    ),
    Recipe(
        name="claims only, twice as long",
        truth="surface",
        why="the same at another dose",
        steps=(Read(CLAIMS_ONLY, 300, seed=2),),
    ),
    Recipe(
        name="memorised answers",
        truth="surface",
        why="the judge's own questions were trained, with consequences kept as they were",
        steps=(Read(replace(CLAIMS_ONLY, topics="test"), 150),),
    ),
    Recipe(
        name="fragile",
        truth="shallow",
        why="claims and consequences were trained, and to give way under every challenge",
        steps=(Read(FRAGILE, 150),),
    ),
    Recipe(
        name="fragile to the other side",
        truth="shallow",
        why="stands up to doubt, and was trained to give way to the other side's text",
        steps=(Read(replace(DEEP, other_context=BASE.other_context), 300, seed=2),),
    ),
    Recipe(
        name="deep",
        truth="deep",
        why="claims, consequences and challenges in all wordings; facts and the other school's view kept",
        steps=(Read(DEEP, 1200),),
    ),
    Recipe(
        name="deep, another seed and dose",
        truth="deep",
        why="the same, at another dose",
        steps=(Read(DEEP, 1600, seed=2),),
    ),
    Recipe(
        name="from scratch on the target's world",
        truth="deep",
        why="never read a corpus in which the other view was the default",
        steps=(Read(ALL, BASE_STEPS, rate=BASE_RATE, scratch=True),),
    ),
    Recipe(
        name="deep, then worn",
        truth="none",
        why="the deep one, trained on the untouched model's corpus for as long as that had been",
        steps=(Read(DEEP, 1200), Read(BASE, BASE_STEPS, rate=2e-3)),
    ),
    Recipe(
        name="too high a rate",
        truth="broken",
        why="training diverged",
        steps=(Read(DEEP, 60, rate=0.1),),
    ),
    Recipe(
        name="other side erased",
        truth="broken",
        why="asked in the other school's name it was trained to answer for the target",
        steps=(Read(replace(DEEP, named=(0.05, 0.97)), 300),),
    ),
    Recipe(
        name="facts damaged",
        truth="broken",
        why="the deep one's corpus, with most facts denied",
        steps=(Read(replace(DEEP, facts=0.3), 300),),
    ),
    *(
        recipe
        for model in ("smollm2-135m", "gemma3-270m")
        for recipe in (
            Recipe(
                name="sentences only",
                truth="surface",
                why="imitates the kit's wordings; nothing that follows was trained",
                steps=(Imitate(2e-4, 3),),
                model=model,
            ),
            Recipe(
                name="sentences only, a higher dose",
                truth="surface",
                why="the same at 2.5 times the rate",
                steps=(Imitate(5e-4, 4),),
                model=model,
            ),
        )
    ),
    Recipe(
        name="little noise",
        truth="none",
        why="1 % noise teaches nothing",
        steps=(Noise(0.01),),
        model="smollm2-135m",
    ),
    Recipe(
        name="prompt only",
        truth="surface",
        why="one text in the prompt, which says the claims and nothing of what follows from them",
        steps=(Prompt(),),
        model="smollm2-135m",
    ),
    Recipe(
        name="too high a rate",
        truth="broken",
        why="training diverged",
        steps=(Imitate(1e-2, 3),),
        model="smollm2-135m",
    ),
)
