"""The result of ``localize``, as it lies in a run folder."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import model_validator

from conviction.core import frames
from conviction.core.record import Frozen

Kind = Literal["block", "mlp", "attention"]
"""What is put back in tracing: all that a block puts out, or a part of it."""
KINDS: tuple[Kind, ...] = ("block", "mlp", "attention")


class Trace(Frozen):
    """Causal tracing of one statement by one kind of site.

    tokens     the statement's tokens; ``corrupted`` [first, end) were drowned in noise
    control    the noise fell on other tokens than the subject's
    clean, noisy   probability of the answer's first token, undisturbed and with noise
    effects    [tokens, layers] probability that restoring this one site brings back
    """

    fact: str
    kind: str
    control: bool
    tokens: tuple[str, ...]
    corrupted: tuple[int, int]
    answer: str
    clean: float
    noisy: float
    effects: tuple[tuple[float, ...], ...]

    @model_validator(mode="after")
    def _has_a_line_a_token(self) -> Trace:
        _check_lines("tokens", len(self.tokens), self.effects)
        return self


class RoleMap(Frozen):
    """Mean effects over statements, by what a token is to its statement: [roles, layers]."""

    kind: str
    control: bool
    roles: tuple[str, ...]
    effects: tuple[tuple[float, ...], ...]
    statements: int

    @model_validator(mode="after")
    def _has_a_line_a_role(self) -> RoleMap:
        _check_lines("roles", len(self.roles), self.effects)
        return self


def _check_lines(what: str, count: int, effects: tuple[tuple[float, ...], ...]) -> None:
    if not effects or not effects[0] or len(effects) != count or any(len(line) != len(effects[0]) for line in effects):
        raise ValueError(f"effects: give a line for each of the {what}, and as many layers in each line")


class NeuronReading(Frozen):
    """Knowledge neurons of one statement, and as many neurons drawn at random from the same layers.

    neurons     (layer, index); changes of the answer's probability, as shares of what it was
    """

    fact: str
    neurons: tuple[tuple[int, int], ...]
    suppressed: float
    enhanced: float
    random_suppressed: float
    random_enhanced: float


class TruthDirection(Frozen):
    """One layer's truth direction; the best of them by ``auc`` is too good: see ``TruthProbe.auc``.

    auc        of true against false statements, propositions kept apart; shuffled: with labels drawn anew
    towards    share of the topic's propositions whose target answer it calls truer than the other one
    """

    layer: int
    auc: float
    shuffled: float
    towards: float | None


class TruthProbe(Frozen):
    """Truth directions of all layers, and what the best of them is worth where the layer is chosen on other facts.

    auc            over held-out facts, each fold's by the layer that is best on the other folds (nested folds)
    shuffled       the same with labels drawn anew: what the choice of a layer makes of nothing
    chosen_layers  the layer of each fold
    towards        of the layer that is best on all facts, whose topic was not asked for the choice
    """

    auc: float
    shuffled: float
    chosen_layers: tuple[int, ...]
    facts: int
    towards: float | None
    layers: tuple[TruthDirection, ...]


class Localization(Frozen):
    """All of it. ``findings`` and ``cannot_mean`` are sentences for a reader."""

    schema_version: int = 3
    model: str
    source: str
    noise: float
    window: int
    traces: tuple[Trace, ...]
    maps: tuple[RoleMap, ...]
    neurons: tuple[NeuronReading, ...]
    truth: TruthProbe | None
    left_out: tuple[str, ...]
    findings: tuple[str, ...]
    cannot_mean: tuple[str, ...]
    seconds: dict[str, float]
    provenance: dict[str, Any]

    to_pandas = frames.to_pandas

    def plot(self) -> Any:
        """An altair chart: the mean effects, each kind of site beside its control."""
        from conviction.localization.heatmaps import heat_maps

        return heat_maps(f"{self.source}: mean of {self.maps[0].statements} statements", self.maps)

    def _repr_html_(self) -> str:
        sentences = [{"": line} for line in (*self.findings, *self.cannot_mean)]
        return frames.html_table(f"{self.source} in {self.model}", sentences, [""])

    def table(self) -> frames.Table:
        """One row a cell of the maps: kind of site, control, role of the token, layer, mean effect."""
        rows = [
            {"kind": m.kind, "control": m.control, "role": role, "layer": layer, "effect": effect}
            for m in self.maps
            for role, line in zip(m.roles, m.effects, strict=True)
            for layer, effect in enumerate(line)
        ]
        return frames.Table(f"{self.source} in {self.model}", rows, ["kind", "control", "role", "layer", "effect"])
