"""What each verb does on each architecture: right against transformers' own forward, or refused with a reason.

The table in docs/architectures.md is what comes out here; ``RECORD=1`` writes it anew.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import FALLBACK, FURTHER, LIMITED, PACKABLE, byte_tokenizer, context, pairs, tiny_module

from conviction import Dpo
from conviction.core.protocols import Query, chat
from conviction.data.facts import Fact
from conviction.editing.requests import request
from conviction.editing.sites import find_sites
from conviction.editing.solve import rome_update
from conviction.editing.values import block_states, keys, residual_scale
from conviction.errors import ConvictionError
from conviction.localization.tracing import Setup, build_statement, trace
from conviction.models.copies import weights_hash
from conviction.models.delta import Delta, edited
from conviction.models.engine.torch_engine import TorchEngine
from conviction.models.engine.unpacked import score_unpacked
from conviction.models.hf import HFModel
from conviction.models.lora import out_of_reach
from conviction.training.guard import Guard
from conviction.training.loop import train

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"
FACT = Fact("f1", "The drink of {} is", "the town", "milk")
QUERIES = [Query(chat("abc"[i] * n), ("Yes, it is so.", "No " + "x" * (n // 4))) for i, n in enumerate((3, 60, 230))]
TABLE = PACKABLE | LIMITED | FALLBACK | FURTHER


def model_of(module) -> HFModel:
    return HFModel(id="m", engine=TorchEngine(module, byte_tokenizer()))


def own(module, model: HFModel, queries) -> list[float]:
    rows = [
        (prompt, answer)
        for q in queries
        for prompt, answers in [model.encoder.encode(q.messages, q.answers)]
        for answer in answers
    ]
    return [x for values in score_unpacked(module, rows) for x in values]


def close(a, b, tolerance: float = 1e-4) -> bool:
    return torch.allclose(torch.as_tensor(a).float(), torch.as_tensor(b).float(), atol=tolerance, rtol=1e-3)


def scoring(module) -> str:
    untouched, model = copy.deepcopy(module), model_of(module)
    scored = [x for group in model.logprobs(QUERIES, fresh=True) for s in group for x in s.logprobs]
    assert close(scored, own(untouched, model, QUERIES))
    if not model.check.packed:
        return "row by row"
    limit = model.engine.packable_length
    return "packed" if limit is None else f"packed up to {limit} tokens"


def training(module) -> str:
    model = model_of(module)
    task = Dpo(max_steps=3, rank=2, learning_rate=0.1).task(model, pairs(4), context(guard=Guard(mode="off")))
    before = own(copy.deepcopy(module), model, QUERIES[:1])
    moved = train(task, context()).model
    scored = [x for group in moved.logprobs(QUERIES[:1], fresh=True) for s in group for x in s.logprobs]
    assert close(scored, own(moved.module, moved, QUERIES[:1])), "the trained model is scored as it computes"
    assert not close(scored, before), "it moved"
    share, _ = out_of_reach(module)
    return "all linear layers" if share <= 0.05 else f"all but {share:.0%}, which a note says"


def rome(module) -> str:
    model = model_of(module)
    asked, site = [request(model, FACT, [])], find_sites(model)[1]
    change = torch.randn(32, generator=torch.Generator().manual_seed(1))
    before = keys(model, asked, site)
    moved = edited(
        model,
        Delta({site.name: rome_update(before[0], change, torch.eye(site.width))}, weights_hash(model.module)),
        id="x",
    )
    assert close((find_sites(moved)[1].weight - site.weight) @ before[0], change, 1e-3)
    return "yes"


def memit(module) -> str:
    model = model_of(module)
    asked, site = [request(model, FACT, [])], find_sites(model)[1]
    change = torch.randn(32, generator=torch.Generator().manual_seed(1))
    scale = residual_scale(model, site, asked[0])
    update = rome_update(keys(model, asked, site)[0], change / scale, torch.eye(site.width))
    moved = edited(model, Delta({site.name: update}, weights_hash(model.module)), id="x")
    shift = block_states(moved, asked, find_sites(moved)[1]) - block_states(model, asked, site)
    assert close(shift[0], change, 1e-3)
    return "yes"


def tracing(module) -> str:
    model = model_of(module)
    statement = build_statement(model, FACT, own_answer=True)
    logits = module(input_ids=torch.tensor([statement.ids]), use_cache=False).logits[0, -1]
    assert statement.probability == pytest.approx(float(torch.softmax(logits.detach().float(), -1).max()), rel=1e-3)
    traced = trace(model, statement, "block", Setup(noise=0.5, samples=1, window=1))
    assert traced.clean == statement.probability
    return "yes"


VERBS: dict[str, Callable[..., str]] = {
    "scoring": scoring,
    "LoRA": training,
    "rome": rome,
    "memit": memit,
    "localize": tracing,
}


OVER_A_SECOND = ("falcon-h1", "granitemoehybrid")


@pytest.mark.parametrize(
    "architecture", [pytest.param(name, marks=[pytest.mark.long] * (name in OVER_A_SECOND)) for name in TABLE]
)
def test_each_verb_is_right_or_refused(architecture):
    cells = []
    for verb in VERBS.values():
        try:
            cells.append(verb(tiny_module(architecture)))
        except ConvictionError as error:
            cells.append("refused" if error.hint else "refused without a hint")
    line = f"| {architecture} | {' | '.join(cells)} |"
    page = PAGE.read_text(encoding="utf-8")
    if os.environ.get("RECORD"):
        kept = [known for known in page.splitlines() if not known.startswith(f"| {architecture} |")]
        PAGE.write_text("\n".join([*kept, line]) + "\n", encoding="utf-8")
        return
    assert line in page.splitlines()


def test_the_table_holds_these_architectures_and_no_others():
    rows = [line.split("|")[1].strip() for line in PAGE.read_text(encoding="utf-8").splitlines() if line[:2] == "| "]
    assert rows[1:] == list(TABLE)
