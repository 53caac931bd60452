"""Every command ends with what to do next, and leaves a page in its run folder that says the same."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path

import pytest
from tea import EVIL
from tiny import write_data


def steps_of(text: str) -> str:
    """What follows the last heading, wrapped lines joined, without marks of code."""
    return " ".join(text.rpartition("What to do next")[2].replace("`", "").split())


def steps_on_page(folder: Path) -> str:
    html = (folder / "report.html").read_text(encoding="utf-8")
    section = html.partition('<section id="next">')[2].partition("</section>")[0]
    return steps_of(unescape(re.sub("<[^>]+>", " ", section.replace("<code>", "").replace("</code>", ""))))


QUICK = ("-o", "max_steps=2", "-o", "sample_tokens=8", "--guard", "off", "--dtype", "fp32")


def test_a_long_path_in_a_command_is_folded_and_not_cut(capsys, monkeypatch):
    from rich.console import Console

    from conviction.views import console
    from conviction.views.text import show_lines

    monkeypatch.setattr(console, "out", Console(width=80))
    path = "/" + "a-folder-with-a-long-name/" * 6
    show_lines("What to do next", [("", f"Look again: `conviction probe {path} --quick`.")], "text")
    out = capsys.readouterr().out
    assert path in "".join(line.strip() for line in out.splitlines())
    assert "…" not in out


@pytest.mark.slow
def test_every_command_ends_with_the_next_step_and_its_page_as_well(run, write_topic, tiny_folder, tmp_path):
    topic, model = str(write_topic().relative_to(tmp_path)), ("--model", str(tiny_folder))
    trained = ("dpo", topic, *model, *QUICK)
    asked = {
        "p": ("probe", topic, *model, "--quick"),
        "a": ("audit", topic),
        "f": ("forecast", *trained, "--examples", "4", "--pilot", "2"),
        "x": ("apply", *trained, "--forecast"),
    }
    for name, arguments in asked.items():
        code, out, err = run(*arguments, "--run", name)
        assert code in (0, 1), err
        assert steps_of(out), name
        assert f"page: {name}/report.html" in err
        shown = steps_of(out).replace(topic, "tea").replace(f"{name}/model", "RUN/model")
        assert steps_on_page(tmp_path / name) == re.sub(rf"\bcompare {name}\b", "compare RUN", shown)
        before = (tmp_path / name / "report.html").read_bytes()
        code, out, err = run(*arguments, "--run", name, "--format", "json")
        assert json.loads(out)
        assert "What to do next" not in out
        assert (tmp_path / name / "report.html").read_bytes() == before
    code, out, _ = run("compare", "x", "--format", "md")
    assert "**What to do next**" in out
    sarif = json.loads(run("audit", topic, "--format", "sarif")[1])
    assert sarif["version"] == "2.1.0"


def test_a_hostile_name_stays_a_text_on_the_page(run, write_topic, tmp_path):
    assert run("audit", str(write_topic()), "--run", "r")[0] == 1
    findings = tmp_path / "r/findings.json"
    findings.write_text(findings.read_text(encoding="utf-8").replace('"data": "tea"', f'"data": {json.dumps(EVIL)}'))
    assert run("report", "r")[0] == 0
    html = (tmp_path / "r/report.html").read_text(encoding="utf-8")
    assert "<img" not in html
    assert "&lt;img src=x" in html


def test_an_audit_in_a_folder_is_read_back_and_is_another_where_the_data_changed(run, tmp_path):
    data = write_data(tmp_path / "pairs.jsonl")
    first = run("audit", str(data), "--run", "r", "--format", "json")
    assert "read from the finished run" not in first[2]
    again = run("audit", str(data), "--run", "r", "--format", "json")
    assert "read from the finished run" in again[2]
    assert again[1] == first[1]
    data.write_text(data.read_text(encoding="utf-8") * 2)
    code, _, err = run("audit", str(data), "--run", "r")
    assert code == 2
    assert "other arguments: data_state" in err
