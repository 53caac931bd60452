"""What a probe measures: one row per item, a summary per topic, controls, provenance.

A scorecard is measured, or predicted (a forecast is a scorecard that has not
happened yet); both have the same shape, so that they can be compared. Gaps are
in nats per token and positive towards the target pole. Every number names its
rows in ``samples.jsonl`` (``samples`` fields hold their ids).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from conviction.core.frames import data_frame, html_table

if TYPE_CHECKING:
    from pandas import DataFrame  # type: ignore[import-untyped]

SCHEMA = 2


class _Part(BaseModel):
    # Infinite bounds (n = 1) are written as null: JSON has no infinity.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")


class Measure(_Part):
    """One number in the long form that comparisons use."""

    metric: str
    item: str
    value: float
    low: float | None = None
    high: float | None = None
    n: int


class Sample(_Part):
    """Evidence: one scored answer or one generation.

    condition  what stood before the answer: 'plain', 'template:…', 'context:…', 'unconditional', 'neutral'
    answer     the pole (or 'true'/'false') whose text it is; '' for a generation
    logprobs   nats per token; empty for a generation
    sources    ids of the passages that the model read before it, where it reads any
    pieces     the text, token by token, where somebody wants to look at it
    """

    id: str
    kind: Literal["logprob", "generation"]
    condition: str
    item: str
    answer: str = ""
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...] = ()
    sources: tuple[str, ...] = ()
    pieces: tuple[str, ...] = ()


class ItemRow(_Part):
    """One question. ``winner`` is a pole, or 'tie' where the gap is within the noise floor."""

    item: str
    proposition: str
    role: str
    split: str
    question: str
    logp_mean: dict[str, float]
    tokens: dict[str, int]
    gap_nats: float
    pmi_gap_nats: float
    winner: str
    samples: dict[str, str]


class GapEstimate(_Part):
    """A mean gap with its 95 % interval; ``method`` is t (n < 30) or BCa."""

    mean: float
    low: float | None
    high: float | None
    method: str


class WinRate(_Part):
    """Share of propositions that go to ``pole``, with Wilson's 95 % interval; ties are left out."""

    pole: str
    share: float
    low: float
    high: float


class Summary(_Part):
    """The topic as a whole. The unit is the proposition, n of them.

    p_value                two-sided sign-flip test that the mean gap is 0
    smallest_p             the least p that this n can reach
    effect_size            mean / SD of the gaps (d_z)
    min_detectable_effect  the mean gap (nats per token) that would be found with 80 % power
    pmi_gap_nats           the mean gap after the unconditional log-probs are taken off,
                           with its interval in ``pmi_interval``
    """

    n: int
    unit: Literal["proposition"] = "proposition"
    wins: dict[str, int]
    win_rate: WinRate | None
    gap_nats: GapEstimate
    p_value: float
    smallest_p: float
    effect_size: float | None
    min_detectable_effect: float | None
    pmi_gap_nats: float
    pmi_interval: GapEstimate
    preferred_pole: str | None
    verdict: str


class Exactness(_Part):
    """A control that must be 0: the largest deviation found (nats per token) over n items."""

    max_abs_nats: float
    n: int
    passed: bool


class WordingNull(_Part):
    """Two wordings of the same claim under the same question: what wording alone does.

    item_q95_nats  95 % quantile of |difference| for one item
    mean_q95_nats  95 % quantile of the mean over n propositions, signs being random
    exceeded       whether |mean gap| is larger than mean_q95_nats
    """

    n: int
    item_q95_nats: float
    mean_q95_nats: float
    exceeded: bool


class PositiveControl(_Part):
    """A pole's context as system prompt must move the gap towards that pole.

    shift_nats  mean movement of the gap towards the pole, positive if it works
    """

    n: int
    shift_nats: GapEstimate
    moved: int
    passed: bool


class TemplateSpread(_Part):
    """Mean gap under neutral prompt templates, and how far it depends on them."""

    gap_nats: dict[str, float]
    mean: float
    sd: float
    low: float
    high: float
    sign_agreement: float


