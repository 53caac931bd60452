"""What a machine does to us: signals, two commands at once, a full disk, no memory. Nothing is lost, and it is said."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import processes
import pytest
import soak
from processes import SERVER, begin, end
from tiny import write_data

from conviction.core.lock import only_one
from conviction.core.storage import clear_unfinished, is_unfinished, new_folder_beside, storage_errors, write_atomic
from conviction.errors import RunError, StorageError, no_memory, out_of_memory

WAIT = 300.0  # seconds, on a machine that does much else
TRAIN = ("apply", "dpo", "--data", "pairs.jsonl", "--dtype", "fp32", "--guard", "off", "--run", "r")


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_data(tmp_path / "pairs.jsonl")
    return tmp_path


def until(path: Path) -> None:
    """Wait for something that a process writes."""
    start = time.monotonic()
    while not path.exists():
        assert time.monotonic() - start < WAIT, f"no {path} was written"
        time.sleep(0.01)


def status() -> str:
    return json.loads(Path("r/run.json").read_text(encoding="utf-8"))["status"]


# -- signals -------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_interrupts_a_run_and_says_how_to_go_on(place, tiny_folder, name):
    asked = (*TRAIN, "--model", str(tiny_folder), "-o", "epochs=2000")
    process = begin(place / "out.txt", *asked)
    until(place / "r/steps.jsonl")
    os.kill(process.pid or 0, getattr(signal, name))
    assert end(process) == 2
    text = (place / "out.txt").read_text(encoding="utf-8")
    assert "error: interrupted\nhelp: what was finished is kept" in text
    assert "Traceback" not in text
    assert status() == "interrupted"


def test_a_signal_that_is_ignored_stays_ignored():
    """``nohup`` is there so that a closed terminal does not end the work."""
    from conviction.cli.signals import ended_by_signals

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ended_by_signals():
            os.kill(os.getpid(), signal.SIGHUP)
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("imported", ["inspect", "typer.models", "rich.text", "conviction.cli.study"])
def test_a_signal_before_everything_is_imported_shows_no_traceback(name, imported):
    """A command imports for up to half a second; it prints what was imported, and is then killed."""
    command = [sys.executable, "-X", "importtime", "-m", "conviction", "topics", "--format"]
    form = "json" if name == "SIGTERM" else "text"
    with subprocess.Popen([*command, form], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.split("|")[-1].strip() == imported:
                break
        process.send_signal(getattr(signal, name))
        text = process.stderr.read()
    assert process.returncode == 2, text
    assert "Traceback" not in text
    lines = [line for line in text.splitlines() if not line.startswith("import time:")]
    if form == "json":
        assert json.loads(lines[-1])["error"] == "interrupted"
    else:
        assert "\n".join(lines).startswith("error: interrupted\nhelp: what was finished is kept")


@pytest.mark.slow
def test_twenty_kills_of_all_verbs_lose_nothing(tmp_path):
    outcome = soak.soak(20, 22, tmp_path)
    assert outcome.faults == []
    assert outcome.late <= 10, "most of them met a command at work"


def test_a_run_that_was_killed_before_its_first_file_was_whole_is_begun_again(run, write_topic, tiny_folder):
    """SIGKILL between a file and its name left a folder that refused its own command."""
    Path("r").mkdir()
    Path("r/.unfinished-0123456789abcdef").write_text('{"half')
    asked = ("probe", str(write_topic()), "--model", str(tiny_folder), "--quick", "--run", "r")
    code, _, err = run(*asked)
    assert code == 0, err
    assert not Path("r/.unfinished-0123456789abcdef").exists()


def test_only_what_a_killed_process_left_is_cleared(tmp_path):
    for name in (".gitignore", ".hidden-file", "run.json", ".x-0123456789abcdef"):
        (tmp_path / name).write_text("")
    half = new_folder_beside(tmp_path / "arms" / "step-000025")
    (half / "tensors").write_text("")
    clear_unfinished(tmp_path)
    assert not half.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        ".gitignore",
        ".hidden-file",
        ".x-0123456789abcdef",
        "arms",
        "run.json",
    ]


def test_a_study_that_is_killed_while_its_page_is_built_ends_with_its_page(run, write_topic, tiny_folder, monkeypatch):
    from conviction.reporting import page

    asked = ("study", str(write_topic()), "--model", str(tiny_folder), "--interventions", "system_prompt")
    asked += ("--benign-steps", "0", "--run", "r")

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(page, "write_atomic", killed)
        assert "interrupted" in run(*asked)[2]
    assert not Path("r/report.html").exists()
    code, out, err = run(*asked)
    assert code == 0, err
    assert "system_prompt" in out
    assert Path("r/report.html").stat().st_size > 0


def test_the_page_of_a_study_is_there_before_its_first_arm_and_after_each(run, write_topic, tiny_folder, monkeypatch):
    from conviction.studies import study

    pages, real = list[str](), study.carry_out

    def carry_out(*given):
        pages.append(Path("r/report.html").read_text(encoding="utf-8"))
        return real(*given)

    monkeypatch.setattr(study, "carry_out", carry_out)
    asked = ("study", str(write_topic()), "--model", str(tiny_folder), "--interventions", "system_prompt,steer")
    code, _, err = run(*asked, "--benign-steps", "0", "--tune", "off", "--run", "r")
    assert code == 0, err
    assert [">system_prompt<" in page.partition('<script id="data"')[0] for page in pages] == [False, True]
    assert err.count("page, written again after each arm: r/report.html") == 1
    assert "arm 1 of 2: system_prompt, then steer (" in err


# -- two at once ---------------------------------------------------------------------


@pytest.mark.long
def test_the_second_of_two_commands_with_one_run_is_told_who_holds_it(place, tiny_folder):
    asked = (*TRAIN, "--model", str(tiny_folder), "-o", "epochs=20")
    first = begin(place / "first.txt", *asked)
    until(place / "r/steps.jsonl")
    second = begin(place / "second.txt", *asked)
    assert end(second) == 2
    assert end(first) == 0
    text = (place / "second.txt").read_text(encoding="utf-8")
    assert f"error: another command writes into r: process {first.pid} (conviction apply dpo" in text
    assert "help: wait for it, or give --run another folder" in text
    assert len((place / "r/steps.jsonl").read_text(encoding="utf-8").splitlines()) == 40
    assert sorted(p.name for p in (place / "r").glob(".*")) == [".lock"], "the folder does not say whose process it was"


def hold(lock: Path, seconds: float) -> None:
    sys.argv = ["conviction", "rag", "\x1b[31m"]
    with only_one(lock, "it", hint="wait"):
        (lock.parent / "held").write_text("")
        time.sleep(seconds)


def test_a_lock_is_waited_for_where_that_is_wanted_and_its_holder_named(tmp_path):
    process = SERVER.Process(target=hold, args=(tmp_path / "lock", 1.0))
    process.start()
    until(tmp_path / "held")
    named = rf"writes into it: process {process.pid} \(conviction rag '\\x1b\[31m'\), since"
    with pytest.raises(RunError, match=named), only_one(tmp_path / "lock", "it", hint="wait"):
        pass
    logged: list[str] = []
    with only_one(tmp_path / "lock", "it", hint="wait", wait=WAIT, log=logged.append):
        assert process.exitcode is not None or process.join(1.0) is None
    assert len(logged) == 1
    assert f"process {process.pid}" in logged[0]
    end(process)


def test_two_processes_bring_one_index_up_to_date_one_after_the_other(tmp_path, monkeypatch):
    from conviction.data.training_data import Document
    from conviction.retrieval import index

    inside, together = [], []

    def up_to_date(folder, *_):
        inside.append(folder)
        time.sleep(0.1)
        together.append(len(inside))
        inside.pop()

    monkeypatch.setattr(index, "_up_to_date", up_to_date)
    documents = [Document(id="d", text="Milk is good.")]
    made = [
        threading.Thread(
            target=index.build_index, args=(tmp_path / "i", documents), kwargs={"embedder": "e", "piece_tokens": 9}
        )
        for _ in range(3)
    ]
    for thread in made:
        thread.start()
    for thread in made:
        thread.join()
    assert together == [1, 1, 1]
    assert not (tmp_path / "i").exists(), "the lock is beside the index, which may be made anew"


@pytest.mark.long
def test_two_commands_share_one_cache(place, tiny_folder, write_topic, monkeypatch):
    monkeypatch.setenv("CONVICTION_CACHE", str(place / "cache"))
    asked = ("probe", str(write_topic()), "--model", str(tiny_folder), "--dtype", "fp32", "--run")
    both = [begin(place / f"{name}.txt", *asked, name) for name in ("a", "b")]
    assert [end(process) for process in both] == [0, 0], (place / "b.txt").read_text(encoding="utf-8")
    rows = [(place / name / "samples.jsonl").read_text(encoding="utf-8").splitlines() for name in ("a", "b")]
    assert len(rows[0]) == len(rows[1]) > 20
    for one, other in zip(*rows, strict=True):
        assert soak._close(json.loads(one), json.loads(other))


def test_a_locked_cache_is_not_told_to_free_space(tmp_path):
    with sqlite3.connect(tmp_path / "scores.sqlite") as first:
        first.execute("BEGIN EXCLUSIVE")
        second = sqlite3.connect(tmp_path / "scores.sqlite", timeout=0)
        with pytest.raises(StorageError) as caught, storage_errors("writing the score cache"):
            second.execute("BEGIN IMMEDIATE")
        second.close()
    first.close()
    assert "another process" in caught.value.hint
    assert "space" not in caught.value.hint


# -- no room, no memory --------------------------------------------------------------


def limited(arguments: tuple[str, ...], output: Path, limit: int, size: int) -> None:
    """A command with a bound on its memory or on its files. On Linux: a process's own size comes first."""
    if limit == resource.RLIMIT_AS:
        size += int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    else:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(limit, (size, resource.getrlimit(limit)[1]))
    processes._command(list(arguments), dict(os.environ), output)


