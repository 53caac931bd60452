"""MEMIT: many facts at once, spread over several layers (2210.07229); AlphaEdit's projection if wanted."""

from __future__ import annotations

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
    from conviction.models.delta import Delta, LowRank

__all__ = ["Memit"]

DEEPEST = 0.3  # of the depth: the last of the layers that are written to, where none is given


@flat_fields
@dataclass(frozen=True, kw_only=True)
class Memit:
    """Write all facts together into the MLP matrices of neighbouring blocks."""

    name: ClassVar[str] = "memit"
    changes: ClassVar[str] = "a few matrices, by one low-rank update each"
    needs: ClassVar[str] = "facts: prompt, subject, target"
    costs: ClassVar[str] = "a pass over 10 tokens per key dimension once a model, then seconds a fact"
    trains: ClassVar[bool] = False
    forecastable: ClassVar[bool] = False
    cost_rank: ClassVar[int] = 30
    placebo: ClassVar[PlaceboKind | None] = None
    search: ClassVar[SearchSpace] = {}

    layer: int | None = setting(None, "the last block written to; none: at 0.3 of the depth", at_least=0)
    layers: int = setting(4, "how many blocks, up to the last", at_least=1)
    mom2_update_weight: float = setting(7500.0, "keys of ordinary text that old memories count for", above=0)
    null_space: bool = setting(False, "AlphaEdit: change only what ordinary text does not use")
    nullspace_threshold: float = setting(0.02, "energy of ordinary keys in the null space", above=0, below=1)
    ridge: float = setting(10.0, "damping of the null-space solution", above=0)
    text: str | None = setting(None, "a file with ordinary prose for the covariance; none: the bundled text")
    descent: Descent = field(default_factory=Descent)

    def __init__(self, **fields: Any) -> None:
        fill_fields(self, fields)

    apply = apply_edit

    def edit(self, session: Session) -> Edit:
        """All facts at once; none of them where the guard refuses what came of it."""
        from conviction.editing.session import Edit
        from conviction.editing.sites import check_layer
        from conviction.models.delta import Delta, edited

        model, depth = session.model, len(session.sites)
        last = check_layer(self.layer, depth) if self.layer is not None else round(DEEPEST * depth)
        layers = list(range(max(0, last - self.layers + 1), last + 1))
        delta = self.write(session, layers, self.wanted(session, layers[-1]))
        guard_stop, done = None, len(session.facts)
        check = session.check(edited(model, delta, id=model.id, check=False), done, written=True)
        if check.reason:
            guard_stop = GuardStop(reasons=(f"{check.reason}; all facts were taken back",))
            delta, done = Delta({}, session.weights_hash), 0
        where = f"blocks {layers[0]} to {layers[-1]}"
        return Edit(delta=delta, done=done, where=where, checks=[check], guard_stop=guard_stop)

    def wanted(self, session: Session, layer: int) -> Tensor:
        """[facts, hidden] what block ``layer`` is to put out at the subjects."""
        from conviction.editing.requests import request
        from conviction.editing.values import block_states, find_values

        asked = [request(session.model, fact, session.contexts) for fact in session.facts]
        site, bar = session.sites[layer], session.ctx.progress("finding values")
        return (
            block_states(session.model, asked, site)
            + find_values(session.model, asked, site, "block", self.descent, step=bar).changes
        )

    def write(self, session: Session, layers: list[int], wanted: Tensor) -> Delta:
        """The update of every layer, so that the last puts out ``wanted``; each sees what the ones before it did."""
        from conviction.editing.requests import request
        from conviction.editing.sites import find_sites
        from conviction.editing.values import keys_and_states, residual_scale
        from conviction.models.delta import Delta, edited

        model = session.model
        asked = [request(model, fact, session.contexts) for fact in session.facts]
        moments = session.moments(layers, damped=not self.null_space)
        delta, current = Delta({}, session.weights_hash), model
        for i, layer in enumerate(layers):
            sites = find_sites(current)
            keys, states = keys_and_states(current, asked, sites[layer], sites[layers[-1]])
            residuals = (wanted - states) / (len(layers) - i) / residual_scale(current, sites[layer], asked[0])
            update = self._solve(keys, residuals, moments[layer])
            delta += Delta({sites[layer].name: update}, session.weights_hash)
            current = edited(model, delta, id=model.id, check=False)
        return delta

    def _solve(self, keys: Tensor, residuals: Tensor, moment: Tensor) -> LowRank:
        from conviction.editing.solve import memit_update, null_space, null_space_update

        if self.null_space:
            return null_space_update(keys, residuals, null_space(moment, self.nullspace_threshold), self.ridge)
        return memit_update(keys, residuals, moment, self.mom2_update_weight)