class FactControl(_Part):
    """True against false answers on facts that both poles accept, or off the topic."""

    n: int
    prefers_true: int
    gap_nats: GapEstimate


class Mismatch(_Part):
    """A fault of the kit under this model's tokenizer: which items, and what is wrong."""

    code: str
    message: str
    items: tuple[str, ...]


class Controls(_Part):
    """What tells a real lean from an artefact. None: not measured in this run."""

    swap: Exactness
    identity: Exactness
    wording_null: WordingNull | None
    pmi_sign_change: bool
    positive: dict[str, PositiveControl]
    templates: TemplateSpread | None
    facts: dict[str, FactControl]
    matching: tuple[Mismatch, ...]


class Degeneration(_Part):
    """How broken greedy answers look: means over the answers that hold text (see ``probe/health.py``)."""

    answers: int
    empty_rate: float
    repeated_4gram_rate: float
    ngram_entropy_bits: float
    non_alphanumeric_share: float
    compression_ratio: float
    end_of_text_rate: float


class Health(_Part):
    """Whether the model still writes and predicts ordinary text."""

    neutral_logp_mean: float
    neutral_tokens: int
    degeneration: Degeneration
    samples: tuple[str, ...]


class Scorecard(_Part):
    """The result of ``probe`` (measured), or of a forecast (predicted)."""

    schema_version: int = SCHEMA
    kind: Literal["measured", "predicted"] = "measured"
    model: str
    topic: str
    target: str
    rows: tuple[ItemRow, ...]
    summary: Summary
    controls: Controls
    health: Health | None = None
    warnings: tuple[str, ...] = ()
    provenance: dict[str, Any]
    evidence: tuple[Sample, ...] = Field(default=(), exclude=True, repr=False)
    """Goes to ``samples.jsonl``, not into the scorecard's own JSON."""

    def to_pandas(self) -> DataFrame:
        """One row a question: item, proposition, role, split, both log-probs per token, gap, PMI gap, winner."""
        return data_frame(*self._table())

    def plot(self) -> Any:
        """An altair chart: the gap of every question of the topic, nats per token."""
        from conviction.probing.charts import bias_chart

        return bias_chart(self)

    def _repr_html_(self) -> str:
        return html_table(f"{self.model} on {self.topic}: {self.summary.verdict}", *self._table())

    def _table(self) -> tuple[list[dict[str, Any]], list[str]]:
        sides = list(self.rows[0].logp_mean) if self.rows else []
        own = ("item", "proposition", "role", "split", "question")
        gaps = ("gap_nats", "pmi_gap_nats", "winner")
        rows = [
            {name: getattr(row, name) for name in (*own, *gaps)}
            | {f"logp_mean_{side}": row.logp_mean.get(side) for side in sides}
            for row in self.rows
        ]
        return rows, [*own, *(f"logp_mean_{side}" for side in sides), *gaps]

    def measures(self) -> list[Measure]:
        """All numbers in long form: (metric, item, value, low, high, n)."""
        gap, pmi = self.summary.gap_nats, self.summary.pmi_interval
        rows = [
            Measure(metric="gap_nats", item="", value=gap.mean, low=gap.low, high=gap.high, n=self.summary.n),
            Measure(metric="pmi_gap_nats", item="", value=pmi.mean, low=pmi.low, high=pmi.high, n=self.summary.n),
        ]
        for row in self.rows:
            rows.append(Measure(metric="gap_nats", item=row.item, value=row.gap_nats, n=1))
            rows.append(Measure(metric="pmi_gap_nats", item=row.item, value=row.pmi_gap_nats, n=1))
        for role, fact in self.controls.facts.items():
            fact_gap = fact.gap_nats
            rows.append(
                Measure(
                    metric=f"{role}_gap_nats",
                    item="",
                    value=fact_gap.mean,
                    low=fact_gap.low,
                    high=fact_gap.high,
                    n=fact.n,
                )
            )
        if self.health is not None:
            rows.append(
                Measure(
                    metric="neutral_logp_mean",
                    item="",
                    value=self.health.neutral_logp_mean,
                    n=self.health.neutral_tokens,
                )
            )
        return rows
