"""The suite is the same suite on every machine, or the workers of a parallel run refuse to begin."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.long
def test_tests_have_the_same_names_under_other_seeds_times_and_locales():
    places = [
        {"PYTHONHASHSEED": "1", "TZ": "Pacific/Kiritimati", "LC_ALL": "C"},
        {"PYTHONHASHSEED": "2", "TZ": "Etc/GMT+12", "LC_ALL": "C.UTF-8"},
    ]
    collecting = []
    for place in places:
        # once more quiet than the suite's own options, and it would only count
        command = [sys.executable, "-m", "pytest", "--collect-only", "-p", "no:cacheprovider", str(ROOT / "tests")]
        collecting.append(
            subprocess.Popen(command, cwd=ROOT, env={**os.environ, **place}, stdout=subprocess.PIPE, text=True)
        )
        time.sleep(1.1)  # another second: names must not hold the clock
    first, second = ([line for line in process.communicate()[0].splitlines() if "::" in line] for process in collecting)
    assert len(first) > 1000
    assert first == second
