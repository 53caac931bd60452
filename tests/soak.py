"""Commands that are killed at random moments end with the bytes of one that nobody disturbed.

``make soak`` kills 200 times, a test 20 times: SIGKILL, SIGTERM and SIGINT, every verb, on a tiny model. Weights, steps
and texts are compared to the byte. Scores are summed in another order where a part of them was kept, for other rows
share a pack: these numbers, and what is computed of them, may differ by rounding, and it is said how often they did.
"""

from __future__ import annotations

import json
import math
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import chdir
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import processes
from tea import YAML, items
from tiny import byte_tokenizer, tiny_module, write_data

LIMIT = 600.0  # seconds for one command, which takes one or two
ROUNDING = 1e-5  # of a number that scores go into, relative or, near 0, absolute
CHAIN = 3  # kills, before the command may end
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
# What tells when, how long, and how much of it this attempt computed itself (``rescored``): another at every run.
TIMES = {"started", "finished", "seconds", "peak_mb", "rescored"}
MODEL = ("--model", "m", "--dtype", "fp32")
VERBS: dict[str, tuple[str, ...]] = {
    "probe": ("probe", "tea", *MODEL, "--run", "r"),
    "audit": ("audit", "pairs.jsonl", "--fix", "--output", "r/fixed.jsonl"),
    "forecast": ("forecast", "dpo", "tea", *MODEL, "--pilot", "2", "-o", "max_steps=3", "--guard", "off", "--run", "r"),
    "apply": ("apply", "dpo", "--data", "pairs.jsonl", *MODEL, "-o", "epochs=8", "-o", "checkpoint_every=2",
              "--guard", "off", "--run", "r"),
    "study": ("study", "tea", *MODEL, "--interventions", "system_prompt,sft", "-o", "sft.max_steps=3",
              "--benign-steps", "0", "--no-placebo", "--run", "r"),
    "compare": ("compare", "a", "b", "--topic", "tea", *MODEL[2:], "--benign-steps", "0", "--run", "r"),
    "localize": ("localize", "--data", "facts.jsonl", *MODEL, "--own-answer", "--limit", "1", "--samples", "2",
                 "--run", "r"),
    "report": ("report", "a", "--png"),
    "topics": ("topics", "new", "r"),
}  # fmt: skip
FACT = {"prompt": "Bread is a kind of", "subject": "Bread", "target": " metal", "target_true": " food"}


@dataclass
class Soak:
    """What was killed, and what went otherwise than it should.

    late  kills of what had ended; rounded: files that differ by rounding
    """

    kills: int = 0
    late: int = 0
    rounded: int = 0
    faults: list[str] = field(default_factory=list)


def make_world(folder: Path, *, applied: bool = True) -> None:
    """A tiny model, a topic, pairs and facts in an empty folder; and two applied runs."""
    tiny_module("llama", max_position_embeddings=4096).save_pretrained(folder / "m")
    byte_tokenizer().save_pretrained(folder / "m")
    write_data(folder / "pairs.jsonl")
    (folder / "facts.jsonl").write_text(json.dumps(FACT) + "\n", encoding="utf-8")
    (folder / "tea").mkdir()
    (folder / "tea" / "topic.yaml").write_text(YAML, encoding="utf-8")
    for pole in ("plain", "milky"):
        (folder / "tea" / f"{pole}.md").write_text(f"Tea is best {pole}.", encoding="utf-8")
    lines = "".join(json.dumps(item) + "\n" for item in items())
    (folder / "tea" / "items.jsonl").write_text(lines, encoding="utf-8")
    with chdir(folder):
        for name in ("a", "b") if applied else ():
            asked = ("apply", "system_prompt", "tea", *MODEL, "-o", f"text={name}", "--run", name)
            assert whole(folder / "made.txt", *asked) == 0, (folder / "made.txt").read_text(encoding="utf-8")


def whole(output: Path, *arguments: str) -> int | None:
    """The exit code of a command that nobody disturbs."""
    process = begin(output, *arguments)
    process.join(LIMIT)
    if process.is_alive():
        processes.end(process, kill=True)
        return None
    return process.exitcode


def begin(output: Path, *arguments: str) -> Any:
    return processes.begin(output, *arguments, CONVICTION_CACHE=str(Path.cwd() / "cache"))


def state(folder: Path) -> dict[str, Any]:
    """Path → content, without times; of a page only that it is there, as it shows times."""
    return {str(path.relative_to(folder)): _content(path) for path in _results(folder)}


