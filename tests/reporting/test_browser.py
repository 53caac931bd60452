"""The page in a real browser: headless Chromium opens it as a file and reads it as a person would."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from pydantic import BaseModel
from tea import EVIL

from conviction.auditing.records import AuditReport
from conviction.interventions.records import Outcome
from conviction.probing.records import Sample, Scorecard
from conviction.reporting.page import report
from conviction.studies.records import Study
from conviction.studies.tuning_records import STAGE, Dose, Trial, Tuning

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if CHROMIUM is None and "CI" not in os.environ:
    pytest.skip("no Chromium here: apt-get install chromium", allow_module_level=True)

CONTRAST = """element => {
  const channels = text => text.match(/[\\d.]+/g).map(Number)
  const light = text => channels(text).slice(0, 3).map(c => c / 255)
    .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0)
  let behind = element
  while (behind && (channels(getComputedStyle(behind).backgroundColor)[3] ?? 1) === 0) behind = behind.parentElement
  const own = getComputedStyle(element)
  const ink = element instanceof SVGElement ? own.fill : own.color
  const [a, b] = [light(ink), light(getComputedStyle(behind).backgroundColor)]
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)
}"""
READABLE = 4.5  # WCAG 2.2, level AA, contrast of text


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])  # CI runs as root
        yield opened
        opened.close()


RECORDS: dict[str, type[BaseModel] | None] = {
    "run.json": None,
    "before.json": Scorecard,
    "findings.json": AuditReport,
    "study.json": Study,
    "samples.jsonl": Sample,
    "arms/rag/outcome.json": Outcome,
    "arms/rag/samples.jsonl": Sample,
    f"arms/rag/{STAGE}.json": Tuning,
}
DOSE = Dose(step=2, shift_nats=0.1, low=0.0, high=0.2, zone="healthy")
SEARCH = Tuning(
    intervention="rag",
    fitted=2,
    asked=2,
    trials=(Trial(options={"x": "y"}, doses=(DOSE,), steps=2, chosen=True, reason="best"),),
    options={"x": "y"},
    summary="searched",
    seconds=1.0,
)
"""How settings were searched: a picture of it names them."""


LINKS = {"status", "stage", "folder"}
"""Fields that say where something else lies: with another value, that would not be shown at all."""


def make_hostile(path: Any, kind: type[BaseModel] | None) -> int:
    """Put ``EVIL`` into every text of a file's records that its schema lets be any text; the number of such fields."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.suffix == ".jsonl" else [path.read_text("utf-8")]
    records = [json.loads(line) for line in lines]
    fields = {field for record in records for field in texts(record) if field[-1] not in LINKS}
    done = 0
    for field in sorted(fields):
        changed = [replaced(record, field) for record in records]
        try:
            for record in changed if kind is not None else ():
                kind.model_validate({k: v for k, v in record.items() if k != "stage" or "stage" in kind.model_fields})
        except ValueError:
            continue
        records, done = changed, done + 1
    text = "\n".join(json.dumps(record) for record in records)
    path.write_text(f"{text}\n", encoding="utf-8")
    return done


def texts(value: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Where texts stand in a record; all entries of a list are one place."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from texts(inner, (*place, name))
    elif isinstance(value, list):
        for inner in value:
            yield from texts(inner, (*place, "*"))
    elif isinstance(value, str):
        yield place


def replaced(value: Any, place: tuple[str, ...]) -> Any:
    """The record with ``EVIL`` before every text at a place, and beside the names of a mapping that it stands in."""
    if not place:
        return f"{EVIL}{value}" if isinstance(value, str) else value
    if isinstance(value, dict):
        return {name: replaced(inner, place[1:]) if name == place[0] else inner for name, inner in value.items()}
    return [replaced(inner, place[1:]) for inner in value] if isinstance(value, list) else value


class Visit:
    """A page that is open, and all that it said and asked for."""

    def __init__(self, browser: Any, path: Any, **options: Any) -> None:
        self.page = browser.new_context(**options).new_page()
        self.messages: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.messages.append(message.text))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.on("dialog", self._close_dialog)
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())

    def _close_dialog(self, dialog: Any) -> None:
        self.messages.append(dialog.message)
        dialog.dismiss()  # the page waits for that, and so would its visitor


@pytest.fixture
def visit(browser, run):
    """The page of a study with one arm judged and one failed."""
    path = report(run)
    seen = Visit(browser, path)
    yield seen
    seen.page.context.close()
    assert seen.messages == [], "the console is not silent"
    assert seen.asked == [path.as_uri()], "it asked for something else than itself"


