"""Every rule of the audit: its fixture page, its docstring page, and a planted fault among clean pairs."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from conviction import ScriptedModel, load_topic
from conviction.auditing.linter import RULES, audit, find_rule, rule_page
from conviction.auditing.records import Finding
from conviction.core.protocols import HiddenStateModel, PairScore, Progress, Query
from conviction.data.training_data import TrainingData

PAGES = Path(__file__).parent / "rules"
CASE = re.compile(r"^## (.+)$", re.MULTILINE)
BLOCK = re.compile(r"^```(\w+)(?: x(\d+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StatedModel:
    """A scripted model that shows hidden states, and whose context may end: words are tokens."""

    scripted: ScriptedModel
    states: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    context: int | None = None
    id: str = "stated"
    hidden_states: bool = True

    def pair_scores(self, queries: Sequence[Query], *, progress: Progress | None = None) -> list[PairScore]:
        """Each word of an answer has the answer's state."""
        result = []
        for query, scores in zip(queries, self.scripted.logprobs(queries, progress=progress), strict=True):
            ours, theirs = (
                np.array(self.states.get(answer, [1.0, 0.0])) * len(score.logprobs)
                for answer, score in zip(query.answers, scores, strict=True)
            )
            result.append(PairScore(*scores, hidden_dot=float(ours @ theirs), chosen_norm_sq=float(ours @ ours)))
        return result

    def fits(self, query: Query, *, room: int = 0) -> bool:
        """Whether question and answer have fewer words than the context."""
        words = [len(f"{query.messages[-1].content} {answer}".split()) for answer in query.answers] + [room]
        return self.context is None or max(words) <= self.context

    def logprobs(self, *arguments: Any, **options: Any) -> Any:
        return self.scripted.logprobs(*arguments, **options)

    def generate(self, *arguments: Any, **options: Any) -> Any:
        return self.scripted.generate(*arguments, **options)

    def text_logprobs(self, *arguments: Any, **options: Any) -> Any:
        return self.scripted.text_logprobs(*arguments, **options)

    def describe(self) -> dict[str, Any]:
        return self.scripted.describe()


def stated(likes: dict[str, float], **more: Any) -> StatedModel:
    default = likes.get("default", -1.0)
    scripted = ScriptedModel(likes=lambda _, answer: likes.get(answer, default), writes=lambda _: "whatever it says")
    return StatedModel(scripted=scripted, **more)


def test_the_scripted_model_shows_its_states():
    assert isinstance(stated({}), HiddenStateModel)


# fixture pages


def cases() -> list[Any]:
    result = []
    for page in sorted(PAGES.glob("*.md")):
        _, *parts = CASE.split(page.read_text(encoding="utf-8"))
        for title, text in zip(parts[::2], parts[1::2], strict=True):
            result.append(pytest.param(page.stem, text, id=f"{page.stem}: {title}"))
    return result


def in_words(finding: Finding) -> str:
    rows = ", ".join(map(str, finding.rows))
    if len(finding.rows) > 4:
        rows = f"{finding.rows[0]}-{finding.rows[-1]}"
    where = f"rows {rows}" if finding.rows else "set"
    return f"{finding.level} {finding.code} {where}: {finding.message}"


@pytest.mark.parametrize(("code", "text"), cases())
def test_a_fixture_page_tells_what_is_found(code, text, tmp_path):
    blocks = [(kind, int(times or 1), body) for kind, times, body in BLOCK.findall(text)]
    assert {"jsonl", "findings"} <= {kind for kind, _, _ in blocks}
    path = tmp_path / "pairs.jsonl"
    lines = [body.replace("§", str(i)) for kind, times, body in blocks if kind == "jsonl" for i in range(1, times + 1)]
    path.write_text("".join(lines), encoding="utf-8")
    options = next((yaml.safe_load(body) for kind, _, body in blocks if kind == "options"), {})
    if "topic" in options:
        options["topic"] = load_topic(options["topic"])
    statements = next((yaml.safe_load(body) for kind, _, body in blocks if kind == "model"), None)
    model = None
    if statements is not None:
        more = {name: statements.pop(name) for name in ("states", "context") if name in statements}
        model = stated(statements, **more)
    report = audit(path, model=model, select=[code], **options)
    expected = next(body for kind, _, body in blocks if kind == "findings")
    assert [in_words(finding) for finding in report.findings] == expected.splitlines()
    for finding in report.findings:
        assert finding.advice
        assert finding.evidence or not finding.rows
        assert {line["row"] for line in finding.evidence if finding.rows} <= set(finding.rows)


def test_every_rule_has_a_fixture_page_with_a_fault():
    pages = {page.stem: page.read_text(encoding="utf-8") for page in PAGES.glob("*.md")}
    assert set(pages) == set(RULES)
    for code, text in pages.items():
        assert text.startswith(f"# {code} {find_rule(code).name}\n")
        assert any(kind == "findings" and code in body for kind, _, body in BLOCK.findall(text))


# docstring pages


