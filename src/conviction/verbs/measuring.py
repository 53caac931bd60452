"""Measure: ``probe`` a model, ``audit`` data, ``localize`` an answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from conviction.auditing.linter import audit as audit_rows
from conviction.auditing.linter import choose_rules
from conviction.auditing.planning import Plan, plan_audit
from conviction.auditing.records import AuditReport
from conviction.core.charts import converter
from conviction.core.context import RunContext
from conviction.core.options import check_number
from conviction.core.protocols import LanguageModel
from conviction.data.columns import NO_COLUMNS
from conviction.data.topic import Topic, names_topic
from conviction.data.training_data import TrainingData
from conviction.errors import InputError, nearest
from conviction.localization.records import KINDS, Kind, Localization
from conviction.probing.records import Scorecard
from conviction.probing.scorecard import probe as measure
from conviction.training.guard import Guard
from conviction.verbs.folders import Place
from conviction.verbs.inputs import (
    DataLike,
    Load,
    ModelLike,
    TopicLike,
    as_count,
    as_model,
    as_names,
    as_source,
    as_topic,
    check_name,
    described,
    loading,
    state_of,
    told,
)

__all__ = ["audit", "localize", "probe"]


def probe(
    model: ModelLike,
    topic: TopicLike,
    *,
    quick: bool = False,
    templates: bool = False,
    health: bool = False,
    forced_choice: bool = False,
    run: str | Path | None = None,
    load: Load | None = None,
    ctx: RunContext | None = None,
) -> Scorecard:
    """Measure which pole of ``topic`` the model prefers, by how much, and how sure one can be.

    ::

        card = probe("smollm2-135m", "obesity", quick=True)

    quick      only the items tagged 'quick', without facts
    templates  also ask under neutral prompt templates and report the spread
    health     also write greedy answers and read the neutral text
    forced_choice  also ask for the letter of the better answer, with the topic's facts as its control
    run        a folder that the card and the rows behind it are kept in; finished with the same arguments, it is read
    load       how a model is loaded by name; None: ``load_model`` with its defaults
    ctx        who is told of progress; None: nobody

    Gaps are in nats per token, positive towards ``topic.target``. Raises
    InputError if nothing is left to ask, or an answer does not fit the model.
    """
    ctx, kit = ctx or RunContext(), as_topic(topic)
    call = described(model, load) | {"topic_sha256": kit.digest, "target": kit.target}
    call |= {"quick": quick, "templates": templates, "health": health, "forced_choice": forced_choice}
    place = Place.of(run, ctx, topic=kit.name, verb="probe", call=call)

    def ask(loaded: LanguageModel, own: RunContext) -> Scorecard:
        card = measure(
            loaded, kit, quick=quick, templates=templates, health=health, forced_choice=forced_choice, ctx=own
        )
        return card if own.run is None else own.run.save("before", card)

    return place.result("before", Scorecard, model, load, ask)


def audit(
    data: DataLike,
    *,
    topic: TopicLike | None = None,
    model: ModelLike | None = None,
    select: str | Sequence[str] = (),
    ignore: str | Sequence[str] = (),
    beta: float = 0.1,
    margin_cap: float | None = None,
    split: str = "train",
    fix: bool = False,
    output: str | Path | None = None,
    columns: Mapping[str, str] = NO_COLUMNS,
    run: str | Path | None = None,
    load: Load | None = None,
    ctx: RunContext | None = None,
) -> AuditReport:
    """Look for faults in preference pairs: a linter.

    ::

        report = audit("pairs.jsonl", topic="obesity", model="smollm2-135m")

    data             a file, a folder, a hub name, rows, training data; or a topic, whose own pairs are meant
    topic            what the pairs are to teach: for leaks into its test items, coverage, poles
    model            the model that is to be trained: for everything that depends on what it holds
    select, ignore   codes, beginnings of codes or names of rules; all if none is selected
    beta, margin_cap of the loss and the guard that are planned; None: the guard's default
    fix, output      write a cleaned copy (to ``output``, else NAME.fixed.jsonl), and audit that
    columns          field → the column that it is read from, of a file whose columns have other names
    run              a folder that ``findings.json`` is kept in; finished with the same arguments, it is read

    Without a model the data is streamed: 10 GB need no more memory than their
    keys, counts and sketches. Raises InputError for data that holds no pairs, an
    unknown rule, or a rule that is named and lacks what it needs.
    """
    ctx, margin_cap = ctx or RunContext(), Guard().margin_cap if margin_cap is None else margin_cap
    check_number("beta", beta, above=0)
    check_number("margin_cap", margin_cap, above=0)
    chosen, ignored = as_names(select, "select"), as_names(ignore, "ignore")
    rules = choose_rules(chosen, ignored)
    kit = as_topic(topic) if topic is not None else None
    rows = _as_rows(data)
    plan = plan_audit(rows, topic=kit, split=split, beta=beta, fix=fix, output=output, columns=columns)
    call = {"select": chosen, "ignore": ignored, "beta": beta, "margin_cap": margin_cap, "split": split, "fix": fix}
    call |= {"columns": dict(columns), "output": output and str(output), **_identified(plan)}
    call |= described(model, load) if model is not None else {}
    place = Place.of(run, ctx, topic=_label(plan), verb="audit", call=call)
    if (known := place.finished("findings", AuditReport)) is not None:
        return known
    loaded = as_model(model, loading(load, ctx)) if model is not None else None
    with place.open() as own:
        plan.write_copy(rules, own)
        report = audit_rows(
            plan.data, topic=plan.topic, model=loaded, select=chosen, ignore=ignored, beta=beta, margin_cap=margin_cap,
            split=plan.split, columns=plan.columns, ctx=own,
        )  # fmt: skip
        return report if own.run is None else own.run.update("findings", report)


def _as_rows(data: DataLike) -> str | Path | Topic | TrainingData:
    """What an audit can read. Raises InputError for a name that can only be a topic's, mistyped."""
    if not isinstance(data, str | Path | Topic | TrainingData):
        return as_source(data).data
    if isinstance(data, str | Path) and not names_topic(data):
        check_name(data)
    return data