def test_numbers_on_the_page_are_those_of_the_study(visit, run):
    result = json.loads((run / "study.json").read_text(encoding="utf-8"))["arms"][0]
    shift = next(f for f in result["judgement"]["properties"] if f["metric"] == "shift")
    row = visit.page.locator("#comparison tbody tr", has=visit.page.get_by_role("rowheader", name="rag"))
    cells = row.locator("td").all_inner_texts()
    assert cells[0] == result["judgement"]["verdict"]
    assert float(cells[1].rstrip("*")) == pytest.approx(shift["value"], abs=0.005)
    assert visit.page.locator("#comparison tbody tr", has_text="steer").locator("td").first.inner_text() == "failed"


def test_it_is_there_at_once(visit):
    timing = visit.page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
    assert timing < 2000


def test_a_script_in_a_text_stays_a_text(browser, run):
    path = run / "arms/rag/samples.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        row["text"] = EVIL if row["kind"] == "generation" else row["text"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    seen = Visit(browser, report(run))
    assert seen.messages == []
    assert seen.page.locator("img").count() == 0
    assert EVIL in seen.page.locator("blockquote").nth(1).inner_text()


@pytest.mark.long
def test_a_strangers_run_is_a_text_whatever_its_fields_hold(browser, run):
    (run / f"arms/rag/{STAGE}.json").write_text(SEARCH.model_dump_json(), encoding="utf-8")
    fields = sum(make_hostile(run / file, kind) for file, kind in RECORDS.items())
    assert fields > 60
    path = report(run)
    seen = Visit(browser, path)
    assert seen.page.locator("#damaged").count() == 0
    assert seen.page.locator("img, iframe, object, link, base, form, a:not([href^='#'])").count() == 0
    assert seen.page.locator("script").count() == 1
    assert seen.page.content().count("&lt;script&gt;alert") > 100
    drawn = seen.page.locator("svg text", has_text="alert").last.text_content()
    assert EVIL.replace(" ", "") in drawn.replace(" ", "")  # a title stands on several lines, which have no space
    seen.page.locator("td, dd").first.hover()
    assert seen.messages == []
    assert seen.asked == [path.as_uri()]


def test_what_were_not_escaped_would_do_nothing(browser, run):
    """The page's own policy, should an escape be missing somewhere one day."""
    path = report(run)
    text = path.read_text(encoding="utf-8")
    reach = (
        f"{EVIL}<style>body{{background:url(http://127.0.0.1:9/s)}}</style><iframe src=http://127.0.0.1:9/f></iframe>"
    )
    path.write_text(text.replace("</main>", f"{reach}<p style='color:red' id=own>x</p></main>"), encoding="utf-8")
    seen = Visit(browser, path)
    blocked = [message for message in seen.messages if "Content Security Policy" in message]
    assert len(blocked) >= 4
    assert blocked == seen.messages, "a dialog was opened, or an address was asked"
    assert "rgb(255, 0, 0)" not in seen.page.locator("#own").evaluate("e => getComputedStyle(e).color")


@pytest.mark.long
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_both_schemes(browser, run, scheme):
    seen = Visit(browser, report(with_steps(run)), color_scheme=scheme)
    texts = seen.page.locator("h1, h2, h3, p, a, td, th, dd, dt, li, label, caption, summary, svg text, .verdict")
    contrasts = texts.evaluate_all(f"all => all.map(one => [one.textContent.slice(0, 40), ({CONTRAST})(one)])")
    assert len(contrasts) > 40
    assert [pair for pair in contrasts if pair[1] < READABLE] == []


def test_the_schemes_differ(browser, run):
    ground = "getComputedStyle(document.body).backgroundColor"
    path = report(run)
    light, dark = (Visit(browser, path, color_scheme=s).page.evaluate(ground) for s in ("light", "dark"))
    assert light != dark


