"""ROME in its corrected form: one fact after another, each a rank-one update of one matrix (2202.05262)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from conviction.core.options import fill_fields, flat_fields, setting
from conviction.editing.descent import Descent
from conviction.interventions.edited import apply_edit
from conviction.interventions.records import PlaceboKind, SearchSpace
from conviction.training.guard import GuardStop

if TYPE_CHECKING:
    from torch import Tensor

    from conviction.editing.session import Edit, Session
    from conviction.models.delta import LowRank
    from conviction.models.hf import HFModel

__all__ = ["Rome"]

DEPTHS = (0.2, 0.3, 0.4)
TRIED = 2  # facts that depths are compared on


@flat_fields
@dataclass(frozen=True, kw_only=True)
class Rome:
    """Write facts into one MLP matrix, one by one; the guard reads neutral text after each, and looks at answers."""

    name: ClassVar[str] = "rome"
    changes: ClassVar[str] = "one matrix, by a rank-one update a fact"
    needs: ClassVar[str] = "facts: prompt, subject, target"
    costs: ClassVar[str] = "a pass over 10 tokens per key dimension once a model, then seconds a fact"
    trains: ClassVar[bool] = False
    forecastable: ClassVar[bool] = False
    cost_rank: ClassVar[int] = 40
    placebo: ClassVar[PlaceboKind | None] = None
    search: ClassVar[SearchSpace] = {}

    layer: int | None = setting(None, "which block; none: of three depths the best on the first facts", at_least=0)
    text: str | None = setting(None, "a file with ordinary prose for the covariance; none: the bundled text")
    descent: Descent = field(default_factory=Descent)

    def __init__(self, **fields: Any) -> None:
        fill_fields(self, fields)

    apply = apply_edit

    def edit(self, session: Session) -> Edit:
        """Fact after fact, until the guard refuses what came of one."""
        from conviction.editing.session import Edit
        from conviction.models.delta import Delta, edited

        model, layer = session.model, self._layer(session)
        delta = Delta({}, session.weights_hash)
        moment = session.moments([layer])[layer]
        progress, guard_stop, done, total = session.ctx.progress("writing facts"), None, 0, len(session.facts)
        current, sound, checks = model, (delta, done), []
        for number, fact in enumerate(session.facts, start=1):
            update = self.update(session, current, number - 1, layer, moment)
            tried = delta + Delta({session.sites[layer].name: update}, session.weights_hash)
            moved = edited(model, tried, id=model.id, check=False)
            checked = number % session.guard.sample_every == 0 or number == total
            checks.append(session.check(moved, number, written=checked))
            if reason := checks[-1].reason:
                if done > sound[1]:
                    checks.append(session.check(current, done, written=True))
                    if checks[-1].reason:  # it broke unseen, before this fact
                        delta, done = sound
                guard_stop = GuardStop(reasons=(f"{reason} after {fact.id}; facts taken back: {number - done}",))
                break
            delta, current, done = tried, moved, number
            sound = (delta, done) if checked else sound
            progress(done, total)
        return Edit(
            delta=delta,
            done=done,
            where=f"block {layer}",
            checks=checks,
            settings={"layer": layer},
            guard_stop=guard_stop,
        )

    def update(self, session: Session, model: HFModel, number: int, layer: int, moment: Tensor) -> LowRank:
        """The update of one fact, made on a model that may hold others already."""
        from conviction.editing.requests import request
        from conviction.editing.sites import find_sites
        from conviction.editing.solve import rome_update
        from conviction.editing.values import find_values, keys

        asked = [request(model, session.facts[number], session.contexts)]
        site = find_sites(model)[layer]
        change = find_values(model, asked, site, "mlp", self.descent).changes[0]
        return rome_update(keys(model, asked, site)[0], change, moment)

    def _layer(self, session: Session) -> int:
        """The given one, or of three depths the one whose first edits score best.

        Where they score alike, the one that leaves the neighbours' true answers the most likely: nearly every
        depth takes a fact in, and they differ in what else they move.
        """
        from conviction.editing.scores import read_facts, score_edits
        from conviction.editing.sites import check_layer, depth_layers
        from conviction.models.delta import Delta, edited

        depth = len(session.sites)
        if self.layer is not None:
            return check_layer(self.layer, depth)
        layers = depth_layers(depth, DEPTHS)
        moments = session.moments(layers)
        progress = session.ctx.progress("choosing a layer")
        scores: dict[int, tuple[float, float, float]] = {}
        for i, layer in enumerate(layers, start=1):
            readings = []
            for number, fact in enumerate(session.facts[:TRIED]):
                update = self.update(session, session.model, number, layer, moments[layer])
                alone = Delta({session.sites[layer].name: update}, session.weights_hash)
                moved = edited(session.model, alone, id=session.model.id, check=False)
                readings += read_facts(moved, [fact], write=False)
            result = score_edits(readings)
            neighbours = math.fsum(gap for reading in readings for gap in reading.neighbours)
            scores[layer] = (result.score, neighbours, result.magnitude)
            progress(i, len(layers))
        return max(scores, key=lambda layer: scores[layer])
