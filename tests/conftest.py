"""Shared parts: a cache of its own for every test, and tiny random models of many architectures."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from tea import YAML, items, tea_items
from tiny import byte_tokenizer, tiny_module

from conviction.cli.app import main

REAL_CACHE = os.environ.get("CONVICTION_CACHE")

# Begun with nohup, or by a script with &, the suite would ignore these signals, and so would what it begins.
if threading.current_thread() is threading.main_thread():
    for _number, _usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(_number) is signal.SIG_IGN:
            signal.signal(_number, _usual)

# The same examples on every run and machine: a suite that fails by chance says nothing of the change before it.
# HYPOTHESIS_PROFILE=fresh draws others; what they find is kept as an @example.
hypothesis.settings.register_profile("same", derandomize=True, database=None, deadline=None)
hypothesis.settings.register_profile("fresh", deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVICTION_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama as a user has it: a folder on disk."""
    folder = tmp_path_factory.mktemp("tiny-llama")
    tiny_module("llama", max_position_embeddings=4096).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def embedded_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model's folder, fetched on first use into the cache that the session was started with."""
    from conviction.models.embedded import EMBEDDED, ensure

    with pytest.MonkeyPatch.context() as patch:
        if REAL_CACHE:
            patch.setenv("CONVICTION_CACHE", REAL_CACHE)
        else:
            patch.delenv("CONVICTION_CACHE", raising=False)
        return ensure(EMBEDDED["smollm2-135m"])


@pytest.fixture(scope="session")
def session_cache(embedded_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the embedded model in it, and scores of tests of this session alone: of all its workers."""
    base = tmp_path_factory.getbasetemp()
    cache = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "session"
    cache.mkdir(exist_ok=True)
    with contextlib.suppress(FileExistsError):
        (cache / "models").symlink_to(embedded_folder.parent, target_is_directory=True)
    return cache


@pytest.fixture
def shared_scores(session_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores of the embedded model are kept for the tests after: several ask it the same, a minute and more each."""
    monkeypatch.setenv("CONVICTION_CACHE", str(session_cache))


@pytest.fixture
def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """Call the command line in this process; returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["conviction", *arguments])
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def write_topic(tmp_path: Path) -> Callable[..., Path]:
    """Writes a small topic folder; arguments replace its parts."""

    def write(*, items: list[dict[str, Any]] | str | None = None, yaml: str | None = None, name: str = "tea") -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "topic.yaml").write_text(
            yaml
            or (
                f"name: {name}\ntitle: Tea?\npoles:\n  plain: {{label: no milk, context: plain.md}}\n"
                "  milky: {label: milk, context: milky.md}\ntarget: milky\nitems: [items.jsonl]\n"
            ),
            encoding="utf-8",
        )
        for pole in ("plain", "milky"):
            (folder / f"{pole}.md").write_text(f"Tea is best {pole}.", encoding="utf-8")
        lines = items if isinstance(items, str) else "\n".join(map(json.dumps, items or tea_items(6)))
        (folder / "items.jsonl").write_text(lines, encoding="utf-8")
        return folder

    return write


@pytest.fixture
def tea(write_topic):
    return write_topic(yaml=YAML, items=items())