linux = pytest.mark.skipif(sys.platform != "linux", reason="the limits are Linux's")


@linux
@pytest.mark.long
@pytest.mark.parametrize("room", [1, 12])
def test_without_memory_there_is_an_error_and_no_traceback(place, tiny_folder, room):
    """With 1 MB more than it has, a process loads no model; with 12 it may load one, and cannot train it."""
    asked = (*TRAIN, "--model", str(tiny_folder), "-o", "max_steps=2")
    process = SERVER.Process(target=limited, args=(asked, place / "out.txt", resource.RLIMIT_AS, room << 20))
    process.start()
    code, text = end(process), (place / "out.txt").read_text(encoding="utf-8")
    assert "Traceback" not in text
    assert code == 2 or (code == 0 and room > 1), text
    assert code == 0 or re.search(r"error: (there is no memory left|no memory is left for) .*\nhelp: ", text), text


@linux
@pytest.mark.long
def test_a_limit_on_addresses_does_not_abort_the_page(place, tiny_folder, write_topic):
    """The drawing library reserves 64 GB of them, and aborted the process (SIGTRAP) under ``ulimit -v``."""
    room = (resource.RLIMIT_AS, 2 << 30)
    process = SERVER.Process(
        target=limited, args=(("audit", str(write_topic()), "--run", "r"), place / "out.txt", *room)
    )
    process.start()
    assert end(process) == 1  # findings, as without a limit
    assert (place / "r/report.html").exists(), "there is a page that has no pictures"
    asked = ("probe", str(write_topic()), "--model", str(tiny_folder), "--quick", "--run", "p")
    assert end(begin(place / "probe.txt", *asked)) == 0
    (place / "p/report.html").unlink()
    process = SERVER.Process(target=limited, args=(("report", "p"), place / "page.txt", *room))
    process.start()
    assert end(process) == 2
    text = (place / "page.txt").read_text(encoding="utf-8")
    assert "error: pictures cannot be drawn" in text
    assert "ulimit -v unlimited" in text
    assert not (place / "p/report.html").exists()
    process = SERVER.Process(target=limited, args=(asked, place / "again.txt", *room))
    process.start()
    assert end(process) == 0, "what was measured is not lost for want of a picture"
    assert "note: there is no page: pictures cannot be drawn" in (place / "again.txt").read_text(encoding="utf-8")


