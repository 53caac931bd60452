"""What ROME and MEMIT have in common: from facts, through what each of them writes, to an outcome.

Such a class states ``text`` and ``edit``, and takes ``apply`` from here.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

from conviction.core.context import RunContext
from conviction.core.protocols import LanguageModel
from conviction.data.training_data import TrainingData
from conviction.errors import ModelError
from conviction.interventions.records import Outcome
from conviction.training.guard import GuardStop

if TYPE_CHECKING:
    from conviction.editing.scores import EditScores
    from conviction.editing.session import Edit, Session

__all__ = ["Edits", "apply_edit"]

SHOWN = 5
UNCHANGED = 1e-4  # nats per token: less is no edit


class Edits(Protocol):
    """What an intervention that writes facts states besides its traits."""

    @property
    def name(self) -> str: ...
    @property
    def text(self) -> str | None: ...

    def edit(self, session: Session) -> Edit:
        """Write the session's facts, as far as the guard lets it; the session's model stays as it is."""
        ...


def apply_edit(self: Edits, model: LanguageModel, data: TrainingData, ctx: RunContext | None = None) -> Outcome:
    """Write the data's facts; the given model stays as it is.

    Raises InputError without facts, or for an architecture without the expected MLP.
    """
    from conviction.editing.session import begin
    from conviction.interventions.training_run import with_plain_weights

    loaded, notes = with_plain_weights(model, self.name)
    session = begin(loaded, data, text=self.text, ctx=ctx or RunContext())
    outcome = _verified(self, session, self.edit(session), data)
    return outcome.model_copy(update={"notes": (*notes, *outcome.notes)})


def _verified(intervention: Edits, session: Session, edit: Edit, data: TrainingData) -> Outcome:
    """Read the facts again, save the edit, and say what it did. Raises ModelError for one that changed nothing."""
    from conviction.editing.scores import read_facts, score_edits
    from conviction.models.delta import edited, save_edited

    done, seen = edit.done, [one for one in edit.checks if one.readings]
    moved = edited(session.model, edit.delta, id=f"{session.model.id}+{intervention.name}", check=False)
    facts, before = session.facts[:done], session.before[:done]
    after = read_facts(moved, facts)
    if done and max(abs(b.target - a.target) for b, a in zip(before, after, strict=True)) < UNCHANGED:
        raise ModelError(
            "the edit changed nothing: no target became likelier or less likely",
            hint="its update is lost in the rounding of the weights: try --dtype fp32, more steps or a larger clamp",
        )
    old, new, drop = score_edits(before), score_edits(after), session.neutral_drop(moved)
    evidence = {
        "scores": {"before": _finite(old), "after": _finite(new)},
        "neutral_drop": drop,
        "checks": [one.evidence() for one in seen],
        "facts": [
            {"statement": f.prompt, "target": f.target, "before": vars(b), "after": vars(a)}
            for f, b, a in zip(facts, before, after, strict=True)
        ],
    }
    report = (
        ("facts", f"{done} of {len(session.facts)} written, {edit.where}"),
        *_lines(old, new),
        ("neutral text", f"{-drop:+.3f} nats per token (limit -{session.guard.max_neutral_drop:g})"),
        *((("answers", seen[-1].summary()),) if seen else ()),
        *((f.prompt, f"{b.says!r} → {a.says!r}") for f, b, a in list(zip(facts, before, after, strict=True))[:SHOWN]),
    )
    if (folder := session.ctx.model_path) is not None:
        save_edited(session.model, edit.delta, folder)
        moved.source = str(folder.resolve())
    return Outcome.of(
        intervention,
        session.model,
        data,
        settings={**edit.settings, "where": edit.where},
        model=moved,
        verdict=_verdict(edit.guard_stop, within=drop <= session.guard.max_neutral_drop),
        report=report,
        guard_stop=edit.guard_stop,
        notes=session.notes,
        evidence=evidence,
    )


def _verdict(guard_stop: GuardStop | None, *, within: bool) -> str:
    if guard_stop:
        return "stopped by the guard"
    return "written, neutral text within the guard's limit" if within else "written, past the limit: the guard was off"


def _lines(old: EditScores, new: EditScores) -> list[tuple[str, str]]:
    names = {
        "efficacy": "new end likelier than the old one",
        "paraphrase": "the same in other words",
        "neighbourhood": "true end of neighbours still likelier",
    }
    lines = []
    for name, meaning in names.items():
        a, b = getattr(old, name), getattr(new, name)
        if not math.isnan(b):
            lines.append((name, f"{a:.0%} → {b:.0%} ({meaning})"))
    return lines


def _finite(scores: EditScores) -> dict[str, float | None]:
    """As JSON, which has no NaN."""
    return {name: None if math.isnan(value) else value for name, value in vars(scores).items()}
