"""How many tokens a forward pass should hold on this CPU: pairs per second over budgets."""

from __future__ import annotations

import os
import tempfile
import time

from benchmarks.machine import save
from benchmarks.questions import pairs
from conviction import Query, chat
from conviction.models.loading import load_model

BUDGETS = (128, 256, 512, 1024, 2048)
ROUNDS = 3


def main() -> None:
    name, found = pairs(80)
    queries = [Query(chat(q), (a, b)) for q, a, b in found]
    cache = os.environ.get("CONVICTION_CACHE")
    result = {}
    for dtype in ("fp32", "bf16"):
        model = load_model("smollm2-135m", dtype=dtype)
        seconds: dict[int, float] = dict.fromkeys(BUDGETS, float("inf"))
        with tempfile.TemporaryDirectory() as root:
            for i in range(ROUNDS):
                for budget in BUDGETS:  # alternating, so that a slow moment hits all
                    os.environ["CONVICTION_CACHE"] = f"{root}/{i}-{budget}"
                    model.engine.token_budget = budget
                    start = time.perf_counter()
                    model.logprobs(queries)
                    seconds[budget] = min(seconds[budget], time.perf_counter() - start)
        os.environ.pop("CONVICTION_CACHE")
        if cache is not None:
            os.environ["CONVICTION_CACHE"] = cache
        result[dtype] = {budget: round(len(queries) / s, 2) for budget, s in seconds.items()}
        print(dtype, result[dtype])
    save("token_budget", {"data": name, "pairs": len(found), "best_pairs_per_second": result})


if __name__ == "__main__":
    main()
