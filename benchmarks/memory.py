"""Peak memory over the loaded weights while 500 pairs are scored, in a process of its own."""

from __future__ import annotations

import os
import tempfile
import threading
import time

import psutil

from benchmarks.machine import save
from benchmarks.questions import pairs
from conviction import Query, chat
from conviction.models.hf import load

TARGET_MB = 400


def main() -> None:
    process = psutil.Process()
    result = {}
    for dtype in ("fp32", "bf16"):
        model = load("smollm2-135m", dtype=dtype)  # its self-check touches every weight
        name, found = pairs(500)
        loaded = peak = process.memory_info().rss
        done = threading.Event()

        def watch() -> None:
            nonlocal peak
            while not done.is_set():
                peak = max(peak, process.memory_info().rss)
                time.sleep(0.005)

        before = os.environ.get("CONVICTION_CACHE")
        with tempfile.TemporaryDirectory() as folder:
            os.environ["CONVICTION_CACHE"] = folder
            watcher = threading.Thread(target=watch)
            watcher.start()
            model.logprobs([Query(chat(q), (a, b)) for q, a, b in found])
            done.set()
            watcher.join()
        os.environ.pop("CONVICTION_CACHE")
        if before is not None:
            os.environ["CONVICTION_CACHE"] = before
        result[dtype] = {
            "data": name,
            "pairs": len(found),
            "rss_loaded_mb": round(loaded / 2**20),
            "peak_over_loaded_mb": round((peak - loaded) / 2**20),
            "target_mb": TARGET_MB,
        }
        print(f"{dtype}: {result[dtype]['peak_over_loaded_mb']} MB over {result[dtype]['rss_loaded_mb']} MB")
        del model
    save("memory", result)


if __name__ == "__main__":
    main()