def test_no_memory_is_known_in_the_words_of_every_library():
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
                  RuntimeError("CUDA out of memory."), OSError(12, "Cannot allocate memory"),
                  RuntimeError("can't start new thread"), RuntimeError("std::bad_alloc")):  # fmt: skip
        assert out_of_memory(error)
        assert no_memory(error).hint
    assert not out_of_memory(RuntimeError("shape mismatch"))


@pytest.fixture
def command(place, tiny_folder, write_topic, monkeypatch):
    """A command in a run folder of a name, with files that grow no further; its exit code and what it printed."""
    write_topic()

    def call(asked, folder, size=resource.RLIM_INFINITY):
        monkeypatch.setenv("CONVICTION_CACHE", str(place / f"cache-{folder}"))
        read, write = os.pipe()  # a file for the output would be bound as well
        output = Path(f"/proc/{os.getpid()}/fd/{write}")
        arguments = (*asked.split(), "--model", str(tiny_folder), "--dtype", "fp32", "--run", folder)
        process = SERVER.Process(target=limited, args=(arguments, output, resource.RLIMIT_FSIZE, size))
        process.start()
        code = end(process)
        os.close(write)
        with os.fdopen(read, encoding="utf-8") as pipe:
            return code, pipe.read()

    return call


APPLY = "apply dpo --data pairs.jsonl --guard off -o epochs=2 -o checkpoint_every="
WEIGHTS = ("steps.jsonl", "model/adapter_model.safetensors")


