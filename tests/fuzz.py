"""Hostile files and texts for every reader: an error of ours, within 5 seconds and 500 MB, or a value; nothing else.

``make fuzz`` tries 5,000 and prints what failed, made as small as hypothesis can; a test tries some of each reader.
"""

from __future__ import annotations

import gzip
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import soak
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from tea import BASE, load, plan
from tiny import pairs

from conviction.config.foreign import read_config
from conviction.core.context import RunContext
from conviction.core.options import parse_options
from conviction.core.run import Run
from conviction.data.columns import parse_columns
from conviction.data.reading import read_training_data
from conviction.data.topic import load_topic
from conviction.errors import ConvictionError, out_of_memory
from conviction.forecasting.records import Forecast
from conviction.forecasting.sweep import parse_sweep
from conviction.interventions.dpo import Dpo
from conviction.interventions.records import Outcome
from conviction.models import load_model
from conviction.models.score_cache import ScoreCache
from conviction.probing.records import Scorecard
from conviction.reporting.page import report, report_markdown
from conviction.studies.comparison import load_applied_runs
from conviction.studies.context import StudyDesign
from conviction.studies.records import Study
from conviction.studies.study import study
from conviction.training.checkpoint import load_latest, save_checkpoint
from conviction.training.guard import Guard
from conviction.verbs.changing import apply

SECONDS, WAITING, MEGABYTES = 5.0, 60.0, 500  # of computing; of waiting, on a machine that does much else
SHOWN = 600  # bytes of an input that fails
PAIRS = [{"prompt": p.messages[-1].content, "chosen": p.chosen, "rejected": p.rejected} for p in pairs(4).pairs]
CONFIGS = {
    "trl.yaml": "model_name_or_path: m\nbeta: 0.1\nlearning_rate: 1.0e-5\nuse_peft: true\nlora_r: 8\nseed: 1\n",
    "mlx.yaml": "model: m\ntrain_mode: dpo\nbeta: 0.1\nlora_parameters: {rank: 8, scale: 10.0}\niters: 9\n",
}
VALUES: list[Any] = [
    None, True, 0, -1, 1.5, 2**31, 2**63, 10**30, 1e308, 5e-324, float("nan"), float("inf"), "", "x", "\0", "\ud800",
    "\x1b[31m", "\u202e", "../../etc/passwd", "/dev/zero", "/proc/self/environ", "CON", "a" * 300, "x" * 99_999, [],
    {}, [1], [[]], {"a": 1}, [None], "{{ 7 * 7 }}", "<script>", "1e999", "-0",
]  # fmt: skip
BOMB = "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 8)}]\n" for a, b in pairwise("abcdefgh"))
TEXTS = [
    "[" * 100_000, '{"a":' * 5_000, "9" * 6_000, "&a [*a, *a]", f"a: &a [x, x]\n{BOMB}", "!!python/object:os.system x",
    "\ufeff{}", "\x00\x00", "null", "\u2028", "---\n---\n", "{", '"', "\r\r\n", "- " * 2_000, "? " * 500, "a: " * 300,
]  # fmt: skip


@dataclass(frozen=True)
class Content:
    """What a file holds, shown in short."""

    whole: bytes

    def __repr__(self) -> str:
        return repr(
            self.whole if len(self.whole) <= SHOWN else self.whole[: SHOWN // 2] + b" ... " + self.whole[-SHOWN // 2 :]
        )


class Hang(Exception):  # noqa: N818  what a reader did
    """It took longer than anything may."""


@contextmanager
def limits() -> Iterator[list[str]]:
    """In the block there are so many seconds and megabytes; what was passed is listed, also where it was caught."""
    passed: list[str] = []

    def ring(number: int, _: Any) -> None:
        passed.append(f"over {SECONDS:g} s" if number == signal.SIGPROF else f"nothing for {WAITING:g} s")
        raise Hang

    clocks = {signal.SIGPROF: (signal.ITIMER_PROF, SECONDS), signal.SIGALRM: (signal.ITIMER_REAL, WAITING)}
    before, memory = {n: signal.signal(n, ring) for n in clocks}, resource.getrlimit(resource.RLIMIT_AS)
    size = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + (MEGABYTES << 20), memory[1]))
    for clock, seconds in clocks.values():
        signal.setitimer(clock, seconds)
    try:
        yield passed
    finally:
        for number, (clock, _) in clocks.items():
            signal.setitimer(clock, 0)
            signal.signal(number, before[number])
        resource.setrlimit(resource.RLIMIT_AS, memory)


# -- what is tried -------------------------------------------------------------------


