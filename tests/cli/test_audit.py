"""``conviction audit`` and ``conviction rule``, as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from audit_rows import DIRTY, ROWS, jsonl, row
from commands import failed

from conviction.auditing.linter import RULES, find_rule

FORM = ("--select", "PD1,PD2")


@pytest.fixture
def clean(tmp_path):
    return str(jsonl(ROWS, tmp_path / "clean.jsonl"))


@pytest.fixture
def dirty(tmp_path):
    rows: list[Any] = [*DIRTY, row(50, chosen="Look: [bold]https://tea.example[/bold] | <b>x</b>\n")]
    return str(jsonl(rows, tmp_path / "dirty.jsonl"))


def test_clean_data_exits_0(run, clean):
    code, out, _ = run("audit", clean, *FORM)
    assert code == 0
    assert "30 pairs, no findings" in out


def test_findings_exit_1_and_say_what_where_and_what_to_do(run, dirty):
    code, out, _ = run("audit", dirty, *FORM)
    assert code == 1
    assert out.startswith(f"{dirty}: 9 pairs; 3 errors, 2 warnings")
    for part in (
        "error PD103 identical-answers",
        "rows",
        "6",
        "remove them",
        "--fix repairs PD103, PD104, PD108, PD201",
    ):
        assert part in out
    assert "conviction rule PD101" in out


def test_details_are_on_demand(run, clean):
    _, brief, _ = run("audit", clean)
    _, long, _ = run("audit", clean, "--details")
    assert "Measures" not in brief
    assert "mean ratio" in long


def test_json_is_the_report(run, dirty):
    code, out, _ = run("audit", dirty, *FORM, "--format", "json")
    report = json.loads(out)
    assert code == 1
    assert report["usable"] == 9
    assert {f["code"] for f in report["findings"]} == {"PD101", "PD103", "PD104", "PD108", "PD201"}
    assert all(f["evidence"] for f in report["findings"])


def test_markdown_escapes_cells(run, dirty):
    _, out, _ = run("audit", dirty, *FORM, "--format", "md")
    lines = [line for line in out.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 5
    assert all(line.count(" | ") == 3 for line in lines)


def test_sarif_has_what_code_scanning_asks_for(run, dirty):
    code, out, _ = run("audit", dirty, *FORM, "--format", "sarif")
    log = json.loads(out)
    (result_run,) = log["runs"]
    assert (code, log["version"]) == (1, "2.1.0")
    known = {rule["id"]: rule["defaultConfiguration"]["level"] for rule in result_run["tool"]["driver"]["rules"]}
    assert result_run["tool"]["driver"]["name"] == "conviction"
    for result in result_run["results"]:
        assert result["ruleId"] in known
        assert result["level"] in {"error", "warning", "note"}
        assert result["message"]["text"]
        place = result["locations"][0]["physicalLocation"]
        assert place["artifactLocation"]["uri"] == dirty
        assert place["region"]["startLine"] == result["properties"]["rows"][0]


@pytest.mark.parametrize(
    "name", ["caf\udce9.jsonl", "a\nb\x1b[2J.jsonl", "тест \U0001f375.jsonl", "a:b#c?.jsonl"], ids=ascii
)
@pytest.mark.parametrize("form", ["sarif", "json", "md", "text"])
def test_odd_file_names_are_shown_as_text(run, dirty, tmp_path, name, form):
    path = str(Path(dirty).rename(tmp_path / name))
    code, out, err = run("audit", path, *FORM, "--format", form)
    assert (code, "Traceback" in err) == (1, False)
    assert "\x1b" not in out
    assert out.encode()
    if form == "sarif":
        place = json.loads(out)["runs"][0]["results"][0]["locations"][0]["physicalLocation"]
        assert place["artifactLocation"]["uri"].isascii()


def test_strict_counts_notes(run, tmp_path):
    rows = [row(i) for i in range(150)]
    rows.append(row(1, prompt="Is this a long question?", chosen="Is this a long question? Yes."))
    path = str(jsonl(rows, tmp_path / "a.jsonl"))
    assert run("audit", path, "--select", "PD105")[0] == 0
    assert run("audit", path, "--select", "PD105", "--strict")[0] == 1
    assert run("audit", path, "--select", "PD1", "--ignore", "prompt-echo", "--strict")[0] == 0


def test_fix_writes_a_copy_beside_and_audits_it(run, dirty, tmp_path):
    code, out, err = run("audit", dirty, *FORM, "--fix")
    copy = tmp_path / "dirty.fixed.jsonl"
    assert code == 1  # an empty answer and a mark in the middle are left
    assert f"wrote {copy}" in err
    assert "PD103: dropped in 2 rows: 6, 7" in err
    assert "unreadable: left out in 1 row: 9" in err
    assert out.startswith(f"{copy}: 6 pairs; 2 errors")
    assert "exists already" in failed(run("audit", dirty, "--fix"))
    code, _, err = run("audit", dirty, "--select", "PD201", "--fix", "--output", "mine.jsonl")
    assert code == 0
    assert len((tmp_path / "mine.jsonl").read_text(encoding="utf-8").splitlines()) == 9


def test_a_topics_name_means_its_pairs(run):
    code, out, _ = run("audit", "politeness")
    assert code == 0
    assert "politeness: 28 pairs, no findings" in out


def test_a_model_is_asked(run, clean, tiny_folder):
    code, out, _ = run(
        "audit", clean, "--model", str(tiny_folder), "--select", "PD4", "--format", "json", "--beta", "1"
    )
    report = json.loads(out)
    assert code == (1 if any(f["level"] != "note" for f in report["findings"]) else 0)
    assert report["skipped"] == {}
    assert report["metrics"]["PD402"]["pairs"] == 30
    assert report["metrics"]["PD403"]["beta"] == 1


def test_errors_are_two_lines(run, clean, tmp_path):
    assert "did you mean 'length-gap'" in failed(run("audit", clean, "--select", "lengthgap"))
    assert "no file or folder" in failed(run("audit", "nothing.jsonl"))
    assert "--fix" in failed(run("audit", clean, "--output", "x.jsonl"))
    assert "beta is 0" in failed(run("audit", clean, "--beta", "0"))
    assert "is a topic" in failed(run("audit", "obesity", "--fix"))
    assert "neither a built-in topic" in failed(run("audit", clean, "--topic", "nothing"))
    path = jsonl([{"a": 1}], tmp_path / "b.jsonl")
    assert "found: a" in failed(run("audit", str(path)))
    assert "PD402 belief-flip needs a model" in failed(run("audit", clean, "--select", "PD402"))
    assert "ends in .jsonl" in failed(run("audit", clean, "--fix", "--output", "x.csv"))
    assert "there is no rule 'PD999'" in failed(run("rule", "PD999"))


def test_rule_prints_a_page_and_lists_all(run):
    code, out, _ = run("rule", "pd301")
    assert code == 0
    assert out.startswith("# PD301 length-gap: ")
    assert run("rule", "length-gap")[1] == out
    _, listed, _ = run("rule", "--format", "json")
    assert [line["code"] for line in json.loads(listed)] == list(RULES)
    assert json.loads(run("rule", "PD301", "--format", "json")[1])["page"] == out
    assert find_rule("PD301").name in run("rule")[1]


def test_columns_of_other_names(run, tmp_path):
    path = tmp_path / "sheet.csv"
    path.write_text('Nr,Question,Better\n1,"Which\nbread?",Rye.\n2,Which tea?,Green.\n', encoding="utf-8")
    named = 'prompt=Question,chosen="Better",rejected=Worse'
    error = failed(run("audit", str(path), "--columns", named))
    assert "there is no column 'Worse', which is to be 'rejected'" in error
    path.write_text('Nr,Question,Better,Worse\n1,"Which\nbread?",Rye.,No.\n2,Which tea?,Green.,\n', encoding="utf-8")
    code, out, _ = run("audit", str(path), "--columns", named, *FORM)
    assert code == 1
    assert "lines   4" in out
    assert "line 4  record 2, problem 'field 'Worse' is empty'" in out
    assert "columns that are not read: Nr" in out
    _, out, _ = run("audit", str(path), "--columns", named, *FORM, "--format", "json")
    assert json.loads(out)["notes"] == ["columns that are not read: Nr"]
