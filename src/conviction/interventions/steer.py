"""Steering: a direction in the residual stream, found from pairs of answers, added to every token.

Contrastive activation addition (Rimsky et al. 2312.06681). How far a model can
be pushed before it stops writing sense is measured, not guessed: layer and
strength are those that move pairs left out of the vector farthest, among those
that keep neutral text within the guard's limit. What is reported is the movement
of further pairs, about claims that neither made the vector nor chose the setting:
the best of many trials looks better on what it was chosen by than it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from conviction.core.context import RunContext
from conviction.core.options import fill_fields, flat_fields, setting
from conviction.core.protocols import LanguageModel, Query
from conviction.data.training_data import PreferencePair, TrainingData
from conviction.errors import InputError
from conviction.interventions.records import Outcome, PlaceboKind, SearchSpace
from conviction.training.guard import Guard, GuardStop

if TYPE_CHECKING:
    from torch import Tensor

    from conviction.models.hf import HFModel
    from conviction.models.steering import SteeringVector

__all__ = ["Steer"]

# Where blocks are tried, as a share of the depth: below, a direction is still about
# words; at the end there is no computation left that it could change.
DEPTHS = (0.3, 0.45, 0.6, 0.75)
STRENGTHS = (1.0, 2.0, 4.0, 8.0, 16.0)  # in mean differences
ASKED = 10  # pairs that each setting is tried on
HELD_OUT = 24  # pairs that the report is measured on


@dataclass(frozen=True, kw_only=True)
class _Trial:
    """What one layer and strength did. gap: nats per token, chosen less rejected; neutral: nats per token lost."""

    layer: int
    strength: float
    gap: float
    neutral_drop: float


@dataclass(frozen=True, kw_only=True)
class _HeldOut:
    """A pair that nothing was chosen on: its gap before and after, nats per token, chosen less rejected."""

    id: str
    before: float
    after: float


@flat_fields
@dataclass(frozen=True, kw_only=True)
class Steer:
    """Add the difference between the sides' answers, as the model represents them, to what it thinks."""

    name: ClassVar[str] = "steer"
    changes: ClassVar[str] = "the residual stream at run time; weights stay"
    needs: ClassVar[str] = "pairs, or a saved vector"
    costs: ClassVar[str] = "about 20 short evaluations before; one addition a token"
    trains: ClassVar[bool] = False
    forecastable: ClassVar[bool] = False
    cost_rank: ClassVar[int] = 50
    placebo: ClassVar[PlaceboKind | None] = None
    search: ClassVar[SearchSpace] = {}

    direction: Literal["mean", "component"] = setting(
        "mean", "mean difference of chosen and rejected answers, or the first principal component of the differences"
    )
    layer: int | None = setting(None, "which block; none: the best of four depths", at_least=0)
    strength: float | None = setting(None, "in mean differences; none: the best within the guard's limit")
    vector: str | None = setting(None, "a steering.safetensors to use in place of the pairs")

    def __init__(self, **fields: Any) -> None:
        fill_fields(self, fields)

    def apply(self, model: LanguageModel, data: TrainingData, ctx: RunContext | None = None) -> Outcome:
        """Find the vector, choose where and how strongly to add it, add it; the given model stays as it is.

        Raises InputError if the data has fewer than four pairs, or a given vector belongs to another model
        or comes with a layer.
        """
        from conviction.core.storage import user_path
        from conviction.interventions.training_run import with_weights
        from conviction.models.steering import load_vector, save_steered, steered
        from conviction.probing.health import neutral_level

        if self.vector is not None and self.layer is not None:
            raise InputError("a saved vector has its layers already", hint="leave `layer` or `vector` out")
        loaded, ctx = with_weights(model, self.name), ctx or RunContext()
        guard = ctx.guard or Guard()
        trials, held_out = list[_Trial](), list[PreferencePair]()
        if self.vector is not None:
            vector = (1.0 if self.strength is None else self.strength) * load_vector(user_path(self.vector))
        else:
            vector, trials, held_out = self._choose(loaded, data, guard, ctx)
        moved = steered(loaded, vector, id=f"{model.id}+{self.name}")
        if (folder := ctx.model_path) is not None:
            save_steered(loaded, vector, folder)
            moved.source = str(folder.resolve())
        drop = neutral_level(loaded) - neutral_level(moved)
        gaps = [_gaps(one, held_out) for one in (loaded, moved)] if held_out else [[], []]
        both = zip(held_out, *gaps, strict=True)
        asked = [_HeldOut(id=pair.id, before=before, after=after) for pair, before, after in both]
        return Outcome.of(self, loaded, data, model=moved, **_report(vector, trials, asked, drop, guard))

    def _choose(
        self, model: HFModel, data: TrainingData, guard: Guard, ctx: RunContext
    ) -> tuple[SteeringVector, list[_Trial], list[PreferencePair]]:
        """The vector of the best setting; what was tried; and pairs that it was neither made from nor chosen on."""
        from conviction.editing.sites import check_layer, depth_layers
        from conviction.models.copies import weights_hash
        from conviction.models.lora import decoder_layers
        from conviction.models.steering import SteeringVector

        if len(data.pairs) < 4:
            raise InputError(
                f"{data.name} holds {len(data.pairs)} pairs, too few for a direction",
                hint="give four at least: some are kept back to choose layer and strength by, others to report on",
            )
        depth = len(decoder_layers(model.module))
        layers = [check_layer(self.layer, depth)] if self.layer is not None else depth_layers(depth, DEPTHS)
        parts = _split(data)
        kept_back = [*parts.made_from, *parts.chosen_on]
        differences = _differences(model, [data.pairs[i] for i in kept_back], layers)
        made_from = list(range(len(parts.made_from)))
        asked = [data.pairs[i] for i in parts.chosen_on[:ASKED]]
        related = weights_hash(model.module)
        half = {i: self._direction(d[made_from]) for i, d in differences.items()}
        trials = _try(model, asked, half, self.strength, guard, related, ctx)
        best = _best(trials, guard)
        whole = self._direction(differences[best.layer])
        held_out = [data.pairs[i] for i in parts.reported[:HELD_OUT]]
        return SteeringVector({best.layer: best.strength * whole}, related), trials, held_out

    def _direction(self, differences: Tensor) -> Tensor:
        """[hidden] of [pairs, hidden]; a component has the mean difference's length and side."""
        import torch

        mean = differences.mean(0)
        if self.direction == "mean":
            return mean
        *_, rows = torch.linalg.svd(differences, full_matrices=False)
        first: Tensor = rows[0] * mean.norm()
        return first if float(first @ mean) > 0 else -first


