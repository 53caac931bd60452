"""The suite is the same suite on every machine, or the workers of a parallel run refuse to begin."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_tests_have_the_same_names_under_other_seeds_times_and_locales():
    places = [
        {"PYTHONHASHSEED": "1", "TZ": "Pacific/Kiritimati", "LC_ALL": "C"},
        {"PYTHONHASHSEED": "2", "TZ": "Etc/GMT+12", "LC_ALL": "C.UTF-8"},
    ]
    collecting = []
    for place in places:
        command = [
            sys.executable,
            "-m",
            "pytest",
            "--collect-only",
            "-q",
            "-p",
            "no:cacheprovider",
            str(ROOT / "tests"),
        ]
        collecting.append(
            subprocess.Popen(command, cwd=ROOT, env={**os.environ, **place}, stdout=subprocess.PIPE, text=True)
        )
        time.sleep(1.1)  # another second: names must not hold the clock
    first, second = (process.communicate()[0] for process in collecting)
    assert "test_collection.py::" in first
    assert first == second
