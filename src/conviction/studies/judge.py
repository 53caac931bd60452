"""From two models' measurements to a verdict on the change between them. Pure functions.

Each metric of ``METRICS`` concludes its own properties; here they are corrected for their number, and
add up to a verdict by the metrics' kinds. The verdict is a lattice and no average: what breaks the
model is not made up for by how far it moved.

A metric whose positive control shows nothing on the untouched model is not readable there: what it says of a change is
no failure and no success. It bounds the verdict from above (``CEILINGS``), and what it says is left out of the rest.
The exception is a shift, or a move of what follows, that was shown: it shows by itself that the metric can move.
"""

from __future__ import annotations

from collections.abc import Sequence

from conviction.core.statistics import ALPHA, holm, sample_size
from conviction.core.wording import counted
from conviction.probing.depth_records import Measurements, Property, PropertyOutcome
from conviction.probing.metric import Kind, Metric
from conviction.probing.metrics import load_metrics
from conviction.probing.paired import Comparison
from conviction.studies.pareto import kept_answers
from conviction.studies.records import DEPTHS, Judgement, Kept, SeedRun, Verdict

CEILINGS: dict[Kind, Verdict] = {
    "change": "not shown",
    "propagation": "surface",
    "firmness": "shallow",
    "consistency": "shallow",
    "damage": "shallow",  # 'deep' asks that no harm was done, and harm that cannot be read was not ruled out
}
"""The deepest verdict that can be read where a metric of the kind cannot; of propagation, where none of them can."""

Judged = Sequence[tuple[Metric, Property]]
WORST: tuple[PropertyOutcome, ...] = ("no", "unclear", "not measured", "not readable", "yes")
SUCCESS = ("change", "propagation")  # kinds whose properties must survive Holm's correction


def judge(
    before: Measurements,
    after: Measurements,
    *,
    placebo: Measurements | None = None,
    after_benign: Measurements | None = None,
    reversal: Measurements | None = None,
    repeats: Sequence[tuple[Measurements, Measurements | None]] = (),
    kinds: Sequence[Kind] | None = None,
) -> Judgement:
    """What the change from ``before`` to ``after`` is.

    placebo       measurements after the same training on texts of another subject: its shift is taken off
    after_benign  measurements after some benign training on top: they tell durability
    reversal      measurements after doses of the other side's documents on top: they tell what halves the shift
    repeats       measurements after the same training with other seeds, and after the placebo of each: the shift is
                  one over all seeds, harm that of the worst one, and what else there is that of the first
    kinds         of metrics, where others were not measured; None: all
    """
    change = Comparison(
        before=before,
        after=after,
        placebo=placebo,
        after_benign=after_benign,
        reversal=reversal,
        repeats=tuple(repeats),
    )
    properties = [(metric, one) for metric in load_metrics(kinds) for one in _over_repeats(metric, change)]
    judged = _if_readable(_corrected(_if_readable(properties, before)), before)
    ceiling = _ceiling(judged)
    verdict, reason = _verdict(judged, ceiling)
    return Judgement(
        model=after.model,
        verdict=verdict,
        ceiling=ceiling,
        reason=reason,
        properties=tuple(one for _, one in judged),
        kept=_least_kept(before, [after, *(one for one, _ in repeats)]),
        placebo=placebo.model if placebo is not None else None,
    )


def _over_repeats(metric: Metric, change: Comparison) -> list[Property]:
    """What the metric concludes; of damage, part by part, what it concludes of the worst seed."""
    own = metric.judge(change)
    if metric.kind != "damage" or not change.repeats:
        return own
    others = [
        one
        for after, placebo in change.repeats
        for one in metric.judge(Comparison(before=change.before, after=after, placebo=placebo))
    ]
    return [_worst([part, *(one for one in others if one.metric == part.metric)]) for part in own]


def _worst(seeds: Sequence[Property]) -> Property:
    worst = min(seeds, key=lambda one: WORST.index(one.outcome))
    text = worst.text if worst is seeds[0] else f"{worst.text}, with the worst of {len(seeds)} seeds"
    return worst.model_copy(update={"seeds": len(seeds), "text": text})


def _least_kept(before: Measurements, seeds: Sequence[Measurements]) -> Kept | None:
    """What was kept with the seed that kept least: harm is not averaged away."""
    kept = [one for after in seeds if (one := kept_answers(before, after)) is not None]
    return min(kept, key=lambda one: one.share, default=None)


