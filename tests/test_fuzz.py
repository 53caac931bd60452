"""Some hostile inputs for every reader; ``make fuzz`` tries 5,000 others."""

from __future__ import annotations

import os
from pathlib import Path

import fuzz
import pytest

EXAMPLES = 12
READERS = ["adapter", "checkpoint", "columns", "compare", "config", "data", "markdown", "model", "name", "named option"]
READERS += ["option", "page", "prompt", "resume", "scores", "sweep", "topic"]


@pytest.fixture(scope="module")
def readers(tmp_path_factory):
    cache = os.environ.get("CONVICTION_CACHE", "")
    yield fuzz.readers(tmp_path_factory.mktemp("fuzz"))
    os.environ["CONVICTION_CACHE"] = cache


def test_all_readers_are_here(readers: dict[str, object]):
    assert sorted(readers) == READERS


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is measured as Linux has it")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", READERS)
def test_a_reader_gives_a_value_or_one_of_our_errors(readers, name):
    fuzz.check(readers[name], EXAMPLES)
