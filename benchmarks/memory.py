"""Peak memory over the loaded weights while 500 pairs are scored, in a process of its own."""

from __future__ import annotations

import os
import tempfile
import threading

import psutil

from benchmarks.machine import save
from benchmarks.questions import pairs
from conviction import Query, chat
from conviction.models.loading import load_model

TARGET_MB = 400


class PeakWatcher(threading.Thread):
    """Reads this process's resident size every 5 ms."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._peak = 0
        self._done = threading.Event()

    def run(self) -> None:
        process = psutil.Process()
        while not self._done.wait(0.005):
            self._peak = max(self._peak, process.memory_info().rss)

    def stop(self) -> int:
        """The largest size seen, in bytes."""
        self._done.set()
        self.join()
        return self._peak


def main() -> None:
    process = psutil.Process()
    result = {}
    for dtype in ("fp32", "bf16"):
        model = load_model("smollm2-135m", dtype=dtype)  # its self-check touches every weight
        name, found = pairs(500)
        loaded = process.memory_info().rss
        watcher = PeakWatcher()
        before = os.environ.get("CONVICTION_CACHE")
        with tempfile.TemporaryDirectory() as folder:
            os.environ["CONVICTION_CACHE"] = folder
            watcher.start()
            model.logprobs([Query(chat(q), (a, b)) for q, a, b in found])
            peak = watcher.stop()
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