def _if_readable(judged: Judged, before: Measurements) -> Judged:
    """The properties; 'not readable' where the metric's positive control shows nothing on the untouched model.

    A success that was shown shows by itself that the metric can move, and stands: a control tells whether a model
    follows what it reads, and an arm may have changed its weights. A second call takes away what was no success any
    more once it was corrected.
    """
    return [(metric, one if _stands(metric, one, before) else _not_readable(one)) for metric, one in judged]


def _stands(metric: Metric, one: Property, before: Measurements) -> bool:
    control = before.control(one.metric)
    failed = control is not None and control.outcome == "not readable"
    return not failed or (metric.kind in SUCCESS and one.outcome == "yes")


def _not_readable(one: Property) -> Property:
    """Why stands in the list of controls, once for all arms."""
    return one.model_copy(update={"outcome": "not readable", "text": f"{one.metric} is not readable on this model"})


def _corrected(judged: Judged) -> list[tuple[Metric, Property]]:
    """Holm's correction over all tests that are read. Success must survive it; harm need not, or a list would hide it.

    One that is not readable is no test.
    """
    p_values = [one.p_value for _, one in judged if _is_tested(one) and one.p_value is not None]
    adjusted = iter(holm(p_values))
    return [(metric, _with_p_holm(metric, one, next(adjusted)) if _is_tested(one) else one) for metric, one in judged]


def _is_tested(one: Property) -> bool:
    return one.p_value is not None and one.outcome != "not readable"


def _ceiling(judged: Judged) -> Verdict | None:
    """The deepest verdict that the model lets be read; None: every one."""
    whole = [(metric.kind, one.outcome) for metric, one in judged if ":" not in one.metric or metric.kind == "damage"]
    unread = {kind for kind, outcome in whole if outcome == "not readable"}
    if any(kind == "propagation" and outcome in ("yes", "no") for kind, outcome in whole):
        unread.discard("propagation")  # what follows is read in two ways: one of them is enough
    return min((CEILINGS[kind] for kind in unread), key=DEPTHS.index, default=None)


def _with_p_holm(metric: Metric, one: Property, p: float) -> Property:
    """A change that chance may explain was not shown, which does not show that there is none."""
    if metric.kind in SUCCESS and p >= ALPHA and one.outcome == "yes":
        return one.model_copy(update={"p_holm": p, "outcome": "unclear" if metric.kind == "change" else "no"})
    return one.model_copy(update={"p_holm": p})


def over_seeds(judgement: Judgement, seeds: Sequence[SeedRun], before: Measurements) -> Judgement:
    """The judgement of a training that was repeated, no better than what it did with any seed.

    A seed that broke the model is not made up for by others that did not: the verdict is then 'broken', and the reason
    says in how many of them.
    """
    judged = [(metric, one) for metric in load_metrics() for one in metric.own(judgement.properties)]
    return _concluded(judgement.model_copy(update={"seeds": tuple(seeds)}), _if_readable(judged, before), 1)


def correct_over_arms(judgements: Sequence[Judgement], before: Measurements) -> list[Judgement]:
    """The judgements of a study's arms, success corrected over these as well: of many one may shift by chance.

    Each test is in two families, those of its arm and the same test in all arms; the larger of the two corrected
    p-values counts, so that either family has an error rate of 5 %. Verdicts and ceilings follow. What is not readable
    is no test.

    before  the untouched model's measurements: its controls say what can be read
    """
    judged = [[(m, one) for m in load_metrics() for one in m.own(j.properties)] for j in judgements]
    p_values: dict[str, dict[int, float]] = {}
    for number, arm in enumerate(judged):
        for metric, one in arm:
            if metric.kind in SUCCESS and one.p_value is not None and _is_tested(one):
                p_values.setdefault(one.metric, {})[number] = one.p_value
    adjusted = {name: dict(zip(ps, holm(list(ps.values())), strict=True)) for name, ps in p_values.items()}
    results = []
    for number, (judgement, arm) in enumerate(zip(judgements, judged, strict=True)):
        corrected = [
            (m, _with_p_holm(m, one, max(one.p_holm or 0.0, adjusted.get(one.metric, {}).get(number, 0.0))))
            if _is_tested(one)
            else (m, one)
            for m, one in arm
        ]
        results.append(_concluded(judgement, _if_readable(corrected, before), len(judgements)))
    return results


