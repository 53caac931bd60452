"""What a probe measures: one row per item, a summary per topic, controls, provenance.

A scorecard is measured, or predicted (a forecast is a scorecard that has not
happened yet); both have the same shape, so that they can be compared. Gaps are
in nats per token and positive towards the target pole. Every number names its
rows in ``samples.jsonl`` (``samples`` fields hold their ids).
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from conviction.core import frames
from conviction.core.record import Finite, Frozen

SCHEMA = 4


class Sample(Frozen):
    """Evidence: one scored answer or one generation.

    condition  what stood before the answer: 'plain', 'template:…', 'context:…', 'unconditional', 'neutral',
               'foreign:ITEM' (the question of that item), 'choice:1' and 'choice:2' (both answers as options;
               what is scored is a letter)
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

    @model_validator(mode="after")
    def _is_one_a_token(self) -> Sample:
        tokens = len(self.token_ids)
        if len(self.logprobs) not in (0, tokens) or len(self.pieces) not in (0, tokens):
            counts = f"{tokens} token_ids, {len(self.logprobs)} logprobs, {len(self.pieces)} pieces"
            raise ValueError(f"there are {counts}: give one of each a token, or none")
        return self


class ItemRow(Frozen):
    """One question. ``winner`` is a pole, or 'tie' where the gap is within the noise floor.

    conditional_gap_nats  the gap less that of the same texts under a question of another proposition; None: no such
    foreign_samples       the rows under that question, as ``samples`` are those under its own
    """

    item: str
    proposition: str
    role: str
    split: str
    question: str
    logp_mean: dict[str, float]
    tokens: dict[str, int]
    gap_nats: float
    pmi_gap_nats: float
    conditional_gap_nats: float | None
    winner: str
    samples: dict[str, str]
    foreign_samples: dict[str, str]

    @model_validator(mode="after")
    def _has_two_sides(self) -> ItemRow:
        sides = self.logp_mean.keys()
        if len(sides) != 2 or self.tokens.keys() != sides or self.samples.keys() != sides:
            raise ValueError("logp_mean, tokens and samples: give the same two sides in each")
        return self


class GapEstimate(Frozen):
    """A mean gap with its 95 % interval; ``method`` is t (n < 30) or BCa."""

    mean: float
    low: Finite
    high: Finite
    method: str


class WinRate(Frozen):
    """Share of propositions that go to ``pole``, with Wilson's 95 % interval; ties are left out."""

    pole: str
    share: float
    low: float
    high: float


class ConditionalGap(Frozen):
    """What the question does to the gap: crossed design, n propositions that have a foreign question.

    gap_nats, p_value     answers under their own question less the same texts under a foreign one (interaction of
                          text and question), nats per token, with a two-sided sign-flip test that its mean is 0
    foreign_gap_nats, foreign_p_value  the gap of the same texts under foreign questions: what does not depend on
                          the question
    """

    n: int
    gap_nats: GapEstimate
    p_value: float
    foreign_gap_nats: GapEstimate
    foreign_p_value: float


