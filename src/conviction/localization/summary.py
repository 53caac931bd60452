"""From traces of single statements to what can be said of them all, and to what cannot. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from conviction.localization.records import NeuronReading, RoleMap, Trace, TruthProbe
from conviction.localization.tracing import Statement

ROLES = ("before", "first of subject", "inside subject", "last of subject", "first after", "between", "last token")

CANNOT_MEAN = (
    "Where restoring a state brings an answer back is not where an edit works best: tracing does not predict the "
    "layer to edit (Hase et al. 2301.04213), and edits at random places do as well (2502.11447).",
    "A truth direction tells how statements are represented, not what the model would say or do.",
    "Effects are differences of probabilities under noise that no text contains.",
)


def roles_of(statement: Statement, span: tuple[int, int]) -> list[str]:
    """What each token is: to the subject, or to the span that took its place in a control."""
    first, end = span
    last = len(statement.ids) - 1
    roles = []
    for i in range(len(statement.ids)):
        if i == last:
            roles.append("last token")
        elif i < first:
            roles.append("before")
        elif i == end - 1:
            roles.append("last of subject")
        elif i == first:
            roles.append("first of subject")
        elif i < end:
            roles.append("inside subject")
        elif i == end:
            roles.append("first after")
        else:
            roles.append("between")
    return roles


def average(traces: Sequence[Trace], statements: Sequence[Statement]) -> list[RoleMap]:
    """Mean effects by role and layer, for every kind and its control; a role that no statement has is 0."""
    by_fact = {s.fact: s for s in statements}
    maps = []
    for kind, control in dict.fromkeys((t.kind, t.control) for t in traces):
        chosen = [t for t in traces if (t.kind, t.control) == (kind, control)]
        depth = len(chosen[0].effects[0])
        rows = {role: list[NDArray[np.float64]]() for role in ROLES}
        for t in chosen:
            effects = np.array(t.effects)
            roles = roles_of(by_fact[t.fact], t.corrupted)
            for role in set(roles):
                rows[role].append(effects[[i for i, r in enumerate(roles) if r == role]].mean(0))
        means = [np.mean(rows[role], axis=0) if rows[role] else np.zeros(depth) for role in ROLES]
        maps.append(
            RoleMap(
                kind=kind,
                control=control,
                roles=ROLES,
                effects=tuple(tuple(round(float(x), 6) for x in row) for row in means),
                statements=len(chosen),
            )
        )
    return maps


def findings(maps: Sequence[RoleMap], neurons: Sequence[NeuronReading], truth: TruthProbe | None) -> list[str]:
    """Sentences with the numbers they rest on."""
    message = []
    by_kind = {(m.kind, m.control): np.array(m.effects) for m in maps}
    for (kind, control), effects in by_kind.items():
        if control:
            continue
        row, layer = np.unravel_index(int(effects.argmax()), effects.shape)
        line = f"{kind}: the strongest effect, {effects.max():+.3f}, is at the {ROLES[row]}, layer {layer}"
        if (kind, True) in by_kind:
            line += f"; the control's strongest is {by_kind[kind, True].max():+.3f}"
        message.append(line)
    if {("mlp", False), ("attention", False)} <= set(by_kind):
        message.append(_two_sites(by_kind["mlp", False], by_kind["attention", False]))
    if neurons:
        silenced = np.mean([n.suppressed for n in neurons])
        drawn = np.mean([n.random_suppressed for n in neurons])
        doubled = np.mean([n.enhanced for n in neurons])
        count = np.mean([len(n.neurons) for n in neurons])
        message.append(
            f"neurons: silencing {count:.0f} a statement changes the answer's probability by {silenced:+.0%} "
            f"(random ones {drawn:+.0%}), doubling them by {doubled:+.0%}"
        )
    if truth is not None:
        line = (
            f"truth: AUC {truth.auc:.2f} on {truth.facts} held-out facts, in the layer that is best on the others "
            f"({_layers(truth.chosen_layers)}; shuffled labels {truth.shuffled:.2f})"
        )
        if truth.towards is not None:
            line += f"; it calls the target answer truer for {truth.towards:.0%} of the topic's propositions"
        message.append(line)
    return message


def _layers(chosen: Sequence[int]) -> str:
    """``layer 12``, or ``layers 11 to 14``."""
    first, last = min(chosen), max(chosen)
    return f"layer {first}" if first == last else f"layers {first} to {last}"


def _two_sites(mlp: NDArray[np.float64], attention: NDArray[np.float64]) -> str:
    """Whether MLPs matter at the subject's last token before attention does at the last one, as in GPT-2 XL."""
    early, late = mlp[ROLES.index("last of subject")], attention[ROLES.index("last token")]
    at, then = int(early.argmax()), int(late.argmax())
    shown = (
        at < then
        and early.max() > mlp[ROLES.index("last token")].max()
        and late.max() > attention[ROLES.index("last of subject")].max()
    )
    numbers = (
        f"MLP at the last of subject peaks in layer {at} ({early.max():+.3f}; at the last token "
        f"{mlp[ROLES.index('last token')].max():+.3f}), attention at the last token in layer {then} "
        f"({late.max():+.3f}; at the last of subject {attention[ROLES.index('last of subject')].max():+.3f})"
    )
    return f"the early-site/late-site pattern is {'reproduced' if shown else 'not reproduced'}: {numbers}"