def _label(plan: Plan) -> str:
    """What an audit is of, as a name: a topic's, or that of the data."""
    return plan.data.name if isinstance(plan.data, TrainingData) else str(plan.data)


def _identified(plan: Plan) -> dict[str, str | None]:
    """Which data and topic it is: by contents where they were read already, else by the state of the files."""
    data = plan.source.path if plan.source is not None else plan.data
    state = data.digest if isinstance(data, TrainingData) else state_of(data)
    return {"data_state": state, "topic_sha256": None if plan.topic is None else plan.topic.digest}


def localize(
    data: DataLike,
    model: ModelLike,
    *,
    kinds: str | Sequence[str] = KINDS,
    own_answer: bool = False,
    samples: int = 4,
    limit: int = 10,
    neurons: bool = True,
    run: str | Path | None = None,
    load: Load | None = None,
    ctx: RunContext | None = None,
) -> Localization:
    """Where an answer sits: causal tracing, knowledge neurons, truth directions; each beside a control.

    ::

        where = localize("obesity", "smollm2-135m", limit=3)

    data        a topic, whose facts are traced by the model's own answers (they are contested); or facts
    kinds       sites: block, mlp, attention
    own_answer  trace what the model says, right or wrong
    samples     draws of noise for every trace; limit: how many of the facts that it knows are traced
    run         a folder that the numbers and the heat maps are kept in; finished with the same arguments, it is read

    Raises InputError if there are no facts, the model knows none of them, or it has no weights at hand.
    """
    ctx, sites = ctx or RunContext(), _sites(kinds)
    samples = as_count(samples, "samples", at_most=1_000)
    limit = as_count(limit, "limit", at_most=100_000)
    source = told(as_source(data), ctx)
    if not source.data.facts:
        raise InputError(
            f"{source.data.name} holds no facts", hint="give rows of prompt, subject, target (or attribute)"
        )
    own_answer = own_answer or source.topic is not None
    call = described(model, load) | {"data_sha256": source.data.digest, "kinds": sites, "own_answer": own_answer}
    call |= {"samples": samples, "limit": limit, "neurons": neurons}
    place = Place.of(run, ctx, topic=source.label, verb="localize", call=call)

    def measure_sites(loaded: LanguageModel, own: RunContext) -> Localization:
        from conviction.localization.analysis import localize as trace
        from conviction.localization.heatmaps import draw_all

        if own.run is not None:
            converter()  # before hours of work, not after
        result = trace(
            loaded, source.data.facts, source=source.label, topic=source.topic, own_answer=own_answer, kinds=sites,
            samples=samples, limit=limit, neurons=neurons, ctx=own,
        )  # fmt: skip
        if own.run is not None:
            draw_all(result, own.run.folder / "maps")  # first: once the record is there, nothing is made again
            own.run.save("localization", result)
        return result

    return place.result("localization", Localization, model, load, measure_sites)


def _sites(kinds: str | Sequence[str]) -> tuple[Kind, ...]:
    names = tuple(dict.fromkeys(as_names(kinds, "kinds")))
    for name in names or ("",):
        if name not in KINDS:
            raise InputError(f"unknown kind of site '{name}'", hint=f"{nearest(name, KINDS)}use: {', '.join(KINDS)}")
    return tuple(kind for name in names for kind in KINDS if kind == name)