class Summary(Frozen):
    """The topic as a whole. The unit is the proposition, n of them.

    p_value                two-sided sign-flip test that the mean gap is 0
    smallest_p             the least p that this n can reach
    effect_size            mean / SD of the gaps (d_z)
    min_detectable_effect  the mean gap (nats per token) that would be found with 80 % power
    pmi_gap_nats           the mean gap after the unconditional log-probs are taken off,
                           with its interval in ``pmi_interval``
    conditional            the crossed design; None: no item has a foreign question
    preferred_pole         as the verdict says; None: none, whatever the mean gap is
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
    conditional: ConditionalGap | None
    preferred_pole: str | None = None
    verdict: str = ""


class ForwardAgreement(Frozen):
    """A sample of the rows that were scored in packs, against the model's own ``forward``, one row at a time.

    The largest row is among them. max_difference_nats: over tokens; mean_difference_nats: over rows, of a row's mean
    log-prob; accepted: both are within what rounding does. Where they are not, all rows were scored again one by one.
    """

    rows: int
    longest_row_tokens: int
    max_difference_nats: float
    mean_difference_nats: float
    accepted: bool


class Rescoring(Frozen):
    """Answers scored twice: how far apart, nats per token (largest token, largest mean of an answer).

    forward  None: the model knows one way to score only
    """

    asked_again: int
    max_difference_nats: float
    mean_difference_nats: float
    forward: ForwardAgreement | None
    passed: bool


class WordingNull(Frozen):
    """Two wordings of the same claim under the same question: what wording alone does.

    item_q95_nats  95 % quantile of |difference| for one item
    mean_q95_nats  95 % quantile of the mean over n propositions, signs being random
    exceeded       whether |mean gap| is larger than mean_q95_nats
    """

    n: int
    item_q95_nats: float
    mean_q95_nats: float
    exceeded: bool


class PositiveControl(Frozen):
    """A pole's context as system prompt must move the gap towards that pole.

    shift_nats  mean movement of the gap towards the pole, positive if it works
    """

    n: int
    shift_nats: GapEstimate
    moved: int
    passed: bool


class TemplateSpread(Frozen):
    """Mean gap under neutral prompt templates, and how far it depends on them."""

    gap_nats: dict[str, float]
    mean: float
    sd: float
    low: float
    high: float
    sign_agreement: float


class FactControl(Frozen):
    """True against false answers on facts that both poles accept, or off the topic."""

    n: int
    prefers_true: int
    gap_nats: GapEstimate


class ChoiceControl(Frozen):
    """Forced choice between the true and the false answer to facts: whether the model can do it at all.

    p_value  one-sided exact binomial test against chance; passed: below 0.05
    """

    n: int
    correct: int
    p_value: float
    passed: bool


class ForcedChoice(Frozen):
    """Both answers as options A and B; what is scored is the log-prob of the letter, both orders averaged.

    gap_nats       log p(letter of the target) - log p(letter of the other), mean over n propositions
    p_value        two-sided sign-flip test that this mean is 0
    chosen         pole → propositions
    position_nats  log p(A) - log p(B), mean over both orders: what the place alone does
    control        None: the topic has no facts. Without a control that passed the choice is not readable
                   on this model, and is no part of the verdict
    """

    n: int
    chosen: dict[str, int]
    gap_nats: GapEstimate
    p_value: float
    position_nats: float
    control: ChoiceControl | None

    @property
    def readable(self) -> bool:
        """Whether the control shows that the model can choose."""
        return self.control is not None and self.control.passed


class Mismatch(Frozen):
    """A fault of the kit under this model's tokenizer: which items, and what is wrong."""

    code: str
    message: str
    items: tuple[str, ...]


class Controls(Frozen):
    """What separates a real preference from an artefact. None: not measured in this run."""

    rescored: Rescoring
    wording_null: WordingNull | None
    pmi_sign_change: bool
    positive: dict[str, PositiveControl]
    templates: TemplateSpread | None
    facts: dict[str, FactControl]
    matching: tuple[Mismatch, ...]


class Degeneration(Frozen):
    """How broken greedy answers look: means over the answers that hold text (see ``probing/health.py``)."""

    answers: int
    empty_rate: float
    repeated_4gram_rate: float
    ngram_entropy_bits: float
    non_alphanumeric_share: float
    compression_ratio: float
    end_of_text_rate: float


class Health(Frozen):
    """Whether the model still writes and predicts ordinary text."""

    neutral_logp_mean: float
    neutral_tokens: int
    degeneration: Degeneration
    samples: tuple[str, ...]


class Scorecard(Frozen):
    """The result of ``probe`` (measured), or of a forecast (predicted)."""

    schema_version: int = SCHEMA
    kind: Literal["measured", "predicted"] = "measured"
    model: str
    topic: str
    target: str
    rows: tuple[ItemRow, ...]
    summary: Summary
    controls: Controls
    forced_choice: ForcedChoice | None = None
    health: Health | None = None
    warnings: tuple[str, ...] = ()
    provenance: dict[str, Any]
    evidence: tuple[Sample, ...] = Field(default=(), exclude=True, repr=False)
    """Goes to ``samples.jsonl``, not into the scorecard's own JSON."""

    @model_validator(mode="after")
    def _has_the_same_sides(self) -> Scorecard:
        if any(row.logp_mean.keys() != self.rows[0].logp_mean.keys() for row in self.rows):
            raise ValueError("rows: all must have the same two sides")
        return self

    to_pandas = frames.to_pandas
    _repr_html_ = frames.repr_html

    def plot(self) -> Any:
        """An altair chart: the gap of every question of the topic, nats per token."""
        from conviction.probing.charts import bias_chart

        return bias_chart(self)

    def table(self) -> frames.Table:
        """One row a question: item, proposition, role, split, both log-probs per token, the three gaps, winner."""
        sides = list(self.rows[0].logp_mean) if self.rows else []
        own = ("item", "proposition", "role", "split", "question")
        gaps = ("gap_nats", "pmi_gap_nats", "conditional_gap_nats", "winner")
        rows = [
            {name: getattr(row, name) for name in (*own, *gaps)}
            | {f"logp_mean_{side}": row.logp_mean.get(side) for side in sides}
            for row in self.rows
        ]
        columns = [*own, *(f"logp_mean_{side}" for side in sides), *gaps]
        return frames.Table(f"{self.model} on {self.topic}: {self.summary.verdict}", rows, columns)