def with_steps(run: Any) -> Any:
    """The study with a training run under its arm, so that there are curves."""
    guard = {"zone": "warning", "violations": [], "warnings": [], "warned_by": []}
    steps = [{"step": n, "loss": 0.5 / n, "margin": 0.1 * n, "logp_mean": -1.0, "guard": guard} for n in range(1, 9)]
    (run / "arms/rag/steps.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    return run


UNFOLD = "document.querySelectorAll('details').forEach(one => one.open = true)"
PHONE = {"viewport": {"width": 390, "height": 844}}
BEYOND = """right => [...document.querySelectorAll('main *')].filter(one => {
  const box = one.getBoundingClientRect()
  if (!box.width || box.right <= right + 0.5) return false
  const frame = one.closest('.wide, figure')
  return !frame || frame.getBoundingClientRect().right > right + 0.5
    || !getComputedStyle(frame).backgroundImage.includes('gradient')
}).map(one => one.outerHTML.slice(0, 80))"""
SMALLEST = """[...document.querySelectorAll('figure svg')].flatMap(one => {
  const width = one.getBoundingClientRect().width, scale = width / one.viewBox.baseVal.width
  if (!width) return []
  return [...one.querySelectorAll('text')].map(text => scale * parseFloat(getComputedStyle(text).fontSize))
})"""


def test_on_a_phone_nothing_is_off_the_screen_without_a_hint(browser, run):
    page = Visit(browser, report(with_steps(run)), **PHONE).page
    page.evaluate(UNFOLD)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.evaluate(BEYOND, 390) == []


def test_on_a_phone_the_main_table_is_a_card_an_arm(browser, run):
    page = Visit(browser, report(run), **PHONE).page
    titles = page.locator("#comparison thead th").all_text_contents()
    cells = page.locator("#comparison tbody tr", has_text="rag").locator("td")
    boxes = [cell.bounding_box() for cell in cells.all()]
    assert len(boxes) == len(titles) - 1
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= 390 for box in boxes)
    shown = cells.evaluate_all("all => all.map(e => getComputedStyle(e, '::before').content.slice(1, -1))")
    assert shown == titles[1:]


@pytest.mark.parametrize("width", [390, 1280])
def test_text_of_charts_is_large_enough(browser, run, width):
    page = Visit(browser, report(with_steps(run)), viewport={"width": width, "height": 900}).page
    page.evaluate(UNFOLD)
    sizes = page.evaluate(SMALLEST)
    assert len(sizes) > 20
    assert min(sizes) >= 11
    assert page.locator("figure svg:visible").count() == 5  # the comparison, the bias, three curves: none of them twice


def test_rows_and_columns_are_chosen_without_a_script(visit):
    page = visit.page
    shown = lambda: page.locator("#comparison tbody tr:visible th").all_inner_texts()  # noqa: E731
    assert sorted(shown()) == ["rag", "steer"]
    page.get_by_label("failed", exact=True).check()
    assert shown() == ["steer"]
    page.get_by_label("not trained", exact=True).check()
    assert shown() == ["rag"]
    page.get_by_label("all arms", exact=True).check()
    assert sorted(shown()) == ["rag", "steer"]
    titles = page.locator("#comparison thead th:visible").all_inner_texts()
    page.get_by_label("verdict", exact=True).uncheck()
    assert page.locator("#comparison thead th:visible").all_inner_texts() == [t for t in titles if t != "verdict"]
    assert page.locator("#comparison tbody tr").first.locator("td:visible").count() == len(titles) - 2


def sheets(page: Any) -> int:
    """Of A4, as printed."""
    return len(re.findall(rb"/Type\s*/Page\b", page.pdf(format="A4")))


@pytest.mark.long
def test_on_paper_what_is_folded_is_left_out_and_nothing_is_clipped(browser, run):
    """Of the same study the page had ten sheets: its sections began on a new one where they did not fit."""
    page = Visit(browser, report(with_steps(run))).page
    folded = sheets(page)
    page.get_by_label("Unfold all details").check()
    assert folded <= 3 < sheets(page) <= 7
    page.emulate_media(media="print")
    assert page.locator("details td:visible").count() == page.locator("details td").count() > 0
    page.set_viewport_size({"width": 688, "height": 1016})  # A4 less its margins
    assert page.evaluate("document.documentElement.scrollWidth") <= 688
    assert page.evaluate(BEYOND, 688) == []
    whole = page.locator("tr, .pair").evaluate_all("all => all.map(e => getComputedStyle(e).breakInside)")
    assert set(whole) == {"avoid"}
    sections = page.locator("section").evaluate_all("all => all.map(e => getComputedStyle(e).breakInside)")
    assert set(sections) == {"auto"}, "a section that does not fit would leave the rest of a sheet empty"


def test_those_who_cannot_see_it_are_told(visit):
    page = visit.page
    levels = page.locator("h1, h2, h3").evaluate_all("all => all.map(e => Number(e.tagName[1]))")
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    names = page.locator("svg").evaluate_all("all => all.map(e => e.getAttribute('aria-label'))")
    assert names
    assert all(names)
    assert page.locator("th:not([scope]), table:not(:has(caption)), svg:not([role=img])").count() == 0
    assert "it kept: rag +" in " ".join(names), "a picture's numbers are said"
    assert page.locator("html").get_attribute("lang") == "en"
