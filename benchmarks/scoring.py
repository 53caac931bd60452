"""Pairs per second against lm-evaluation-harness's HFLM, three shapes, two dtypes.

plain           chat template and question before each answer
shared_context  one 400-token context before all questions
own_context     another 400-token context before each question

Both sides score the same texts with the same weights, dtype and threads, in one
process, alternating. lm-eval gets its best batch size of 1, 8 and 16. The share of the matrix-multiply rate
counts the body's linear layers on the tokens of the plan and
the head on distinct predicting positions; attention, norms and the softmax are left out.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from benchmarks.machine import save
from benchmarks.questions import context, pairs
from conviction import Message, Query, chat
from conviction.models.engine.packing import plan
from conviction.models.hf import HFModel
from conviction.models.loading import load_model

ROUNDS = 3
SIZES = {"plain": 120, "shared_context": 16, "own_context": 12}
TARGETS = {"plain": 2.5, "shared_context": 8.0, "own_context": 2.0}


def conversations(shape: str, model: HFModel) -> list[tuple[tuple[Message, ...], tuple[str, str]]]:
    _, found = pairs(SIZES[shape])
    if shape == "plain":
        return [(chat(q), (a, b)) for q, a, b in found]
    return [(chat(q, system=_context(shape, i, model)), (a, b)) for i, (q, a, b) in enumerate(found)]


def _context(shape: str, i: int, model: HFModel) -> str:
    return context(400, model.tokenizer, skip=0 if shape == "shared_context" else 3 * i)


def ours(model: HFModel, work: list[Any]) -> tuple[float, list[float]]:
    """Seconds and summed log-probs, nothing cached, cache written as in real use."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CONVICTION_CACHE"] = folder
        start = time.perf_counter()
        scores = model.logprobs([Query(messages, answers) for messages, answers in work])
        seconds = time.perf_counter() - start
    return seconds, [s.logp_sum for group in scores for s in group]


def theirs(rival: HFLM, model: HFModel, work: list[Any]) -> tuple[float, list[float]]:
    requests = [
        Instance("loglikelihood", {}, (model.encoder.render(messages), answer), i)
        for i, (messages, answer) in enumerate((m, a) for m, answers in work for a in answers)
    ]
    start = time.perf_counter()
    scores = rival.loglikelihood(requests, disable_tqdm=True)
    return time.perf_counter() - start, [float(s) for s, _ in scores]


def compare(shape: str, model: HFModel) -> dict[str, Any]:
    work = conversations(shape, model)
    rivals = {b: HFLM(pretrained=model.module, tokenizer=model.tokenizer, batch_size=b) for b in (1, 8, 16)}
    trial = work[: max(4, len(work) // 4)]
    by_batch = {b: theirs(rival, model, trial)[0] for b, rival in rivals.items()}
    best = min(by_batch, key=lambda b: by_batch[b])
    ours(model, trial)  # both sides are warm now
    ratios, our_rates, their_rates, difference = [], [], [], 0.0
    for _ in range(ROUNDS):
        our_seconds, our_scores = ours(model, work)
        their_seconds, their_scores = theirs(rivals[best], model, work)
        ratios.append(their_seconds / our_seconds)
        our_rates.append(len(work) / our_seconds)
        their_rates.append(len(work) / their_seconds)
        difference = max(difference, *(abs(a - b) for a, b in zip(our_scores, their_scores, strict=True)))
    gemm, share = efficiency(model, work, min(len(work) / r for r in our_rates))
    return {
        "pairs": len(work),
        "our_pairs_per_second": [round(r, 2) for r in our_rates],
        "lm_eval_pairs_per_second": [round(r, 2) for r in their_rates],
        "lm_eval_batch_size": best,
        "lm_eval_trial_seconds_by_batch_size": {b: round(s, 2) for b, s in by_batch.items()},
        "ratio_median": round(statistics.median(ratios), 2),
        "ratio_min": round(min(ratios), 2),
        "target_ratio": TARGETS[shape],
        "max_difference_nats_per_answer": difference,
        "gemm_gflops": round(gemm / 1e9, 1),
        "share_of_gemm_rate": round(share, 3),
    }


def efficiency(model: HFModel, work: list[Any], seconds: float) -> tuple[float, float]:
    """FLOP/s of bare multiplications at the model's shapes, and the share of it that scoring reaches."""
    encoded = [model.encoder.encode(m, answers) for m, answers in work]
    rows = [(prompt, answer) for prompt, answers in encoded for answer in answers]
    hidden = model.module.config.hidden_size
    blocks = plan(((p, [a]) for p, a in rows), token_budget=model.engine.token_budget, hidden_size=hidden)
    tokens = sum(len(block.prefix) + sum(len(pack.tokens) for pack in block.packs) for block in blocks)
    predicting = sum(
        len({n for ps in t.answers.values() for n, _ in ps}) for b in blocks for k in b.packs for t in k.trees
    )
    body = [m.weight for n, m in model.module.named_modules() if isinstance(m, torch.nn.Linear) and "lm_head" not in n]
    head = model.module.get_output_embeddings().weight
    useful = 2 * tokens * sum(w.numel() for w in body) + 2 * predicting * head.numel()
    rate = gemm_rate([*body, head], tokens=512, dtype=model.dtype)
    return rate, useful / seconds / rate


@torch.inference_mode()
def gemm_rate(weights: list[torch.Tensor], *, tokens: int, dtype: torch.dtype) -> float:
    """Best of five passes over all of the model's own matrices, 512 rows each: weights come from memory, as in use."""
    inputs = {w.shape[1]: torch.randn(tokens, w.shape[1]).to(dtype) for w in weights}
    flops = sum(2 * tokens * w.numel() for w in weights)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        for w in weights:
            torch.nn.functional.linear(inputs[w.shape[1]], w)
        best = min(best, time.perf_counter() - start)
    return flops / best


def main() -> None:
    cache = os.environ.get("CONVICTION_CACHE")
    result: dict[str, Any] = {"data": pairs(1)[0], "rounds": ROUNDS}
    for dtype in ("fp32", "bf16"):
        if cache is None:
            os.environ.pop("CONVICTION_CACHE", None)
        else:
            os.environ["CONVICTION_CACHE"] = cache
        model = load_model("smollm2-135m", dtype=dtype)
        result[dtype] = {}
        for shape in SIZES:
            result[dtype][shape] = found = compare(shape, model)
            print(
                f"{dtype} {shape}: {found['ratio_median']}x of lm-eval, max difference "
                f"{found['max_difference_nats_per_answer']:.1e} nats, {found['share_of_gemm_rate']:.0%} of GEMM rate"
            )
    save("scoring", result)


if __name__ == "__main__":
    main()