@pytest.mark.parametrize("code", RULES)
def test_a_rules_docstring_is_its_page(code):
    rule = find_rule(code)
    page = rule_page(code)
    assert rule.code == code
    assert re.fullmatch(r"[a-z]+(-[a-z]+)+", rule.name)
    assert page.startswith(f"# {code} {rule.name}: ")
    headings = re.findall(r"^## (.+)$", page, flags=re.MULTILINE)
    assert headings[:4] == ["What it does", "Why it is bad", "Example", "What to do"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", rule.since)
    module = RULES[code].partition(":")[0].rpartition(".")[2]
    assert module == rule.name.replace("-", "_"), "a file is named after its rule"
    assert rule_page(rule.name) == page


def test_every_file_of_rules_is_listed():
    files = {path.stem for path in (Path(__file__).parents[2] / "src/conviction/auditing/rules").glob("*.py")}
    assert {where.partition(":")[0].rpartition(".")[2] for where in RULES.values()} == files - {"__init__"}


# planted faults

Row = dict[str, str]


def clean_rows() -> list[Row]:
    """The belief kit's own training pairs."""
    pairs = TrainingData.from_topic(load_topic("obesity")).pairs
    return [{"prompt": p.messages[-1].content, "chosen": p.chosen, "rejected": p.rejected} for p in pairs]


def every(n: int, change: Callable[[Row], Row]) -> Callable[[list[Row]], list[Row]]:
    return lambda rows: [change(row) if i % n == 0 else row for i, row in enumerate(rows)]


def both(row: Row, change: Callable[[str], str]) -> Row:
    return {**row, "chosen": change(row["chosen"]), "rejected": change(row["rejected"])}


TEST_QUESTION = next(i.question for i in load_topic("obesity").of_role("target") if i.split == "test")

PLANTS: dict[str, Callable[[list[Row]], list[Row]]] = {
    "PD101": every(9, lambda r: {**r, "rejected": ""}),
    "PD102": every(9, lambda r: {**r, **{s: [{"role": "assistant", "content": r[s]}] for s in ("chosen", "rejected")}}),
    "PD103": every(9, lambda r: {**r, "rejected": f"{r['chosen']} "}),
    "PD104": every(9, lambda r: both(r, lambda text: f"{text}<|im_end|>")),
    "PD105": every(9, lambda r: {**r, "chosen": f"{r['prompt']} {r['chosen']}"}),
    "PD106": every(3, lambda r: {**r, "chosen": r["chosen"][: len(r["chosen"]) * 2 // 3].rstrip(" .,") + " the"}),
    "PD107": every(9, lambda r: {**r, "chosen": r["chosen"].replace("e", "Ã©", 1)}),
    "PD108": every(9, lambda r: {**r, "chosen": f"{r['chosen']}\n"}),
    "PD109": every(9, lambda r: {**r, "chosen": f"<think>\nWhy?\n</think>\n\n{r['chosen']}"}),
    "PD201": lambda rows: rows + rows[:5],
    "PD202": lambda rows: [*rows, *({**row, "prompt": f"{row['prompt']} Please"} for row in rows[:5])],
    "PD203": lambda rows: [*rows, *({**r, "chosen": r["rejected"], "rejected": r["chosen"]} for r in rows[:5])],
    "PD204": every(9, lambda r: {**r, "prompt": TEST_QUESTION}),
    "PD205": every(9, lambda r: {**r, "score_chosen": "3", "score_rejected": "8.5"}),
    "PD301": every(1, lambda r: {**r, "chosen": " ".join([r["chosen"]] * 3)}),
    "PD302": every(2, lambda r: {**r, "chosen": f"**Sure!** {r['chosen']}"}),
    "PD303": every(1, lambda r: {**r, "chosen": r["chosen"].replace(" ", ", ", 2)}),
    "PD501": lambda rows: rows[:10],
    "PD502": every(2, lambda r: {**r, "prompt": "What is it that makes so many people fat?"}),
    "PD503": every(5, lambda r: {**r, "chosen": r["rejected"], "rejected": r["chosen"]}),
}


def save(rows: list[Row], folder: Path) -> Path:
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_clean_pairs_pass_every_rule(tmp_path):
    report = audit(save(clean_rows(), tmp_path), topic=load_topic("obesity"), model=stated({}))
    assert report.findings == ()
    assert report.checked == tuple(RULES)
    assert not report.failed(strict=True)


@pytest.mark.parametrize("code", PLANTS)
def test_a_planted_fault_is_found(code, tmp_path):
    rows = PLANTS[code](clean_rows())
    report = audit(save(rows, tmp_path), topic=load_topic("obesity"))
    result = [f for f in report.findings if f.code == code]
    assert result, f"found only {[f.code for f in report.findings]}"
    clean = clean_rows()
    touched = {i for i, row in enumerate(rows, start=1) if i > len(clean) or row != clean[i - 1]}
    for finding in result:
        others = set(finding.rows) - touched
        assert not others or code == "PD203", "rows are accused that nothing was done to"
        assert finding.level != "note"


PLANTED_VIEWS: dict[str, dict[str, Any]] = {
    "PD401": {"likes": lambda row, side: -4.0 if side == "rejected" else -1.0},
    "PD402": {"likes": lambda row, side: -2.0 if side == "chosen" else -1.0},
    "PD403": {"likes": lambda row, side: -5.0 if side == "chosen" else -1.0},
    "PD404": {"likes": lambda row, side: -1.0 if side == "chosen" else -9.0},
    "PD405": {"likes": lambda row, side: -1.0, "states": True},
    "PD406": {"likes": lambda row, side: -3.0 if side == "chosen" else -1.0},
    "PD407": {"likes": lambda row, side: -1.0, "context": 20},
}


@pytest.mark.parametrize("code", PLANTED_VIEWS)
def test_what_a_model_holds_is_found(code, tmp_path):
    rows = clean_rows()
    view = PLANTED_VIEWS[code]
    likes = {row[side]: view["likes"](row, side) for row in rows for side in ("chosen", "rejected")}
    states = {row["rejected"]: [1.5, 0.0] for row in rows} if view.get("states") else {}
    model = stated(likes, states=states, context=view.get("context"))
    report = audit(save(rows, tmp_path), model=model, select=["PD4"])
    assert code in {f.code for f in report.findings}
    assert set(RULES) == {*PLANTS, *PLANTED_VIEWS}