@st.composite
def hostile(draw: st.DrawFn, content: bytes, *, lines: bool) -> bytes:
    """A file of JSON, or of any other kind, that somebody has spoilt somewhere."""
    way = draw(st.sampled_from(["value", "value", "value", "bytes", "text", "whole"]))
    if way == "value":
        try:
            return _spoilt_values(draw, content, lines=lines)
        except ValueError:
            way = "bytes"  # it is no JSON
    if way == "bytes":
        at = draw(st.integers(0, len(content)))
        return content[:at] + draw(st.binary(max_size=8)) + content[at + draw(st.integers(0, 40)) :]
    if way == "text":
        at = draw(st.integers(0, len(content)))
        return content[:at] + draw(st.sampled_from(TEXTS)).encode() + content[at:]
    return draw(st.one_of(st.binary(max_size=60), st.sampled_from(TEXTS).map(str.encode), st.just(b"")))


def _spoilt_values(draw: st.DrawFn, content: bytes, *, lines: bool) -> bytes:
    texts = content.decode().splitlines() if lines else [content.decode()]
    records = [json.loads(text) for text in texts]
    for _ in range(draw(st.integers(1, 3))):
        number = draw(st.integers(0, len(records) - 1))
        records[number] = _spoilt(draw, records[number])
    return "\n".join(map(json.dumps, records)).encode() + b"\n" * lines


def _spoilt(draw: st.DrawFn, value: Any) -> Any:
    """Another value somewhere in it, a name less, or one more."""
    if not isinstance(value, dict | list) or not value or draw(st.integers(0, 7)) == 0:
        return draw(st.sampled_from(VALUES))
    if isinstance(value, list):
        at = draw(st.integers(0, len(value) - 1))
        return [*value[:at], _spoilt(draw, value[at]), *value[at + 1 :]]
    name = draw(st.sampled_from(sorted(value)))
    rest = {key: inner for key, inner in value.items() if key != name}
    if draw(st.integers(0, 9)) == 0:
        return rest
    if draw(st.integers(0, 19)) == 0:
        return value | {draw(st.sampled_from(["evil", "\ud800", "", "__class__"])): 1}
    return rest | {name: _spoilt(draw, value[name])}


@dataclass(frozen=True)
class Reader:
    """What reads, and a sound folder that it reads. only: the files that are spoilt; none: any."""

    read: Callable[[Path], Any]
    sound: Path
    only: tuple[str, ...] = ()

    def files(self) -> list[str]:
        """Those that may be spoilt, by their names."""
        names = sorted(str(p.relative_to(self.sound)) for p in self.sound.rglob("*") if p.is_file())
        return [n for n in names if (n in self.only if self.only else not n.endswith((".lock", ".html")))]


def readers(root: Path) -> dict[str, Reader | Callable[[str], Any]]:
    """Every reader of files from outside, by name, with sound files in ``root``; and those of the user's texts."""
    made = make_sound(root)
    return {
        "topic": Reader(load_topic, made / "tea"),
        "data": Reader(_read_each, made / "data"),
        "config": Reader(lambda folder: [read_config(folder / name) for name in CONFIGS], made / "configs"),
        "page": Reader(lambda folder: (report_markdown(folder), report(folder)), made / "study"),
        "markdown": Reader(report_markdown, made / "applied"),
        "resume": Reader(_load_each, made / "applied"),
        "compare": Reader(lambda folder: load_applied_runs([folder]), made / "applied", ("run.json", "outcome.json")),
        "checkpoint": Reader(lambda folder: load_latest(folder, lambda _: None), made / "checkpoints"),
        "adapter": Reader(_load_model, made / "applied/model", ("adapter_config.json", "adapter_model.safetensors")),
        "prompt": Reader(_load_model, made / "prompted/model"),
        "model": Reader(_load_model, made / "m"),
        "scores": Reader(_find_scores, made / "scores"),
        "option": lambda text: parse_options([Dpo, Guard], [text]),
        "named option": lambda text: parse_options([Dpo, Guard], [f"rank={text}"]),
        "sweep": lambda text: parse_sweep(Dpo(), [f"beta={text}"]),
        "columns": lambda text: parse_columns(f"prompt={text}"),
        "name": load_topic,
    }