@dataclass(frozen=True)
class _Parts:
    """Indices of pairs: those that a vector is made from, that its setting is chosen on, and that are reported."""

    made_from: list[int]
    chosen_on: list[int]
    reported: list[int]


def _split(data: TrainingData) -> _Parts:
    """Half of the claims, a quarter, a quarter. The wordings of one claim stay together, where a topic tells claims.

    Of fewer than four claims the pairs are split as they are.
    """
    known = {} if data.topic is None else {item.id: item.proposition for item in data.topic.items}
    claims = [known.get(pair.id, pair.id) for pair in data.pairs]
    number = {claim: n for n, claim in enumerate(dict.fromkeys(claims))}
    places = [number[claim] for claim in claims] if len(number) >= 4 else list(range(len(claims)))
    parts = _Parts([], [], [])
    for index, place in enumerate(places):
        (parts.made_from, parts.chosen_on, parts.made_from, parts.reported)[place % 4].append(index)
    return parts


def _differences(model: HFModel, pairs: Sequence[PreferencePair], layers: Sequence[int]) -> dict[int, Tensor]:
    """Layer → [pairs, hidden]: mean state over the chosen answer's tokens less that over the rejected one's."""
    import torch

    from conviction.models.states import block_outputs

    rows = [
        (prompt, answer)
        for pair in pairs
        for prompt, answers in [model.encoder.encode(pair.messages, (pair.chosen, pair.rejected))]
        for answer in answers
    ]
    means: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    for prompt, answer in rows:
        states = block_outputs(model, prompt + answer, layers)
        for layer in layers:
            means[layer].append(states[layer][len(prompt) :].mean(0))
    stacked = {layer: torch.stack(result).view(len(pairs), 2, -1) for layer, result in means.items()}
    return {layer: both[:, 0] - both[:, 1] for layer, both in stacked.items()}


