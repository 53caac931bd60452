"""Which settings of a search are tried next: by what is expected of them, and by what others did. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from conviction.config.plan import Plan
from conviction.studies.tuning_records import Trial

PACE = ("strength", "learning_rate")  # settings of which less is gentler; the first is lowered first


def next_trial(plan: Plan, trials: Sequence[Trial], confirmed: int) -> int | None:
    """The number of the trial that is made next; None: no other.

    Of what trains so many are enough, if one of them went through with a healthy dose. What the guard stopped is
    followed by gentler settings: a forecast does not see every limit, and a run that breaks early has few doses.
    """
    tried = [trial for trial in trials if trial.made]
    waiting = [number for number, trial in enumerate(trials) if not trial.made]
    if not plan.intervention.trains:
        return next(iter(waiting), _unread(trials))
    if not tried:
        return next(iter(waiting), None)
    if len(tried) >= confirmed and any(trial.best is not None and trial.guard_stop is None for trial in tried):
        return None
    farther = [number for number in waiting if _goes_farther(trials[number], tried)]
    gentler = _gentler(trials, farther, [trial for trial in tried if trial.guard_stop is not None])
    if gentler is None and len(tried) >= confirmed and any(trial.best is not None for trial in tried):
        return None
    return gentler if gentler is not None else _another(trials, waiting)


def _another(trials: Sequence[Trial], waiting: Sequence[int]) -> int | None:
    """Of what was not tried the first that differs from all that was in more than the rate; else the first."""

    def besides_rate(trial: Trial) -> list[tuple[str, Any]]:
        return sorted((name, value) for name, value in trial.options.items() if name != "learning_rate")

    known = [besides_rate(trial) for trial in trials if trial.made]
    return next((n for n in waiting if besides_rate(trials[n]) not in known), next(iter(waiting), None))


def _unread(trials: Sequence[Trial]) -> int | None:
    """The trial that moved most, where it is not known yet what it breaks."""
    moved = [(trial.doses[0].shift_nats, number) for number, trial in enumerate(trials) if trial.doses]
    for _, number in sorted(moved, reverse=True):
        if not trials[number].doses[0].damage_read:
            return number
        if trials[number].best is not None:
            return None
    return None


def _gentler(trials: Sequence[Trial], waiting: Sequence[int], stopped: Sequence[Trial]) -> int | None:
    """The first that has less of the first of ``PACE`` than all that were stopped, and no more of the others."""
    for name in PACE if stopped else ():
        least = {one: min(_setting(trial, one) for trial in stopped) for one in PACE}
        for number in waiting:
            own = {one: _setting(trials[number], one) for one in PACE}
            if own[name] < least[name] and all(own[one] <= least[one] for one in PACE):
                return number
    return None


def _goes_farther(trial: Trial, tried: Sequence[Trial]) -> bool:
    """Whether its whole run goes farther than the best healthy dose so far: weights move by rate times steps."""
    if "learning_rate" not in trial.options:
        return True
    ways = [one.best.step * _setting(one, "learning_rate") for one in tried if one.best is not None]
    steps = max((one.steps or 0 for one in tried), default=0)
    return _setting(trial, "learning_rate") * steps > max(ways, default=-math.inf) if steps else True


def _setting(trial: Trial, name: str) -> float:
    """Its value; below all others where that is not searched."""
    return float(trial.options.get(name, -math.inf))
