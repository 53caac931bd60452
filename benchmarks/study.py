"""A study of six arms, whose settings are searched, on the embedded model: seconds in all and by step, and its page.

    python -m benchmarks.study [RUN]

The command runs in a process of its own, as a user would run it, with an empty cache of scores. The page is then
opened in headless Chromium, where there is one.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.machine import machine, save

ARMS = "system_prompt,rag,steer,distill,sft,dpo"


def main(run: str | None = None) -> None:
    """Measure, print, save."""
    folder = Path(run) if run is not None else Path(tempfile.mkdtemp()) / "study"
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "CONVICTION_CACHE": cache}
        program = [sys.executable, "-m", "conviction"]
        subprocess.run([*program, "probe", "obesity", "--quick", "--run", f"{cache}/warm"], env=environment, check=True)
        command = ["study", "obesity", "--interventions", ARMS, "--seeds", "1", "--run", str(folder)]
        start = time.perf_counter()
        done = subprocess.run([*program, *command], env=environment, check=False)
        seconds = time.perf_counter() - start
    save("study", measured(folder, " ".join(command), done.returncode, seconds))


def measured(folder: Path, command: str, exit_code: int, seconds: float) -> dict[str, Any]:
    """What is kept of a study in a folder."""
    found = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    page = folder / "report.html"
    first = page.read_bytes()
    subprocess.run([sys.executable, "-m", "conviction", "report", str(folder)], check=True)
    result: dict[str, Any] = {
        "machine": machine(),
        "command": command,
        "exit_code": exit_code,
        "seconds": seconds,
        "seconds_by_step": _steps(folder),
        "page_bytes": len(first),
        "page_same_when_rebuilt": page.read_bytes() == first,
        "page_opens_ms": _opens(page),
        "model": found["provenance"]["model"],
        "arms": found["arms"],
    }
    print(json.dumps({k: v for k, v in result.items() if k not in ("machine", "model", "arms")}, indent=1))
    return result


def _steps(folder: Path) -> dict[str, float]:
    """Step → seconds since the one before, by when its file was written."""
    stages = ("forecast", "outcome", "placebo", "after_benign", "reversal", "comparison")
    names = ("before", "depth", "findings", "tuning", *stages)
    files = [p for n in names for p in (folder / f"{n}.json", *folder.glob(f"arms/*/{n}.json")) if p.exists()]
    files.sort(key=lambda p: p.stat().st_mtime)
    last = json.loads((folder / "run.json").read_text(encoding="utf-8"))["started"]
    before, seconds = datetime.fromisoformat(last).timestamp(), {}
    for path in files:
        seconds[str(path.relative_to(folder).with_suffix(""))] = round(path.stat().st_mtime - before, 1)
        before = path.stat().st_mtime
    return seconds


def _opens(page: Path) -> float | None:
    """Milliseconds until headless Chromium has loaded the page; median of five."""
    chromium = shutil.which("chromium")
    if chromium is None:
        return None
    from playwright.sync_api import sync_playwright

    times = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for _ in range(5):
            tab = browser.new_page()
            tab.goto(page.resolve().as_uri())
            times.append(tab.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd"))
            tab.close()
        browser.close()
    return float(sorted(times)[2])


if __name__ == "__main__":
    main(*sys.argv[1:])
