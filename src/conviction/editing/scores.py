"""How well an edit took, and what it did to everything else: CounterFact's measures, with texts beside them.

Meng et al. 2202.05262 §3.4. All log-probs are means per token after the plain
statement, natural logarithm. A success is only relative (the new end is likelier
than the old one), so what the model writes is always shown, too.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from conviction.data.facts import Fact
from conviction.models.hf import HFModel

__all__ = ["EditScores", "FactReading", "read_facts", "score_edits", "with_former_ends"]

WRITTEN = 12  # tokens of a continuation that is shown


@dataclass(frozen=True)
class FactReading:
    """One fact, asked of one model. Gaps are nats per token.

    target       log-prob of the new end; target_true: of the old one
    gap          new end less old end
    paraphrases  the same for each paraphrase
    neighbours   true end less new end, for each neighbour
    says         how the model itself goes on
    """

    fact: str
    target: float
    target_true: float
    gap: float
    paraphrases: tuple[float, ...]
    neighbours: tuple[float, ...]
    says: str


@dataclass(frozen=True)
class EditScores:
    """Over facts. NaN where nothing of the kind is asked.

    efficacy       share of facts whose new end is likelier than the old one
    magnitude      mean of p(new end) - p(old end), p of the mean log-prob per token
    paraphrase     share of paraphrases of which the same is true, mean over facts
    neighbourhood  share of neighbours whose true end stays likelier than the fact's new one, mean over facts
    score          harmonic mean of efficacy, paraphrase, neighbourhood
    """

    facts: int
    efficacy: float
    magnitude: float
    paraphrase: float
    neighbourhood: float
    score: float


def with_former_ends(model: HFModel, facts: Sequence[Fact]) -> list[Fact]:
    """Facts that do not tell how they ended before get the model's own first word or two."""
    unknown = [f for f in facts if f.target_true is None]
    ends = dict(zip((f.id for f in unknown), _write(model, [f.prompt for f in unknown], 3), strict=True))
    return [dataclasses.replace(f, target_true=ends[f.id] or "…") if f.id in ends else f for f in facts]


def read_facts(model: HFModel, facts: Sequence[Fact], *, write: bool = True) -> list[FactReading]:
    """Ask a model every statement, paraphrase and neighbour. ``write``: also let it go on by itself."""
    rows: list[tuple[str, str]] = []
    for f in facts:
        for prompt in (f.prompt, *f.paraphrases):
            rows += [(prompt, f.target), (prompt, f.target_true or "…")]
        for n in f.neighbours:
            rows += [(n.prompt, n.answer), (n.prompt, f.target)]
    values = iter([score.logp_mean for score in model.continuations(rows)])
    texts = _write(model, [f.prompt for f in facts], WRITTEN) if write else [""] * len(facts)
    readings = []
    for f, text in zip(facts, texts, strict=True):
        target, true = next(values), next(values)
        paraphrases = tuple(next(values) - next(values) for _ in f.paraphrases)
        neighbours = tuple(next(values) - next(values) for _ in f.neighbours)
        readings.append(FactReading(f.id, target, true, target - true, paraphrases, neighbours, text))
    return readings


def score_edits(readings: Sequence[FactReading]) -> EditScores:
    """The measures of a model over facts."""

    def mean(values: Sequence[float]) -> float:
        return math.fsum(values) / len(values) if values else math.nan

    efficacy = mean([float(r.gap > 0) for r in readings])
    paraphrase = mean([mean([float(g > 0) for g in r.paraphrases]) for r in readings if r.paraphrases])
    neighbourhood = mean([mean([float(g > 0) for g in r.neighbours]) for r in readings if r.neighbours])
    parts = [x for x in (efficacy, paraphrase, neighbourhood) if not math.isnan(x)]
    return EditScores(
        facts=len(readings),
        efficacy=efficacy,
        magnitude=mean([math.exp(r.target) - math.exp(r.target_true) for r in readings]),
        paraphrase=paraphrase,
        neighbourhood=neighbourhood,
        score=len(parts) / math.fsum(1 / x for x in parts) if parts and min(parts) > 0 else 0.0,
    )


def _write(model: HFModel, prompts: Sequence[str], tokens: int) -> list[str]:
    encoded = [model.encoder.encode_text(prompt) for prompt in prompts]
    if not encoded:
        return []
    written = model.continue_ids(encoded, tokens)
    return [" ".join(g.text.split()) for g in written]
