"""``python -m benchmarks [NAME …]``: run all or some, each in a process of its own, one at a time."""

from __future__ import annotations

import subprocess
import sys

NAMES = (
    "commandline",
    "memory",
    "token_budget",
    "scoring",
    "training",
    "guard_battery",
    "audit",
    "audit_calibration",
    "calibration.verdicts",
    "few_pairs",
    "displacement",
    "forecast_battery",
    "forecast_cost",
    "editing",
    "retrieval",
    "localization",
    "study",
)

if __name__ == "__main__":
    for name in sys.argv[1:] or NAMES:
        print(f"== {name}")
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=True)
