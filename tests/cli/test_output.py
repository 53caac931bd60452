"""What leaves the program: nothing that commands a terminal, JSON that is JSON, and ends that are quiet."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from commands import failed
from tea import tea_items

ROOT = Path(__file__).parents[2]
HOSTILE = "\x1b]0;owned\x07\x1b[31mred\x9b2J\u202e\ud800 | **bold** [x](http://evil) <img src=x> `code` # one"
COMMANDS_A_TERMINAL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def hostile_topic(write_topic) -> str:
    """A topic whose every text is hostile, as far as JSON can hold it."""
    items = tea_items(4)
    for item in items:
        item["question"] = f"{item['question']} {HOSTILE}"
        item["answers"] = {side: f"{text} {HOSTILE}" for side, text in item["answers"].items()}
    text = json.dumps(HOSTILE)
    yaml = (
        f"name: tea\ntitle: {text}\npoles:\n  plain: {{label: {text}, context: plain.md}}\n"
        "  milky: {label: milk, context: milky.md}\ntarget: milky\nitems: [items.jsonl]\n"
    )
    return str(write_topic(items=items, yaml=yaml.replace("\\ud800", "")))


@pytest.fixture
def topic(write_topic):
    return hostile_topic(lambda items, yaml: write_topic(items=_without_surrogates(items), yaml=yaml))


def _without_surrogates(value):
    return json.loads(json.dumps(value).replace("\\ud800", ""))


@pytest.mark.parametrize("form", ["text", "md", "json", "sarif"])
def test_no_escape_of_strangers_data_reaches_the_terminal(run, tmp_path, form):
    data = tmp_path / "pairs\x1b[2J.jsonl"
    rows = [{"prompt": HOSTILE, "chosen": HOSTILE, "rejected": HOSTILE, HOSTILE: 1} for _ in range(3)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, out, err = run("audit", data.name, "--details", "--format", form)
    assert not COMMANDS_A_TERMINAL.search(out + err)


@pytest.mark.long
def test_no_escape_of_a_strangers_topic_or_run_reaches_the_terminal(run, topic, tiny_folder):
    asked = ("probe", topic, "--model", str(tiny_folder), "--health", "--run", "r")
    for command in (asked, (*asked, "--format", "md"), (*asked, "--format", "json"), ("report", "r", "--format", "md")):
        code, out, err = run(*command)
        assert code == 0, err
        assert "red" in out
        assert not COMMANDS_A_TERMINAL.search(out + err)
        if command[-1] == "md":
            assert "**bold**" not in out
            assert not re.search(r"(?<!\\)\]\(http", out)


def test_no_escape_of_an_argument_reaches_the_terminal(run):
    assert not COMMANDS_A_TERMINAL.search(failed(run("probe", "to\x1b[31mpic")))
    assert not COMMANDS_A_TERMINAL.search(failed(run("pro\x1b[31mbe")))


def test_no_escape_reaches_the_terminal_through_a_library(run):
    run("--version")
    shown = io.StringIO()
    logger, handler = logging.getLogger("a.library"), logging.StreamHandler(shown)
    logger.addHandler(handler)
    logger.warning("a stranger's %s", HOSTILE)
    logger.removeHandler(handler)
    for text in (shown.getvalue(), warnings.formatwarning(HOSTILE, UserWarning, "x.py", 1)):
        assert "red" in text
        assert not COMMANDS_A_TERMINAL.search(text)


def test_the_terminal_is_written_to_in_one_place():
    """A view, or a command, that printed by itself would have to think of escapes by itself."""
    places = [p for room in ("views", "cli") for p in (ROOT / "src/conviction" / room).glob("*.py")]
    own = re.compile(r"\bprint\(|\.file\b|\bout\.print|\berr\.print|sys\.std(out|err)|Console\(|typer\.echo")
    assert sorted(p.name for p in places if own.search(p.read_text(encoding="utf-8"))) == ["console.py"]


def test_markdown_of_a_foreign_text_is_text():
    from conviction.core.wording import inline

    for text in ("# x", "- x", "+ x", "1. x", "> x", "===", "---", "*x*", "_x_", "[x](y)", "![x](y)", "a|b", "~~x~~"):
        assert inline(text) != text
        assert inline(text).replace("\\", "") == text
    assert (
        inline("system_prompt moved it by +0.29 (p = 0.01) - so") == "system_prompt moved it by +0.29 (p = 0.01) - so"
    )
    assert inline("<b>&amp;\n\nx") == "&lt;b>&amp;amp; x"


def test_what_is_printable_stays():
    from conviction.core.wording import printable_lines
    from conviction.views import console

    assert printable_lines("β ≤ 1\n\tשלום 茶 🍵") == "β ≤ 1\n\tשלום 茶 🍵"
    assert json.loads(console.as_json([HOSTILE], encoding="ascii")) == [HOSTILE]
    assert json.loads(console.as_json([float("nan"), HOSTILE])) == [None, HOSTILE]


# -- JSON and nothing else -----------------------------------------------------------


@pytest.mark.parametrize("asked", [("--format", "json"), ("--format=json",)])
def test_an_error_is_an_object_where_json_is_asked_for(run, asked):
    for arguments in (("probe", "obesty"), ("probe", "obesity", "--no-such-option"), ("rule", "PD999")):
        code, out, err = run(*arguments, *asked)
        assert (code, out) == (2, "")
        problem = json.loads(err.splitlines()[-1])
        assert problem.keys() == {"error", "help", "kind"}
        assert all(problem.values())


def test_lists_are_json(run):
    for verb in (["topics"], ["models"], ["interventions"], ["interventions", "dpo"], ["rule"], ["rule", "PD101"]):
        code, out, _ = run(*verb, "--format", "json")
        assert code == 0
        json.loads(out)


# -- pipes, full disks, odd terminals ------------------------------------------------


def conviction(*arguments: str, way: str = '"$@"', **environment: str) -> subprocess.CompletedProcess[str]:
    """The command line in a shell, which says where the output goes."""
    return subprocess.run(
        ["bash", "-c", way, "bash", sys.executable, "-m", "conviction", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize("form", ["text", "md", "json"])
def test_a_reader_that_went_away_ends_nothing(form):
    done = conviction("rule", "--format", form, way='"$@" | true; exit ${PIPESTATUS[0]}')
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.long
def test_the_exit_code_is_that_of_the_work_whoever_reads(tmp_path):
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps({"prompt": "q", "chosen": "a", "rejected": "a"}) + "\n" for _ in range(200)))
    way = '"$@" --details 2>/dev/null | head -c 1 >/dev/null; exit ${PIPESTATUS[0]}'
    assert conviction("audit", str(data), way=way).returncode == 1
    way = '"$@" 2>&1 >/dev/null | head -c 0 >/dev/null; exit ${PIPESTATUS[0]}'
    assert conviction("audit", str(data), way=way).returncode == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("form", ["text", "json"])
def test_a_full_disk_behind_stdout_is_an_error(form):
    done = conviction("topics", "--format", form, way='"$@" > /dev/full')
    assert done.returncode == 2
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert conviction("topics", way='"$@" 2> /dev/full').returncode == 0


def test_without_a_stdout_the_work_is_done():
    done = conviction("topics", way='"$@" >&-')
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("columns", ["0", "1", "19"])
def test_a_terminal_without_width_is_written_to(columns):
    assert "obesity" in conviction("topics", COLUMNS=columns).stdout


@pytest.mark.long
@pytest.mark.parametrize("form", ["text", "md", "json", "sarif"])
def test_an_encoding_that_lacks_a_character_gets_an_escape(tmp_path, form):
    data = tmp_path / "茶.jsonl"
    data.write_text('{"prompt": "茶?", "chosen": "茶 é 🍵", "rejected": "茶 é 🍵"}\n' * 3, encoding="utf-8")
    done = conviction("audit", str(data), "--details", "--format", form, PYTHONIOENCODING="ascii")
    assert done.returncode == 1, done.stderr
    assert "\\u8336" in done.stdout
    if form in {"json", "sarif"}:
        assert "茶" in str(json.loads(done.stdout))
