"""A finished study, as a page is made of it."""

from __future__ import annotations

import pytest
from tea import BASE, EVIL, load, plan

from conviction import load_topic
from conviction.core.context import RunContext
from conviction.core.run import Run
from conviction.studies.context import StudyDesign
from conviction.studies.study import study


@pytest.fixture
def run(tea, tmp_path):
    """A finished study of two arms."""
    with Run.start(tmp_path / "run", topic="tea", verb="study", argv=["conviction", "study", EVIL]) as opened:
        study(
            load_topic(str(tea)),
            BASE,
            (plan("rag", 0.4), plan("steer", error="this one cannot be done")),
            opened,
            RunContext(),
            StudyDesign(load=load, benign_steps=0, placebo=False),
        )
    return tmp_path / "run"