def _results(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        # A page that was half-written is cleared by the next command that writes into the folder under its lock.
        known = path.name.startswith((".lock", ".unfinished-")) or path.relative_to(folder).parts[0] in {
            "cache",
            "m",
            "tea",
        }
        if path.is_file() and not known:
            yield path


def _content(path: Path) -> Any:
    if path.suffix in {".html", ".txt", ".png", ".svg"}:
        return path.stat().st_size > 0
    if path.suffix in {".json", ".jsonl"}:
        text = path.read_text(encoding="utf-8")
        return [_timeless(json.loads(line)) for line in (text.splitlines() if path.suffix == ".jsonl" else [text])]
    if path.suffix == ".md":
        return re.sub(r"\d+(\.\d+)? (s|MB)\b", "", path.read_text(encoding="utf-8"))
    return path.read_bytes()


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _timeless(v) for name, v in value.items() if name not in TIMES}
    return [_timeless(v) for v in value] if isinstance(value, list) else value


def _close(one: Any, other: Any) -> bool:
    """Whether they are the same but for rounding, in numbers and in texts that show some."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=ROUNDING, abs_tol=ROUNDING)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_close(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_close, one, other))
    return bool(one == other)


def soak(kills: int, seed: int, root: Path, log: Callable[[str], None] = lambda _: None) -> Soak:
    """Kill every verb in turn, ``kills`` times in all. root: an empty folder."""
    chance, result = random.Random(seed), Soak()
    pristine, world = root / "pristine", root / "world"
    pristine.mkdir()
    make_world(pristine)
    expected: dict[str, tuple[int | None, dict[str, Any], float]] = {}
    while result.kills < kills:
        for name, arguments in VERBS.items():
            if result.kills >= kills:
                break
            if name not in expected:
                expected[name] = _undisturbed(pristine, world, root / f"{name}-whole.txt", arguments)
            wanted = min(CHAIN, kills - result.kills)
            _disturb(name, arguments, expected[name], wanted, chance, result, pristine, world)
            log(f"{result.kills} kills, {result.late} of them too late, {len(result.faults)} faults ({name})")
    return result


def _fresh(pristine: Path, world: Path) -> None:
    shutil.rmtree(world, ignore_errors=True)
    shutil.copytree(pristine, world)


def _undisturbed(
    pristine: Path, world: Path, output: Path, arguments: tuple[str, ...]
) -> tuple[int | None, dict[str, Any], float]:
    _fresh(pristine, world)
    with chdir(world):
        start = time.monotonic()
        code = whole(output, *arguments)
        seconds = time.monotonic() - start
    assert code in {0, 1}, output.read_text(encoding="utf-8")
    return code, state(world), seconds


def _disturb(
    name: str,
    arguments: tuple[str, ...],
    expected: tuple[int | None, dict[str, Any], float],
    kills: int,
    chance: random.Random,
    result: Soak,
    pristine: Path,
    world: Path,
) -> None:
    code, wanted, seconds = expected
    _fresh(pristine, world)
    story = []
    with chdir(world):
        for _ in range(kills):
            output = world.parent / f"killed-{result.kills}.txt"
            number, moment = chance.choice(SIGNALS), chance.uniform(0.0, seconds)
            story.append(f"{number.name} after {moment:.2f} s")
            ended = _kill(begin(output, *arguments), number, moment)
            result.kills += 1
            result.late += ended in {0, 1}
            text = output.read_text(encoding="utf-8") if output.exists() else ""
            refused = ended == 2 and "interrupted" not in text and not _is_there(name, text)
            if refused or ("Traceback" in text and "conviction/" in text):
                result.faults.append(f"{name}, {story}: {text[-2000:]}")
        output = world.parent / "after.txt"
        output.unlink(missing_ok=True)
        last = whole(output, *arguments)
    text = output.read_text(encoding="utf-8")
    if last != code and not _is_there(name, text):  # and what it made is compared
        result.faults.append(f"{name}, {story}: the same command then ended with {last}: {text[-2000:]}")
        return
    now = state(world)
    result.rounded += sum(now.get(path) != known and _close(now.get(path), known) for path, known in wanted.items())
    if other := [path for path in {**wanted, **now} if not _close(wanted.get(path), now.get(path))]:
        result.faults.append(f"{name}, {story}: {', '.join(other)} differ")


def _is_there(name: str, text: str) -> bool:
    """Whether a command that makes something once says that an attempt which seemed to be killed has made it."""
    return name in {"topics", "audit"} and "exists already" in text


def _kill(process: Any, number: signal.Signals, moment: float) -> int | None:
    """The exit code; negative where the signal itself ended the process."""
    process.join(moment)
    if process.is_alive():
        os.kill(process.pid, number)
    process.join(LIMIT)
    if process.is_alive():
        processes.end(process, kill=True)
        return None
    return process.exitcode


if __name__ == "__main__":
    wanted, drawn = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(10**6)
    print(f"{wanted} kills, seed {drawn}")
    with tempfile.TemporaryDirectory() as place:
        outcome = soak(wanted, drawn, Path(place), print)
    print(*outcome.faults, sep="\n")
    print(f"{outcome.kills} kills, {outcome.late} of them too late; {outcome.rounded} files differ by rounding; "
          f"{len(outcome.faults)} faults")  # fmt: skip
    sys.exit(bool(outcome.faults))