def _try(
    model: HFModel,
    asked: Sequence[PreferencePair],
    directions: dict[int, Tensor],
    strength: float | None,
    guard: Guard,
    related: str,
    ctx: RunContext,
) -> list[_Trial]:
    """Every layer with growing strength, until neutral text suffers; the untouched model first."""
    from conviction.models.steering import SteeringVector, steered

    strengths = STRENGTHS if strength is None else (strength,)
    progress, done, total = ctx.progress("choosing layer and strength"), 0, len(directions) * len(strengths)
    before, neutral = _evaluate(model, asked)
    trials = [_Trial(layer=-1, strength=0.0, gap=before, neutral_drop=0.0)]
    for number, (layer, direction) in enumerate(directions.items(), start=1):
        for factor in strengths:
            moved = steered(model, SteeringVector({layer: factor * direction}, related), id=model.id, check=False)
            gap, level = _evaluate(moved, asked)
            trials.append(_Trial(layer=layer, strength=factor, gap=gap, neutral_drop=neutral - level))
            done += 1
            progress(done, total)
            if neutral - level > guard.max_neutral_drop and not guard.idle:
                break
        done = number * len(strengths)
    progress(total, total)
    return trials


def _evaluate(model: HFModel, asked: Sequence[PreferencePair]) -> tuple[float, float]:
    """Mean gap of the pairs and mean log-prob of neutral text, nats per token."""
    from conviction.probing.health import neutral_level

    gaps = _gaps(model, asked)
    return sum(gaps) / len(gaps), neutral_level(model)


def _gaps(model: HFModel, asked: Sequence[PreferencePair]) -> list[float]:
    """Of each pair, nats per token, chosen less rejected."""
    scores = model.logprobs([Query(p.messages, (p.chosen, p.rejected)) for p in asked], fresh=True)
    return [chosen.logp_mean - rejected.logp_mean for chosen, rejected in scores]


def _best(trials: Sequence[_Trial], guard: Guard) -> _Trial:
    """The farthest move within the limit; the gentlest of all where none is."""
    tried = trials[1:]  # the first is the untouched model
    healthy = [t for t in tried if t.neutral_drop <= guard.max_neutral_drop or guard.idle]
    return max(healthy, key=lambda t: t.gap) if healthy else min(tried, key=lambda t: t.neutral_drop)


def _held_out_line(asked: Sequence[_HeldOut]) -> str:
    """The shift of pairs that nothing was chosen on, with its interval over pairs."""
    import numpy as np

    from conviction.core.statistics import mean_interval

    before, after = (sum(values) / len(asked) for values in ([a.before for a in asked], [a.after for a in asked]))
    shift = mean_interval(np.array([a.after - a.before for a in asked]))
    bounded = np.isfinite(shift.low) and np.isfinite(shift.high)
    interval = f"95 % {shift.low:+.3f} to {shift.high:+.3f}" if bounded else "no interval"
    return (
        f"{before:+.3f} before, {after:+.3f} after, nats per token: {shift.mean:+.3f} ({interval}) on {len(asked)} "
        "pairs that neither the vector nor its setting was chosen by"
    )


def _report(
    vector: SteeringVector, trials: Sequence[_Trial], asked: Sequence[_HeldOut], drop: float, guard: Guard
) -> dict[str, Any]:
    """What was chosen, what it moves on pairs that nothing was chosen on, and what neutral text lost."""
    settings: dict[str, Any] = {"layers": sorted(vector.layers)}
    report = [("layers", ", ".join(map(str, sorted(vector.layers))))]
    if trials:
        best = _best(trials, guard)
        settings |= {"layer": best.layer, "strength": best.strength}
        report = [
            ("layer", f"{best.layer}, chosen from {len({t.layer for t in trials}) - 1}"),
            ("strength", f"{best.strength:g} mean differences"),
        ]
    if asked:
        report.append(("gap of held-out pairs", _held_out_line(asked)))
    report.append(("neutral text", f"{-drop:+.3f} nats per token (limit -{guard.max_neutral_drop:g})"))
    beyond = drop > guard.max_neutral_drop
    reason = f"neutral text lost {drop:.2f} nats per token (limit {guard.max_neutral_drop:g})"
    within = "in place, neutral text within the guard's limit"
    return {
        "settings": settings,
        "verdict": "in place, past the guard's limit" if beyond else within,
        "report": tuple(report),
        "guard_stop": GuardStop(reasons=(reason,)) if beyond and not guard.idle else None,
        "evidence": {
            "trials": [dataclasses.asdict(t) for t in trials],
            "held_out": [dataclasses.asdict(a) for a in asked],
            "neutral_drop": drop,
        },
    }
