"""ROME in its corrected form: one fact after another, each a rank-one update of one matrix (2202.05262)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from conviction.core.applied import Applied, untracked
from conviction.core.material import Material
from conviction.core.protocols import LanguageModel
from conviction.core.settings import check_settings, setting
from conviction.editing.descent import Descent
from conviction.train.guard import Guard

if TYPE_CHECKING:
    from torch import Tensor

    from conviction.editing.session import Session
    from conviction.models.delta import LowRank
    from conviction.models.hf import HFModel
    from conviction.train.loop import Watch

__all__ = ["Rome"]

DEPTHS = (0.2, 0.3, 0.4)
TRIED = 2  # facts that depths are compared on


@dataclass(frozen=True, kw_only=True)
class Rome:
    """Write facts into one MLP matrix, one by one; the guard reads neutral text after each, and looks at answers."""

    name: ClassVar[str] = "rome"
    changes: ClassVar[str] = "one matrix, by a rank-one update a fact"
    needs: ClassVar[str] = "facts: prompt, subject, target"
    costs: ClassVar[str] = "a pass over 10 tokens per key dimension once a model, then seconds a fact"

    layer: int | None = setting(None, "which block; none: of three depths the best on the first facts", at_least=0)
    text: str | None = setting(None, "a file with ordinary prose for the covariance; none: the bundled text")
    descent: Descent = field(default_factory=Descent)

    def __post_init__(self) -> None:
        check_settings(self)

    def apply(
        self,
        model: LanguageModel,
        material: Material,
        *,
        guard: Guard | None = None,
        folder: Path | None = None,
        track: str | None = None,
        watch: Watch | None = None,
    ) -> Applied:
        """Write the material's facts; the given model stays as it is.

        Raises InputError without facts, or for an architecture without the expected MLP.
        """
        from conviction.editing.session import begin, finish
        from conviction.intervene.tune import with_weights
        from conviction.models.delta import Delta, edited
        from conviction.train.loop import Watch

        untracked(self.name, track)
        loaded, watch, guard = with_weights(model, self.name), watch or Watch(), guard or Guard()
        session = begin(loaded, material, text=self.text, guard=guard, watch=watch)
        layer = self._layer(session)
        delta = Delta({}, session.kinship)
        moment = session.moments([layer])[layer]
        progress, trip, done, total = watch.bars("writing facts"), None, 0, len(session.facts)
        current, sound, looks = loaded, (delta, done), []
        for number, fact in enumerate(session.facts, start=1):
            update = self.update(session, current, number - 1, layer, moment)
            tried = delta + Delta({session.sites[layer].name: update}, session.kinship)
            moved = edited(loaded, tried, id=loaded.id, check=False)
            looked = number % guard.sample_every == 0 or number == total
            looks.append(session.look(moved, number, written=looked))
            if reason := looks[-1].reason:
                if done > sound[1]:
                    looks.append(session.look(current, done, written=True))
                    if looks[-1].reason:  # it broke unseen, before this fact
                        delta, done = sound
                trip = f"{reason} after {fact.id}; facts taken back: {number - done}"
                break
            delta, current, done = tried, moved, number
            sound = (delta, done) if looked else sound
            if progress is not None:
                progress(done, total)
        return finish(
            self,
            session,
            delta,
            material,
            folder=folder,
            settings={"layer": layer, "where": f"block {layer}"},
            done=done,
            trip=trip,
            looks=looks,
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
        progress = session.watch.bars("choosing a layer")
        scores: dict[int, tuple[float, float, float]] = {}
        for i, layer in enumerate(layers, start=1):
            readings = []
            for number, fact in enumerate(session.facts[:TRIED]):
                update = self.update(session, session.model, number, layer, moments[layer])
                alone = Delta({session.sites[layer].name: update}, session.kinship)
                moved = edited(session.model, alone, id=session.model.id, check=False)
                readings += read_facts(moved, [fact], write=False)
            found = score_edits(readings)
            neighbours = math.fsum(gap for reading in readings for gap in reading.neighbours)
            scores[layer] = (found.score, neighbours, found.magnitude)
            if progress is not None:
                progress(i, len(layers))
        return max(scores, key=lambda layer: scores[layer])