def make_sound(root: Path) -> Path:
    """One sound folder of each kind."""
    soak.make_world(root, applied=False)
    (root / "data").mkdir()
    (root / "data/pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    (root / "data/pairs.json").write_text(json.dumps(PAIRS))
    (root / "data/facts.jsonl").write_text(json.dumps(soak.FACT) + "\n")
    (root / "data/pairs.csv").write_text("prompt,chosen,rejected\nq,yes,no\n")
    (root / "data/pairs.jsonl.gz").write_bytes(gzip.compress((root / "data/pairs.jsonl").read_bytes()))
    (root / "configs").mkdir()
    for name, text in CONFIGS.items():
        (root / "configs" / name).write_text(text)
    topic = load_topic(root / "tea")
    with Run.start(root / "study", topic="tea", verb="study", argv=["conviction", "study"]) as run:
        study(topic, BASE, (plan("rag", 0.4), plan("steer", error="this one cannot be done")), run, RunContext(),
              StudyDesign(load=load, benign_steps=0, placebo=False))  # fmt: skip
    base = str(root / "m")
    fields = {"guard": "off", "max_steps": 2, "batch_size": 2, "checkpoint_every": 0}
    apply("dpo", base, root / "tea", run=root / "applied", forecast_first=True, **fields)
    apply("system_prompt", base, root / "tea", run=root / "prompted")
    import torch

    save_checkpoint(root / "checkpoints", 1, {"a": torch.zeros(3)}, {"tokens": 1})
    (root / "scores").mkdir()
    os.environ["CONVICTION_CACHE"] = str(root / "scores")
    cache = ScoreCache(["x"])
    cache.keep({((1, 2), (3,)): (-0.5,)})
    cache.close()
    return root


def _read_each(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        read_training_data(path)


def _load_each(folder: Path) -> None:
    run = Run(folder, resumed=True)
    calls: list[Callable[[], Any]] = [lambda: run.head, run.config, lambda: run.cut_steps(1), run.steps_if_sound]
    calls += [lambda: run.load("outcome", Outcome), lambda: run.load_forecast(Forecast)]
    calls += [lambda: run.load("before", Scorecard), lambda: run.load("study", Study)]
    for call in calls:
        with suppress(ConvictionError):
            call()


def _load_model(folder: Path) -> None:
    load_model(str(folder), device="cpu").describe()


def _find_scores(folder: Path) -> None:
    os.environ["CONVICTION_CACHE"] = str(folder)
    cache = ScoreCache(["x"])
    try:
        for logprobs in cache.find([((1, 2), (3,))]).values():
            assert len(logprobs) == 1
            assert logprobs[0] <= 0, "a value that no log-probability has was served"
    finally:
        cache.close()


# -- how it is tried -----------------------------------------------------------------


def attempt(read: Callable[[Any], Any], given_: Any) -> None:
    """Raise AssertionError for an error that is not ours, and for what takes too much."""
    problem = None
    with limits() as passed:
        try:
            read(given_)
        except ConvictionError as error:
            problem = error
        except AssertionError:
            raise
        except Exception as error:
            raise AssertionError("".join(traceback.format_exception(error)[-4:])) from None
    assert not passed, passed[0]
    assert problem is None or not out_of_memory(problem), f"over {MEGABYTES} MB"
    assert problem is None or problem.hint


def check(reader: Reader | Callable[[str], Any], examples: int, *, start: int | None = None) -> None:
    """Try a reader on so many inputs. start: a seed; None: the same inputs at every call."""
    if isinstance(reader, Reader):
        source, files = reader, reader.files()
        source.read(source.sound)  # it is; and what is loaded once (a browser's engine, for charts) counts for no input

        def one(data: st.DataObject) -> None:
            name = data.draw(st.sampled_from(files), label="file")
            content = (source.sound / name).read_bytes()
            spoilt = data.draw(hostile(content, lines=name.endswith(".jsonl")).map(Content), label="content")
            with tempfile.TemporaryDirectory() as place:
                folder = Path(place) / source.sound.name
                shutil.copytree(source.sound, folder, symlinks=True)
                (folder / name).write_bytes(spoilt.whole)
                attempt(source.read, folder)

    else:
        text = st.one_of(st.text(), st.sampled_from([v for v in VALUES if isinstance(v, str)] + TEXTS))
        read = reader

        def one(data: st.DataObject) -> None:
            attempt(read, data.draw(text, label="text"))

    chosen = settings(
        max_examples=examples, derandomize=start is None, database=None, deadline=None, print_blob=False,
        suppress_health_check=list(HealthCheck), report_multiple_bugs=False,
    )  # fmt: skip
    test = chosen(given(st.data())(one))
    (test if start is None else seed(start)(test))()


def main(examples: int, start: int) -> int:
    """Try all readers, and print what failed; the number of readers that did."""
    failed = []
    with tempfile.TemporaryDirectory() as place:
        known = readers(Path(place))
        for name, reader in known.items():
            try:
                check(reader, -(-examples // len(known)), start=start)
            except Exception as error:
                notes = "\n".join(getattr(error, "__notes__", []))
                print(f"FAILED {name}: {str(error)[-1500:]}\n{notes[-1500:]}", flush=True)
                failed.append(name)
            else:
                print(f"{name}: {-(-examples // len(known))} inputs", flush=True)
    print(f"{examples} inputs, seed {start}: {', '.join(failed) or 'none'} failed")
    return len(failed)


if __name__ == "__main__":
    sys.exit(bool(main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else int.from_bytes(os.urandom(4)))))
