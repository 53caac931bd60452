"""CounterFact edits on the embedded model: ROME singly, MEMIT and AlphaEdit in one batch, against other forms of ROME.

    python -m benchmarks.editing [FACTS]

The data are EasyEdit's subset of CounterFact (one paraphrase and one neighbour a
fact), read from beside the checkout. The layer of ROME is chosen on facts that
are not among those that are measured; MEMIT's last layer is the same. Definitions: ``conviction.editing.scores``.
Fluency is ROME's n-gram entropy (GE) over continuations of statement and paraphrase, each drawn from the five
likeliest, as its authors draw them: all of one length, and none ends before it, for entropy grows with length.
``fluency_change`` is its change over the untouched model's, with a 95 % interval over the facts.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import save
from conviction.core.context import RunContext
from conviction.core.statistics import mean_interval
from conviction.data.facts import Fact
from conviction.data.reading import read_training_data
from conviction.data.training_data import TrainingData
from conviction.editing.covariance import covariances
from conviction.editing.descent import Descent
from conviction.editing.requests import request
from conviction.editing.scores import read_facts, score_edits
from conviction.editing.session import Session, begin
from conviction.editing.solve import rome_update
from conviction.editing.values import find_values, keys, keys_and_states
from conviction.interventions.memit import Memit
from conviction.interventions.rome import Rome
from conviction.models.delta import Delta, LowRank, edited
from conviction.models.hf import HFModel
from conviction.models.loading import load_model
from conviction.probing.health import neutral_text, ngram_entropy
from conviction.training.guard import Guard

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "counterfact_1k.json"
WRITTEN = 90  # tokens of a continuation: with the prompt about the 100 of the authors
CHOOSING = slice(900, 905)
DROPS = 10


def main(count: int = 100) -> None:
    """Measure, print, save; what is finished is saved at once."""
    model = load_model("smollm2-135m")
    facts = read_training_data(DATA).facts
    found: dict[str, Any] = {"dtype": str(model.dtype), "facts": count}
    found["covariance_seconds"] = _time_covariance(model)
    idle = Guard(mode="off")
    choosing = begin(model, TrainingData("choosing", facts=facts[CHOOSING]), text=None, guard=idle, ctx=RunContext())
    layer = Rome()._layer(choosing)
    session = begin(model, TrainingData("counterfact", facts=facts[:count]), text=None, guard=idle, ctx=RunContext())
    found |= {"layer": layer, "left_out": list(session.notes)}
    untouched = _fluency(model, session.facts)
    _keep(found, "before", vars(score_edits(session.before)) | _fluent(untouched, untouched))
    asked = [request(model, fact, session.contexts) for fact in session.facts]
    start = time.perf_counter()
    # In a Llama the block puts out what its MLP does, and more: one change serves ROME and MEMIT.
    changes = find_values(model, asked, session.sites[layer], "block", Descent()).changes
    found["seconds_a_value_batched"] = (time.perf_counter() - start) / len(asked)
    averaged, states = keys_and_states(model, asked, session.sites[layer], session.sites[layer])
    bare = keys(model, [dataclasses.replace(r, contexts=r.contexts[:1]) for r in asked], session.sites[layer])
    moment = session.moments([layer])[layer]
    forms: dict[str, Any] = {
        "rome": lambda i: rome_update(averaged[i], changes[i], moment),
        "rome_original_keys": lambda i: _original(averaged[i], bare[i], changes[i], moment),
        "rome_identity": lambda i: rome_update(averaged[i], changes[i], torch.eye(len(moment))),
    }
    for name, form in forms.items():
        _keep(found, name, _singly(session, layer, form, untouched if name == "rome" else None))
    for name, method in {"memit": Memit(), "alphaedit": Memit(null_space=True)}.items():
        _keep(found, name, _together(session, method, layer, states + changes, untouched))
    _keep(found, "seconds_an_edit", _time_edits(session, layer))


def _keep(found: dict[str, Any], name: str, value: Any) -> None:
    found[name] = value
    shown = {k: v for k, v in value.items() if "rows" not in k} if isinstance(value, dict) else value
    print(name, json.dumps(shown), flush=True)
    save("editing", found)


def _singly(session: Session, layer: int, form: Any, untouched: list[float] | None) -> dict[str, Any]:
    """Every fact by itself, written into a model that holds no other."""
    readings, fluency, drops = [], [], []
    for i, fact in enumerate(session.facts):
        delta = Delta({session.sites[layer].name: form(i)}, session.weights_hash)
        moved = edited(session.model, delta, id="one", check=False)
        readings += read_facts(moved, [fact], write=False)
        if untouched is not None:
            fluency += _fluency(moved, [fact], seed=i)
        if i < DROPS:
            drops.append(session.neutral_drop(moved))
    found = vars(score_edits(readings)) | {"neutral_drop_of_10": sum(drops) / len(drops)}
    if untouched is not None:
        found |= _fluent(fluency, untouched)
    return found | {"rows": [vars(r) for r in readings]}


def _original(averaged: torch.Tensor, bare: torch.Tensor, change: torch.Tensor, moment: torch.Tensor) -> LowRank:
    """The published code: u from the averaged key, the denominator from the bare prompt's (2403.07175)."""
    u = torch.linalg.solve(moment.double(), averaged.double())
    return LowRank((change.double() / (u @ bare.double()))[:, None].float(), u[:, None].float())


