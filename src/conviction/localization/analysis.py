"""Where in the weights an answer sits, as far as anyone can tell: ``localize(model, facts)``."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from conviction.core.context import RunContext
from conviction.core.protocols import LanguageModel, Progress
from conviction.data.facts import Fact
from conviction.data.topic import Topic
from conviction.errors import InputError
from conviction.localization.neurons import attributions, chosen_neurons, read_neurons
from conviction.localization.records import KINDS, Kind, Localization, NeuronReading, Trace
from conviction.localization.summary import CANNOT_MEAN, average, findings
from conviction.localization.tracing import Setup, Statement, build_statement, noise_level, trace
from conviction.localization.truth import read_truth
from conviction.models.hf import HFModel
from conviction.models.lora import decoder_layers

WINDOW = 0.2  # of the depth: ten of GPT-2 XL's 48 layers, as in ROME


def localize(
    model: LanguageModel,
    facts: Sequence[Fact],
    *,
    source: str,
    topic: Topic | None = None,
    own_answer: bool = False,
    kinds: Sequence[Kind] = KINDS,
    samples: int = 4,
    limit: int = 10,
    neurons: bool = True,
    ctx: RunContext | None = None,
) -> Localization:
    """Trace the first ``limit`` facts that the model knows, look for neurons, and fit truth directions.

    source      what the facts are from, for the report
    topic       whose neighbours and controls teach truth, and whose poles are then asked
    own_answer  trace what the model says, whatever the fact's target (for contested facts)
    samples     of noise for every trace

    Raises InputError if the model has no weights at hand, or knows none of the facts.
    """
    if not isinstance(model, HFModel):
        raise InputError(f"{model.id} has no weights to look into", hint="load it with the backend transformers")
    depth = len(decoder_layers(model.module))
    setup = Setup(noise_level(model, facts), samples, max(1, round(WINDOW * depth)))
    seconds: dict[str, float] = {}
    begun = time.perf_counter()
    statements, left_out = _statements(model, facts, limit, own_answer=own_answer)
    ctx = ctx or RunContext()
    bar, traces = ctx.progress("tracing"), list[Trace]()
    for i, statement in enumerate(statements, start=1):
        traces += [trace(model, statement, kind, setup, control=control) for kind in kinds for control in (False, True)]
        if bar is not None:
            bar(i, len(statements))
    seconds["tracing"] = time.perf_counter() - begun
    begun = time.perf_counter()
    known = {f.id: f for f in facts}
    read = _neurons(model, statements, known, ctx.progress("attributing to neurons")) if neurons else []
    seconds["neurons"] = time.perf_counter() - begun
    begun = time.perf_counter()
    truth = read_truth(model, topic, progress=ctx.progress("looking for truth")) if topic is not None else None
    seconds["probes"] = time.perf_counter() - begun
    maps = average(traces, statements)
    return Localization(
        model=model.id,
        source=source,
        noise=setup.noise,
        window=setup.window,
        traces=tuple(traces),
        maps=tuple(maps),
        neurons=tuple(read),
        truth=truth,
        left_out=tuple(left_out),
        findings=tuple(findings(maps, read, truth)),
        cannot_mean=CANNOT_MEAN,
        seconds=seconds,
        provenance={**_provenance(model, setup), "samples": samples, "own_answer": own_answer},
    )


def _provenance(model: HFModel, setup: Setup) -> dict[str, Any]:
    return {
        "conviction": version("conviction"),
        "python": platform.python_version(),
        "seed": setup.seed,
        "model": model.describe(),
    }


def _statements(
    model: HFModel, facts: Sequence[Fact], limit: int, *, own_answer: bool
) -> tuple[list[Statement], list[str]]:
    results: list[Statement] = []
    left_out: list[str] = []
    for fact in facts:
        if len(results) == limit:
            break
        statement = build_statement(model, fact, own_answer=own_answer)
        if statement is None:
            left_out.append(fact.id)
        else:
            results.append(statement)
    if not results:
        raise InputError(
            f"{model.id} knows none of the {len(facts)} facts", hint="trace what it says instead: --own-answer"
        )
    return results, left_out


def _neurons(
    model: HFModel, statements: Sequence[Statement], facts: dict[str, Fact], bar: Progress | None
) -> list[NeuronReading]:
    readings = []
    for i, statement in enumerate(statements, start=1):
        wordings = [statement]
        for text in facts[statement.fact].paraphrases:
            ids = model.encoder.encode_text(text)
            wordings.append(Statement(statement.fact, ids, (), (0, 0), statement.answer, statement.answer_text, 0.0))
        chosen = chosen_neurons([attributions(model, wording) for wording in wordings])
        readings.append(read_neurons(model, statement, chosen))
        if bar is not None:
            bar(i, len(statements))
    return readings