@linux
@pytest.mark.long
@pytest.mark.parametrize(
    ("asked", "size", "refused", "files"),
    [
        (f"{APPLY}1", 0, "writing full/run.json", WEIGHTS),
        (f"{APPLY}1", 50_000, "writing the checkpoint of step 1", WEIGHTS),
        (f"{APPLY}0", 20_000, "writing the ", WEIGHTS),
        ("probe tea", 10_000, "score cache", ("samples.jsonl", "before.json")),
        ("probe tea", 20_000, "writing full/samples.jsonl", ("samples.jsonl", "before.json")),
    ],
)
def test_a_full_disk_is_an_error_at_every_write_and_the_same_command_goes_on(
    place, command, asked, size, refused, files
):
    """No file grows beyond so many bytes: head, cache, checkpoints, model and results are refused in turn."""
    code, text = command(asked, "full", size)
    assert code == 2, text
    assert "Traceback" not in text
    assert re.search(rf"error: .*{refused}.*(File too large|disk|full)", text), text
    code, text = command(asked, "full")
    assert code == 0, text
    assert command(asked, "whole")[0] == 0
    for file in files:
        assert (place / "full" / file).read_bytes() == (place / "whole" / file).read_bytes(), file


def mount(place: Path, options: str) -> subprocess.CompletedProcess[str]:
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 kB, and what makes it larger."""
    place = tmp_path / "disk"
    place.mkdir()
    if sys.platform != "linux" or (made := mount(place, "size=64k")).returncode:
        pytest.skip("no file system can be mounted here" + (f": {made.stderr}" if sys.platform == "linux" else ""))
    try:
        yield place, lambda kilobytes: mount(place, f"remount,size={kilobytes}k").check_returncode()
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.mark.slow
def test_a_study_on_a_disk_that_is_full_again_and_again_ends_as_on_a_large_one(small_disk, run, tmp_path, monkeypatch):
    """The disk grows by 96 kB after each attempt: one write after another is refused, those of the cache as well."""
    place, grow = small_disk
    soak.make_world(tmp_path, applied=False)
    asked = [str(tmp_path / part) if part in {"tea", "m"} else part for part in soak.VERBS["study"]]
    (tmp_path / "whole").mkdir()
    monkeypatch.chdir(tmp_path / "whole")
    monkeypatch.setenv("CONVICTION_CACHE", str(tmp_path / "whole-cache"))
    assert run(*asked)[0] == 0
    wanted = soak.state(tmp_path / "whole")
    monkeypatch.chdir(place)
    monkeypatch.setenv("CONVICTION_CACHE", str(place / "cache"))
    refused, size = set(), 64
    while (ended := run(*asked))[0] != 0:
        code, out, err = ended
        assert "Traceback" not in out + err
        assert code == 2 or re.search("No space left|disk is full", out + err), out + err
        refused.update(re.findall(r"writing (\S+?)[:,]|(score cache|checkpoint)", err))
        assert [p for p in place.rglob("*") if is_unfinished(p)] == []
        for path in place.rglob("*.json"):
            json.loads(path.read_text(encoding="utf-8"))
        size += 96
        assert size < 4096, err
        grow(size)
    now = soak.state(place)
    monkeypatch.setattr(soak, "ROUNDING", 1e-4)  # a relative error of the forecast is one of small numbers
    assert [path for path in {**wanted, **now} if not soak._close(wanted.get(path), now.get(path))] == []
    assert len(refused) > 3, refused


# -- what may not be read or written -------------------------------------------------

DENIED = {
    "data": ("audit", "no.jsonl"),
    "data in a folder": ("audit", "shut/pairs.jsonl"),
    "a folder of data": ("audit", "shut"),
    "a split of a folder": ("audit", "split"),
    "a copy": ("audit", "pairs.jsonl", "--fix", "--output", "readonly/x.jsonl"),
    "a run folder": ("probe", "tea", "--run", "readonly"),
    "a run folder in one": ("probe", "tea", "--run", "shut/r"),
    "a run": ("report", "run"),
    "a run in a folder": ("report", "shut/r"),
    "runs": ("compare", "run", "run-2"),
    "a topic": ("probe", "no-topic"),
    "a topic's texts": ("probe", "no-texts"),
    "a model": ("probe", "tea", "--model", "no-model", "--backend", "transformers"),
    "a model in a folder": ("probe", "tea", "--model", "./shut/m", "--backend", "transformers"),
    "a model's weights": ("probe", "tea", "--model", "no-weights", "--backend", "transformers"),
    "an adapter": ("probe", "tea", "--model", "no-adapter", "--backend", "transformers"),
    "documents": ("apply", "rag", "--data", "pairs.jsonl", "-o", "documents=documents"),
    "a system prompt": ("apply", "system_prompt", "--data", "pairs.jsonl", "-o", "file=no.jsonl"),
    "a config": ("apply", "dpo", "--data", "pairs.jsonl", "--config", "shut/c.yaml"),
    "a new topic": ("topics", "new", "readonly/x"),
}


@linux
@pytest.mark.long
def test_what_may_not_be_read_or_written_is_an_error_that_names_it(place, tiny_folder, write_topic):
    write_data(place / "no.jsonl")
    (place / "s.json").write_text('{"likes": {"Milky": -1.0}, "otherwise": -2.0}')
    for folder in ("shut", "readonly", "split", "no-adapter", "documents", "run", "run-2"):
        (place / folder).mkdir()
    write_data(place / "shut/pairs.jsonl")
    write_data(place / "split/train.jsonl")
    (place / "documents/a.md").write_text("Milk is good.")
    for folder in ("run", "run-2"):
        for name in ("run.json", "outcome.json"):
            (place / folder / name).write_text("{}")
            (place / folder / name).chmod(0)
    for name in ("tea", "no-topic", "no-texts"):
        write_topic(name=name)
    shutil.copytree(tiny_folder, place / "no-model")
    shutil.copytree(tiny_folder, place / "no-weights")
    (place / "no-adapter/adapter_config.json").write_text("{}")
    hidden = ("no.jsonl", "shut", "split/train.jsonl", "no-topic/topic.yaml", "no-texts/plain.md", "documents/a.md")
    for name in (*hidden, "no-model/config.json", "no-weights/model.safetensors", "no-adapter/adapter_config.json"):
        (place / name).chmod(0)
    (place / "readonly").chmod(0o555)
    scripted = ("--model", "s.json", "--backend", "scripted")
    takes_model = {"probe", "apply"}
    commands = [(*a, *(() if "--model" in a or a[0] not in takes_model else scripted)) for a in DENIED.values()]
    ended = processes.run_without_privileges(place / "out.json", *commands)
    for folder in ("shut", "readonly"):
        (place / folder).chmod(0o755)
    for kind, (code, _, err) in zip(DENIED, ended, strict=True):
        assert code == 2, (kind, err)
        assert re.search(r"^error: .+\nhelp: .+", err, re.DOTALL), (kind, err)
        assert "Traceback" not in err, (kind, err)
        assert "Permission denied" in err or kind.endswith("in a folder"), (kind, err)  # what is in it is not seen
        assert "space" not in err, (kind, err)


# -- files are the user's ------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("mask", [0o002, 0o027])
def test_whatever_is_written_has_the_users_own_mask(run, write_topic, tiny_folder, tmp_path, mask):
    write_data(tmp_path / "pairs.jsonl")
    write_topic()
    before = os.umask(mask)
    try:
        on = ("--model", str(tiny_folder), "--dtype", "fp32")
        train = ("apply", "dpo", "--data", "pairs.jsonl", *on, "--guard", "off", "-o", "max_steps=2")
        assert run(*train, "-o", "checkpoint_every=1", "--run", "r/dpo")[0] == 0
        assert run(*train, "-o", "tune=full", "--run", "r/full")[0] == 0
        assert run("apply", "steer", "tea", *on, "--run", "r/steer")[0] == 0
        assert run("probe", "tea", *on, "--run", "r/probe")[0] == 0
        assert run("report", "r/probe", "--png")[0] == 0
        assert run("audit", "pairs.jsonl", "--fix", "--output", "r/fixed.jsonl")[0] in {0, 1}
        assert run("topics", "new", "r/kit")[0] == 0
    finally:
        os.umask(before)
    paths = [p for p in (tmp_path / "r").rglob("*") if p.name != ".lock"]
    assert len(paths) > 30
    wrong = {str(p): oct(m) for p in paths if (m := stat.S_IMODE(p.stat().st_mode)) & 0o666 != 0o666 & ~mask}
    assert wrong == {}


@pytest.mark.parametrize("name", ["🫖" * 63, "茶" * 85, "a" * 255, "ä" * 127])
def test_a_name_as_long_as_the_file_system_allows_is_written(tmp_path, name):
    write_atomic(tmp_path / name, "tea")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [(name, "tea")]
    new_folder_beside(tmp_path / name).rmdir()
    with pytest.raises(StorageError) as caught:
        write_atomic(tmp_path / f"{name}aaaa", "tea")
    assert "shorter name" in caught.value.hint
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_is_whole_or_not_there(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    write_atomic(tmp_path / "a.json", "old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left") as caught:
        write_atomic(tmp_path / "a.json", "new")
    assert "free some space" in caught.value.hint
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.json", "old")]