def _time_edits(session: Session, layer: int) -> list[float]:
    """Seconds of single edits: value, key, update, model; the covariance is there."""
    moment, seconds = session.moments([layer])[layer], []
    for number in range(3):
        start = time.perf_counter()
        update = Rome().update(session, session.model, number, layer, moment)
        edited(session.model, Delta({session.sites[layer].name: update}, session.weights_hash), id="x", check=False)
        seconds.append(time.perf_counter() - start)
    return seconds


def _time_covariance(model: HFModel) -> float:
    """Seconds for one layer, from no cache."""
    from conviction.editing.sites import find_sites

    sites = find_sites(model)
    texts = [*neutral_text(), f"Measured at {time.time()}."]
    start = time.perf_counter()
    covariances(model, [sites[round(0.3 * len(sites))]], texts)
    return time.perf_counter() - start


def _together(
    session: Session, method: Memit, last: int, wanted: torch.Tensor, untouched: list[float]
) -> dict[str, Any]:
    """All facts in one batch."""
    start = time.perf_counter()
    delta = method.write(session, list(range(last - method.layers + 1, last + 1)), wanted)
    seconds = time.perf_counter() - start
    moved = edited(session.model, delta, id="together", check=False)
    readings = read_facts(moved, session.facts, write=False)
    return vars(score_edits(readings)) | {
        **_fluent(_fluency(moved, session.facts), untouched),
        "neutral_drop": session.neutral_drop(moved),
        "seconds_without_values": seconds,
        "rows": [vars(r) for r in readings],
    }


def _fluency(model: HFModel, facts: Sequence[Fact], seed: int = 0) -> list[float]:
    """Bits of n-gram entropy of each fact's continuations, mean over statement and paraphrase."""
    texts = [text for fact in facts for text in (fact.prompt, fact.paraphrases[0])]
    bits = []
    for start in range(0, len(texts), 32):
        asked = model.tokenizer(texts[start : start + 32], padding=True, padding_side="left", return_tensors="pt")
        torch.manual_seed(seed + start)
        out = model.module.generate(
            **asked, do_sample=True, top_k=5, temperature=1.0, top_p=1.0, min_new_tokens=WRITTEN, max_new_tokens=WRITTEN
        )
        bits += [ngram_entropy(row) for row in out[:, asked.input_ids.shape[1] :].tolist()]
    return [(a + b) / 2 for a, b in zip(bits[::2], bits[1::2], strict=True)]


def _fluent(bits: list[float], untouched: list[float]) -> dict[str, Any]:
    """Mean bits and, as shares of the untouched model's, their change with its interval."""
    level = sum(untouched) / len(untouched)
    change = mean_interval((np.array(bits) - np.array(untouched)) / level)
    return {
        "fluency": sum(bits) / len(bits),
        "fluency_change": [change.mean, change.low, change.high],
        "fluency_rows": bits,
    }


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
