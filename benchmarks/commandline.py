"""Whole-process times of the command line, embedded model cached, nothing scored before."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.machine import save
from conviction.models.embedded import EMBEDDED, ensure

COMMANDS = {
    "conviction --help": (["--help"], 7, 0.4),
    "conviction probe obesity --quick": (["probe", "obesity", "--quick"], 5, 12.0),
    "conviction probe obesity": (["probe", "obesity"], 3, None),
}


def main() -> None:
    folder = ensure(EMBEDDED["smollm2-135m"])
    result = {}
    for name, (arguments, runs, target) in COMMANDS.items():
        seconds = []
        for _ in range(runs):
            with tempfile.TemporaryDirectory() as work:
                (Path(work) / "models").symlink_to(folder.parent)
                start = time.perf_counter()
                subprocess.run(
                    [sys.executable, "-m", "conviction", *arguments],
                    env={**os.environ, "CONVICTION_CACHE": work},
                    cwd=work,
                    check=True,
                    capture_output=True,
                )
                seconds.append(time.perf_counter() - start)
        result[name] = {
            "seconds": [round(s, 2) for s in seconds],
            "median": round(statistics.median(seconds), 2),
            "target": target,
        }
        print(f"{name}: {result[name]['median']} s (median of {runs})")
    save("commandline", {"commands": result})


if __name__ == "__main__":
    main()