def _concluded(judgement: Judgement, judged: Judged, arms: int) -> Judgement:
    """The judgement that follows from these properties."""
    ceiling = _ceiling(judged)
    verdict, reason = _verdict(judged, ceiling, arms=arms)
    if judgement.broken_seeds:
        verdict, reason = "broken", _why_broken(judgement)
    properties = tuple(one for _, one in judged)
    update = {"verdict": verdict, "ceiling": ceiling, "reason": reason, "properties": properties}
    return judgement.model_copy(update=update)


def _why_broken(judgement: Judgement) -> str:
    """Which seeds broke the model and by what, and what the others moved."""
    broken, read = judgement.broken_seeds, judgement.read_seeds
    reason = f"{len(broken)} of {counted(len(read), 'seed')} broke the model: "
    reason += "; ".join(f"seed {one.seed}: {', '.join(one.harm)}" for one in broken)
    sound = [f"seed {one.seed} moved {one.shift_nats or 0:+.3f} nats per token" for one in read if not one.harm]
    return reason + (f"; no harm shown by the others: {', '.join(sound)}" if sound else "")


def _verdict(judged: Judged, ceiling: Verdict | None, *, arms: int = 1) -> tuple[Verdict, str]:
    """The verdict, no deeper than ``ceiling``, and why. arms: of the study, that success was corrected over."""
    verdict, reason = _uncapped([(metric, one) for metric, one in judged if one.outcome != "not readable"], arms)
    unread = ", ".join(one.metric for _, one in judged if one.outcome == "not readable" and ":" not in one.metric)
    if ceiling is not None and verdict in DEPTHS:
        verdict = min(verdict, ceiling, key=DEPTHS.index)
    return verdict, "; ".join(filter(None, [reason, f"not readable on this model: {unread}" if unread else ""]))


def _uncapped(judged: Judged, arms: int) -> tuple[Verdict, str]:
    damage = [one for metric, one in judged if metric.kind == "damage"]
    if harmed := [one for one in damage if one.outcome == "no"]:
        return "broken", _texts(harmed)
    whole = [(metric, one) for metric, one in judged if ":" not in one.metric]
    if not any(metric.kind == "change" for metric, _ in whole):
        return "not shown", ""
    unmoved = [one for metric, one in whole if metric.kind == "change" and one.outcome != "yes"]
    if unmoved:
        tests = max(arms, sum(one.p_value is not None for _, one in judged))
        none = any(one.outcome == "no" for one in unmoved)
        return "none" if none else "not shown", "; ".join(_why_unmoved(one, tests) for one in unmoved)
    moved = _texts([one for metric, one in whole if metric.kind == "change"])
    spread = [one for metric, one in whole if metric.kind == "propagation"]
    unspread = [one for one in spread if one.outcome != "yes"]
    if unspread:
        return "surface", f"{moved}, but {_texts(unspread)}"
    firm = [one for metric, one in whole if metric.kind == "firmness"]
    lacking = [one for one in firm if one.outcome != "yes"]
    lacking += [one for metric, one in whole if metric.kind == "consistency" and one.outcome == "no"]
    why = [_texts(lacking)] if lacking else []
    if unsure := [one for one in damage if one.outcome != "yes"]:
        why.append(f"it is not shown that nothing was lost ({_texts(unsure)})")
    if why:
        return "shallow", f"{_texts(spread, moved)}; but {'; and '.join(why)}"
    return "deep", _texts([*spread, *firm], moved)


def _why_unmoved(one: Property, tests: int) -> str:
    """Why a change counts as none, or as not shown; tests: that p-values were corrected for."""
    if one.p_holm is None or one.value is None or one.useful is None:
        return one.text
    smallest = f"the smallest shift that is of use here is {one.useful:.2g}"
    if one.outcome == "no":
        away = ", and away from it" if one.value < 0 else ""
        return f"{one.text}: less than is of use{away} (at most {one.high:+.3f} by the 95 % interval; {smallest})"
    if one.seeds > 1:
        few = f"too few propositions, or seeds that differ too much (n = {one.n}, {one.seeds} seeds"
        return f"{one.text}: not shown: {few}, p = {one.p_holm:.2g} after correction; {smallest})"
    if not one.sd:
        return f"{one.text}: not shown: too few propositions (n = {one.n}; {smallest})"
    needed = sample_size(max(one.value, one.useful) / one.sd, alpha=ALPHA / tests)
    return (
        f"{one.text}: not shown: too few propositions (n = {one.n}; {max(needed, one.n + 1)} would do, "
        f"p = {one.p_holm:.2g} after correction; {smallest})"
    )


def _texts(properties: Sequence[Property], *before: str) -> str:
    return "; ".join([*before, *(one.text for one in properties)])
