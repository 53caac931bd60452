"""The audit as a whole: what it reads, what it says, and the copies it writes."""

from __future__ import annotations

import gzip
import json
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from audit_rows import DIRTY, ROWS, jsonl, row
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny import context, tiny_model

from conviction import Query, ScriptedModel, chat, load_topic
from conviction.auditing.fix import fixed_path, write_fixed
from conviction.auditing.linter import RULES, audit, choose_rules
from conviction.auditing.records import AuditReport
from conviction.auditing.rules.near_duplicate import PERMUTATIONS, similar_groups
from conviction.auditing.surface import Surface, surface
from conviction.data.formats import training_data_from_rows
from conviction.data.rows import open_source
from conviction.data.topic import builtin_topics
from conviction.data.training_data import TrainingData
from conviction.errors import InputError
from conviction.training.guard import Guard

FORM = ["PD1"]  # rules that small sets can pass


def codes(report: AuditReport) -> list[str]:
    return [finding.code for finding in report.findings]


# reading


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".json", ".csv", ".tsv", ".parquet"])
def test_all_file_formats_give_the_same_report(ending, tmp_path):
    rows = [*ROWS, {**ROWS[0], "chosen": "The same.", "rejected": "The same."}]
    path = tmp_path / f"pairs{ending}"
    if ending == ".parquet":
        import pyarrow as pa
        from pyarrow import parquet

        parquet.write_table(pa.Table.from_pylist(rows), path)
    elif ending in {".csv", ".tsv"}:
        mark = "," if ending == ".csv" else "\t"
        path.write_text("\n".join(mark.join(r) for r in [list(ROWS[0]), *(list(r.values()) for r in rows)]))
    elif ending == ".json":
        path.write_text(json.dumps(rows, indent=1))
    else:
        data = "\n".join(map(json.dumps, rows)).encode()
        path.write_bytes(gzip.compress(data, mtime=0) if ending.endswith("gz") else data)
    report = audit(path, select=FORM)
    first_line = 2 if ending in {".csv", ".tsv"} else 1
    assert (report.read, report.usable) == (31, 31)
    assert [(f.code, f.rows) for f in report.findings] == [("PD103", (30 + first_line,))]
    assert report.lines == (ending not in {".parquet", ".json"})


def test_one_broken_line_among_many_is_named_and_the_rest_audited(tmp_path):
    rows: list[Any] = [*ROWS, b'{"prompt": "a", "chosen": "b', b"\xff\xfe", b'"text"', row(31, chosen=None), *ROWS[:1]]
    report = audit(jsonl(rows, tmp_path / "a.jsonl"), select=["PD1", "PD201"])
    assert (report.read, report.usable) == (35, 31)
    assert [(f.code, f.rows) for f in report.findings] == [("PD101", (31, 32, 33, 34)), ("PD201", (35,))]
    message = {line["row"]: line["problem"] for line in report.findings[0].evidence}
    assert "not JSON" in message[31]
    assert "not UTF-8 (byte 0" in message[32]
    assert "not an object" in message[33]
    assert "'chosen' is missing" in message[34]


def test_a_broken_csv_record_does_not_hide_the_next(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'prompt,chosen,rejected\na,b,c\nd,e\ng,"h"x,i\nj,k,l\nm,\xff,n\n')
    report = audit(path, select=FORM)
    assert (report.usable, report.findings[0].rows) == (2, (3, 4, 6))


@pytest.mark.parametrize(
    ("rows", "wording", "hint"),
    [
        ([{"question": "a", "good": "b", "bad": "c"}], "found: question, good, bad", "a row holds"),
        ([{"prompt": "a", "choosen": "b", "rejected": "c"}], "no field 'chosen'", "did you mean 'chosen'?"),
        ([{"prompt": "a", "completion": "b"}], "holds examples, not preference pairs", "chosen + rejected"),
        ([{"text": "a"}], "holds documents, not preference pairs; found: text", "chosen + rejected"),
        ([{"prompt": "a", "completion": "b", "label": True}], "unpaired preferences", "pairs are needed"),
        ([b"{", b"{"], "a.jsonl:1: not JSON", "one JSON object a line"),
        ([], "holds no rows", "a row holds"),
    ],
)
def test_what_is_no_preference_data_is_said(rows, wording, hint, tmp_path):
    with pytest.raises(InputError) as caught:
        audit(jsonl(rows, tmp_path / "a.jsonl"))
    assert wording in caught.value.message
    assert hint in caught.value.hint


def test_transcripts_messages_and_implicit_prompts(tmp_path):
    turns = [{"role": "user", "content": "Tea?"}]
    forms = [
        {"chosen": "\n\nHuman: Tea?\n\nAssistant: Yes.", "rejected": "\n\nHuman: Tea?\n\nAssistant: No."},
        {
            "chosen": [*turns, {"role": "assistant", "content": "Yes."}],
            "rejected": [*turns, {"role": "assistant", "content": "No."}],
        },
        {"chosen": "Tea? I say yes.", "rejected": "Tea? I say no."},
    ]
    for form in forms:
        assert audit(jsonl([form], tmp_path / "a.jsonl"), select=FORM).findings == ()
    mixed = audit(jsonl(forms, tmp_path / "b.jsonl"), select=["PD102"])
    assert mixed.metrics["PD102"] == {
        "transcripts without prompt": 1,
        "messages without prompt": 1,
        "texts without prompt": 1,
    }


def test_nested_and_null_values_are_unusable_rows(tmp_path):
    rows = [
        *ROWS,
        row(31, chosen={"text": "a"}),
        row(32, rejected=["a"]),
        row(33, prompt=5),
        row(34, extra={"a": [None]}),
    ]
    report = audit(jsonl(rows, tmp_path / "a.jsonl"), select=FORM)
    assert [(f.code, f.rows) for f in report.findings] == [("PD101", (31, 32, 33))]


def test_a_saved_folder_and_the_hub(tmp_path, monkeypatch):
    import datasets

    data = datasets.Dataset.from_list(ROWS)
    folder = tmp_path / "mine"
    datasets.disable_progress_bars()
    data.save_to_disk(str(folder))
    datasets.enable_progress_bars()
    assert audit(folder, select=FORM).usable == 30
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: data)
    report = audit("org/pairs", select=FORM, split="train_prefs")
    assert (report.data, report.usable, report.lines) == ("org/pairs", 30, False)


@pytest.mark.long
def test_a_large_file_is_streamed(tmp_path):
    """What is kept of a row does not grow with its texts: rows of 30 kB leave less than 4."""
    kit = load_topic("obesity")

    def peak(rows: int) -> int:
        path = tmp_path / f"{rows}.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for i in range(rows):
                text = f"{i} is {'x' * 15_000}"
                file.write(json.dumps({"prompt": f"{i}?", "chosen": f"{text}.", "rejected": f"not {text}."}) + "\n")
        tracemalloc.start()
        audit(path, topic=kit)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(30)  # imports what is needed
    assert peak(600) - peak(200) < 400 * 4000


def test_progress_is_told_in_bytes(tmp_path):
    reported: list[tuple[str, int, int]] = []
    path = jsonl([row(i) for i in range(2500)], tmp_path / "a.jsonl")
    audit(
        path, select=FORM, ctx=context(progress=lambda name: lambda done, total: reported.append((name, done, total)))
    )
    assert [name for name, *_ in reported] == ["reading", "reading"]
    assert 0 < reported[0][1] <= reported[1][1] <= reported[1][2] == path.stat().st_size


def test_a_quote_that_is_never_closed_takes_one_line_down(tmp_path):
    path = tmp_path / "a.csv"
    rows = "".join(f"{i}?,yes {i},no {i}\n" for i in range(50))
    path.write_text('prompt,chosen,rejected\na,b,c\nd,"e,f\n' + rows + 'g,"h\ni",j\n', encoding="utf-8")
    report = audit(path, select=FORM)
    assert (report.usable, report.findings[0].rows) == (52, (3,))


def test_a_prompt_that_only_late_rows_have_is_theirs(tmp_path):
    early = [{"chosen": f"Tea {i}? I say yes.", "rejected": f"Tea {i}? I say no."} for i in range(250)]
    late = {"prompt": "What is tea?", "chosen": "It is a drink.", "rejected": "It is a stone."}
    report = audit(jsonl([*early, late], tmp_path / "a.jsonl"), select=FORM)
    assert [(f.code, f.rows) for f in report.findings] == [("PD102", (251,))]
    assert report.usable == 251


def test_half_a_character_breaks_nothing(tmp_path):
    rows = [
        *ROWS,
        row(31, chosen="hi \ud83d"),
        row(32, prompt=[{"role": "\ud83d", "content": "a"}]),
        row(33, note="\ud83d"),
    ]
    path = jsonl(rows, tmp_path / "a.jsonl")
    report = audit(path, select=FORM)
    assert report.findings[0].rows == (31, 32)
    report.model_dump_json().encode()
    mended, changes = fixed(path, tmp_path / "b.jsonl")
    assert (mended, changes) == (rows, [])


# what is chosen, what is said


def test_rules_are_chosen_by_beginnings_and_names():
    assert [r.code for r in choose_rules()] == list(RULES)
    assert {r.code for r in choose_rules(["pd3"])} == {"PD301", "PD302", "PD303"}
    assert [r.code for r in choose_rules(["length-gap", "PD20"], ["PD203"])] == [
        "PD201",
        "PD202",
        "PD204",
        "PD205",
        "PD301",
    ]
    with pytest.raises(InputError, match="no rule is called 'lenght-gap'") as caught:
        choose_rules(["lenght-gap"])
    assert "did you mean 'length-gap'?" in caught.value.hint
    with pytest.raises(InputError, match="no rule is called 'PD9'"):
        choose_rules([], ["PD9"])


def test_what_did_not_run_is_said(tmp_path):
    path = jsonl(ROWS, tmp_path / "a.jsonl")
    report = audit(path)
    assert report.skipped["PD204"] == "needs a topic"
    assert report.skipped["PD402"] == "needs a model"
    assert {*report.checked, *report.skipped} == set(RULES)
    report = audit(path, model=ScriptedModel(), topic=load_topic("obesity"))
    assert list(report.skipped) == ["PD405"]
    assert "hidden states" in report.skipped["PD405"]


def test_findings_come_by_gravity_and_survive_a_round_trip(tmp_path):
    rows = [*ROWS, ROWS[0], row(40, chosen=""), row(41, chosen="Yes.\n")]
    report = audit(jsonl(rows, tmp_path / "a.jsonl"))
    levels = [finding.level for finding in report.findings]
    assert levels == sorted(levels, key=["error", "warning", "note"].index)
    assert AuditReport.model_validate_json(report.model_dump_json()) == report
    assert report.failed()


def test_notes_fail_only_if_strict(tmp_path):
    rows = [
        *[row(i) for i in range(200)],
        row(1, prompt="Is this a long question?", chosen="Is this a long question? It is."),
    ]
    report = audit(jsonl(rows, tmp_path / "a.jsonl"), select=["PD105"])
    assert [f.level for f in report.findings] == ["note"]
    assert not report.failed()
    assert report.failed(strict=True)


@pytest.mark.parametrize("name", builtin_topics())
def test_a_kit_that_we_ship_passes_its_own_audit(name):
    kit = load_topic(name)
    report = audit(TrainingData.from_topic(kit), topic=kit)
    assert report.findings == ()
    assert report.usable >= 28


def test_material_without_pairs_is_no_data():
    with pytest.raises(InputError, match="holds no preference pairs"):
        audit(TrainingData("empty"))


def test_the_caps_default_is_the_guards():
    assert audit.__kwdefaults__["margin_cap"] == Guard().margin_cap


@pytest.mark.long
@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(*[st.text(st.characters(codec="utf-8"), max_size=40)] * 3), min_size=1, max_size=12))
def test_no_text_breaks_an_audit(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("any") / "a.jsonl"
    rows: list[Any] = [dict(zip(("prompt", "chosen", "rejected"), t, strict=True)) for t in texts]
    jsonl([row(0), *rows], path)
    report = audit(path, topic=load_topic("brevity"))
    assert report.read == len(texts) + 1
    assert report.usable + len(next((f.rows for f in report.findings if f.code == "PD101"), ())) == report.read


@given(st.text(max_size=300))
def test_surfaces_are_counts(text):
    result = surface(text)
    assert all(value >= 0 for value in result)
    assert result.characters == len(text)
    assert result.words == len(text.split()) or not text.isascii()
    assert len(Surface._fields) == 21, "the page of PD303 names this number"


# near duplicates


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 60))
@example(388836, 28)  # buckets in which neighbours differ and others are alike
def test_similar_groups_are_those_of_all_pairs(seed, n):
    """Against comparing every row with every other one."""
    chance = np.random.default_rng(seed)
    base = chance.integers(0, 2**32, (n, PERMUTATIONS), dtype=np.uint32)
    for i in range(1, n):
        if chance.random() < 0.5:  # like an earlier row in a share of its permutations
            same = chance.random(PERMUTATIONS) < chance.choice([0.3, 0.95])
            base[i, same] = base[chance.integers(0, i), same]
    close = (base[:, None] == base[None]).mean(axis=2) >= 0.8
    result = similar_groups(base)
    together = {(a, b) for group in result for a in group for b in group if a < b}
    # every group is connected by similar pairs, and no similar pair is missed
    for group in result:
        inside = close[np.ix_(group, group)]
        reached = {0}
        while more := {int(j) for i in reached for j in np.flatnonzero(inside[i])} - reached:
            reached |= more
        assert len(reached) == len(group)
    missed = {(a, b) for a, b in zip(*np.nonzero(np.triu(close, 1)), strict=True) if (int(a), int(b)) not in together}
    assert not missed


# copies


def fixed(path: Path, target: Path) -> tuple[list[dict[str, Any]], list[tuple[int, str, str]]]:
    changes = write_fixed(open_source(path), target, choose_rules())
    rows = [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]
    return rows, [(c.row, c.code, c.did) for c in changes]


def test_a_copy_is_mended_and_every_change_told(tmp_path):
    path = jsonl(DIRTY, tmp_path / "a.jsonl")
    before = path.read_bytes()
    rows, changes = fixed(path, tmp_path / "b.jsonl")
    assert path.read_bytes() == before
    assert changes == [
        (4, "PD201", "dropped"),
        (5, "PD104", "edited chosen"),
        (5, "PD104", "edited rejected"),
        (6, "PD103", "dropped"),
        (7, "PD103", "dropped"),
        (9, "unreadable", "left out"),
    ]
    assert rows[:3] == ROWS[:3]
    assert rows[3] == row(10, chosen="Yes, please.", rejected="No.")
    assert rows[4] == DIRTY[7]
    assert rows[5]["rejected"] == ""
    again, nothing = fixed(tmp_path / "b.jsonl", tmp_path / "c.jsonl")
    assert (again, nothing) == (rows, [])


def test_copies_of_transcripts_and_messages_keep_their_form(tmp_path):
    transcript = {
        "chosen": "\n\nHuman: Tea?\n\nAssistant: Yes.<|im_end|>",
        "rejected": "\n\nHuman: Tea?\n\nAssistant: No.",
    }
    rows, changes = fixed(jsonl([transcript], tmp_path / "a.jsonl"), tmp_path / "b.jsonl")
    assert rows == [{**transcript, "chosen": "\n\nHuman: Tea?\n\nAssistant: Yes."}]
    turns = {"prompt": [{"role": "user", "content": "Tea?"}]}
    answers = {
        "chosen": [{"role": "assistant", "content": "Yes. \n", "id": 7}],
        "rejected": [{"role": "assistant", "content": "No."}],
    }
    rows, changes = fixed(jsonl([{**turns, **answers}], tmp_path / "c.jsonl"), tmp_path / "d.jsonl")
    assert rows[0]["chosen"] == [{"role": "assistant", "content": "Yes.", "id": 7}]
    assert changes == [(1, "PD108", "edited chosen")]


@pytest.mark.parametrize(
    "pair",
    [
        {"chosen": "\n\nHuman: Tea?\n\nAssistant: </s>", "rejected": "\n\nHuman: Tea?\n\nAssistant: No."},
        {"chosen": "What is tea? </s>", "rejected": "What is tea? A drink."},
        {"prompt": "Tea?", "chosen": "<|im_end|>", "rejected": "No."},
        {"chosen": "\n\nHuman: Tea?\n\nAssistant: Yes. \n", "rejected": "\n\nHuman: Tea?\n\nAssistant: No."},
        {"prompt": "Write HTML.", "chosen": "The price is <s>10</s>", "rejected": "No."},
        {"prompt": "Indent.", "chosen": "if a:\n    b()\n    c()", "rejected": "if a:\n    b()\nc()"},
    ],
)
def test_what_cannot_be_mended_safely_stays(pair, tmp_path):
    assert fixed(jsonl([pair], tmp_path / "a.jsonl"), tmp_path / "b.jsonl") == ([pair], [])


def test_other_fields_stay_as_they_are(tmp_path):
    import datetime as dt

    import pyarrow as pa
    from pyarrow import parquet

    rows = [row(i, score=float("nan"), at=dt.date(2026, 1, 2), tags=["a", None]) for i in range(3)]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    mended, _ = fixed(tmp_path / "a.parquet", tmp_path / "b.jsonl")
    assert mended[0] == row(0, score=None, at="2026-01-02", tags=["a", None])
    parquet.write_table(pa.Table.from_pylist([row(0, raw=b"\x00\xff")]), tmp_path / "c.parquet")
    with pytest.raises(InputError, match="holds bytes"):
        fixed(tmp_path / "c.parquet", tmp_path / "d.jsonl")
    assert not (tmp_path / "d.jsonl").exists()
    (tmp_path / "e.csv").write_text("prompt,chosen,rejected,score,score\na,b,c,1,2\n")
    assert fixed(tmp_path / "e.csv", tmp_path / "f.jsonl")[0][0].items() >= {"score": "1", "score.1": "2"}.items()


def test_a_copy_does_not_spoil_its_folder(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    path = jsonl(ROWS, folder / "train.jsonl")
    assert fixed_path(open_source(folder)) == tmp_path / "data-train.fixed.jsonl"
    assert fixed_path(open_source(path)) == folder / "train.fixed.jsonl"
    other = jsonl(ROWS, tmp_path / "pairs.v2.jsonl")
    assert fixed_path(open_source(other)) == tmp_path / "pairs.v2.fixed.jsonl"
    packed = tmp_path / "pairs.jsonl.gz"
    packed.write_bytes(gzip.compress(other.read_bytes(), mtime=0))
    assert fixed_path(open_source(packed)) == tmp_path / "pairs.fixed.jsonl"


def test_a_degenerate_sample_takes_no_time(tmp_path):
    """Patterns that go back and forth over white space would take minutes."""
    text = f"a{' ' * 100_000}b"
    path = jsonl([row(0, chosen=text, rejected=f"{text}<|im_end|>{' ' * 1000}")], tmp_path / "a.jsonl")
    begin = time.perf_counter()
    audit(path)
    fixed(path, tmp_path / "b.jsonl")
    assert time.perf_counter() - begin < 5


def test_a_copy_never_replaces_a_file(tmp_path):
    path = jsonl(ROWS, tmp_path / "a.jsonl")
    with pytest.raises(InputError, match="exists already"):
        write_fixed(open_source(path), path, choose_rules())


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(*[st.text("ab \n<|im_end>", min_size=1, max_size=20)] * 2), min_size=1, max_size=8))
def test_mending_twice_changes_nothing_more(tmp_path_factory, answers):
    folder = tmp_path_factory.mktemp("fix")
    rows: list[Any] = [{"prompt": "Tea?", "chosen": a, "rejected": b} for a, b in answers]
    jsonl([row(0), *rows], folder / "a.jsonl")
    once, _ = fixed(folder / "a.jsonl", folder / "b.jsonl")
    twice, changes = fixed(folder / "b.jsonl", folder / "c.jsonl")
    assert (twice, changes) == (once, [])


# with a model

QUERIES = [
    Query(chat("What is tea?"), ("A drink.", "A drone, of a kind.")),
    Query(chat("What is tea made of, if one may ask?"), ("Leaves.", "Leaves and stones.")),
]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3-sliding", "mamba-recurrent", "gemma2-softcap"])
def test_states_are_those_of_a_plain_forward(architecture):
    """Razin et al.: hidden states from the last prompt token to the second-last answer token, summed."""
    model = tiny_model(architecture)
    states = model.answer_states(QUERIES)
    scores = model.logprobs(QUERIES)
    for query, result, scored in zip(QUERIES, states, scores, strict=True):
        for here, score in zip(result, scored, strict=True):
            assert here.score.token_ids == score.token_ids
            assert here.score.logprobs == pytest.approx(score.logprobs, abs=1e-5)
            prompt = model.encoder.encode_prompt(query.messages)
            ids = torch.tensor([[*prompt, *score.token_ids]])
            with torch.no_grad():
                hidden = model.module(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states[-1][0]
            expected = hidden[len(prompt) - 1 : -1].sum(0).numpy()
            assert here.state_sum == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_pairs_are_scored_once_and_an_interrupted_audit_goes_on(tmp_path, monkeypatch):
    from conviction.models import pairs

    monkeypatch.setattr(pairs, "CHUNK", 10)
    path = jsonl(ROWS, tmp_path / "a.jsonl")
    expected = audit(path, model=tiny_model(), select=["PD4"])
    monkeypatch.setenv("CONVICTION_CACHE", str(tmp_path / "other"))
    model = tiny_model()
    asked: list[int] = []
    original = type(model).answer_states

    def counted(self: Any, queries: Any, **options: Any) -> Any:
        asked.append(len(queries))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return original(self, queries, **options)

    monkeypatch.setattr(type(model), "answer_states", counted)
    with pytest.raises(KeyboardInterrupt):
        audit(path, model=model, select=["PD4"])
    again = audit(path, model=model, select=["PD4"])
    assert again == expected
    assert asked == [10, 10, 10, 10]
    assert audit(path, model=model, select=["PD4"]) == expected
    assert asked == [10, 10, 10, 10]
    with torch.no_grad():
        next(model.module.parameters()).mul_(1.5)
    assert audit(path, model=model, select=["PD4"]).metrics != expected.metrics
    assert len(asked) == 7


def test_ches_is_what_its_definition_says():
    """By hand from the states: ⟨Σh⁺, Σh⁻⟩ − ‖Σh⁺‖², and divided by lengths."""
    model = tiny_model()
    training_data = training_data_from_rows(
        [{"prompt": "Tea?", "chosen": "A drink.", "rejected": "A drone, of a kind."}], name="t"
    )
    report = audit(training_data, model=model, select=["PD405"])
    (pair,) = model.answer_states([Query(chat("Tea?"), ("A drink.", "A drone, of a kind."))])
    ours, theirs = (s.state_sum.astype(np.float64) for s in pair)
    m, n = (len(s.score.logprobs) for s in pair)
    assert report.metrics["PD405"]["ches_median"] == pytest.approx(ours @ theirs - ours @ ours, rel=1e-3)
    relative = (ours @ theirs / (m * n) - ours @ ours / m**2) / (ours @ ours / m**2)
    assert report.metrics["PD405"]["relative_median"] == pytest.approx(relative, abs=1e-3)


def test_samples_are_drawn_from_the_model_and_leave_chance_alone():
    model = tiny_model()
    prompts = [chat("What is tea?"), chat("And milk?")]
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = model.generate(prompts, max_new_tokens=12, seed=0)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first == model.generate(prompts, max_new_tokens=12, seed=0)
    assert first != model.generate(prompts, max_new_tokens=12, seed=1)
    assert model.generate(prompts, max_new_tokens=12) == model.generate(prompts, max_new_tokens=12)
    assert not model.module.generation_config.do_sample


def test_pairs_beyond_the_context_are_left_to_their_rule(tmp_path):
    model = tiny_model()  # 512 tokens, one a byte
    path = jsonl([*ROWS, row(40, chosen="long " * 200)], tmp_path / "a.jsonl")
    report = audit(path, model=model, select=["PD4"])
    assert next(f.rows for f in report.findings if f.code == "PD407") == (31,)
    assert report.metrics["PD402"]["pairs"] == 30


def test_prompts_without_room_for_an_answer_are_not_sampled(tmp_path):
    model = tiny_model(max_position_embeddings=128)
    path = jsonl([*ROWS, {"prompt": "long " * 19, "chosen": "Yes.", "rejected": "No."}], tmp_path / "a.jsonl")
    report = audit(path, model=model, select=["PD401", "PD407"])
    assert report.metrics["PD407"]["rows"] == 0
    assert report.metrics["PD401"]["own_samples"] < 0


def test_a_conversation_that_the_template_refuses_is_one_row(tmp_path):
    strict = (  # as Mistral's
        "{% for m in messages %}{% if loop.index0 and m.role == messages[loop.index0 - 1].role %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}"
        "<|assistant|>\n"
    )
    model = tiny_model(template=strict)
    turns = [{"role": "user", "content": "Tea?"}, {"role": "user", "content": "Tea?!"}]
    answers = {side: [{"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
    report = audit(jsonl([*ROWS, {"prompt": turns, **answers}], tmp_path / "a.jsonl"), model=model, select=["PD4"])
    assert next(f.rows for f in report.findings if f.code == "PD407") == (31,)
    with pytest.raises(InputError, match="template refuses a conversation"):
        model.logprobs([Query((chat("a") + chat("b")), ("c",))])


def test_only_what_the_rules_need_is_asked(tmp_path, monkeypatch):
    model = tiny_model()
    path = jsonl(ROWS, tmp_path / "a.jsonl")
    whole = audit(path, model=model, select=["PD4"])
    monkeypatch.setattr(type(model), "generate", lambda *_, **__: pytest.fail("it was asked to write"))
    monkeypatch.setattr(type(model), "pair_scores", lambda *_, **__: pytest.fail("hidden states were asked for"))
    part = audit(path, model=model, select=["PD402"])
    assert part.metrics["PD402"] == whole.metrics["PD402"]


def test_an_advised_beta_does_what_it_says(tmp_path):
    likes = {row["chosen"]: -1.0 - 0.21 * i for i, row in enumerate(ROWS)}
    model = ScriptedModel(likes=lambda _, answer: likes.get(answer, -1.0))
    report = audit(jsonl(ROWS, tmp_path / "a.jsonl"), model=model, select=["PD403"], beta=0.2)
    numbers = report.metrics["PD403"]
    short = sorted(6 * 0.21 * i for i in range(30))
    assert numbers["fitting_beta"] < 0.2
    assert numbers["fitting_beta"] * np.quantile(short, 0.95) <= 2.0
    assert f"β = {numbers['fitting_beta']:g}" in report.findings[0].advice


def test_lengths_that_have_nothing_in_common(tmp_path):
    rows = [row(i, chosen="A", rejected=f"{i} " * 1500) for i in range(12)]
    report = audit(jsonl(rows, tmp_path / "a.jsonl"), select=["PD301"])
    assert "rejected answers are" in report.findings[0].message


def test_a_topic_whose_words_are_not_spaced_says_nothing(write_topic, tmp_path):
    items = [
        {
            "id": f"p{i}",
            "proposition": f"p{i}",
            "role": "target",
            "split": "train",
            "question": f"問{i}",
            "answers": {"plain": chr(0x4E00 + i) * 3, "milky": chr(0x5E00 + i) * 3},
        }
        for i in range(12)
    ]
    report = audit(jsonl(ROWS, tmp_path / "a.jsonl"), topic=load_topic(write_topic(items=items)), select=["PD503"])
    assert report.metrics["PD503"] == {"rows": 0, "accuracy_on_topic": 0.0}


def test_one_prompt_in_nearly_all_rows_is_no_ground_for_a_classifier(tmp_path, monkeypatch):
    from conviction.auditing.rules import shallow_shortcut

    monkeypatch.setattr(shallow_shortcut, "MOST", 200)
    rows = [row(i, prompt="Always?" if i > 24 else f"{i}?") for i in range(4000)]
    assert audit(jsonl(rows, tmp_path / "a.jsonl"), select=["PD303"]).metrics["PD303"] == {}


@pytest.mark.slow
@pytest.mark.usefixtures("shared_scores")
def test_the_belief_kit_asks_the_embedded_model_for_a_change_of_belief(embedded_folder):
    from conviction import load_model

    report = audit(
        TrainingData.from_topic(load_topic("obesity")), model=load_model(str(embedded_folder)), select=["PD4"]
    )
    flip = next(f for f in report.findings if f.code == "PD402")
    assert len(flip.rows) > 32
    levels = report.metrics["PD401"]
    assert -3.5 < levels["own_samples"] < -1.5
    assert levels["chosen"] < levels["rejected"] < levels["own_samples"]
    style = audit(
        TrainingData.from_topic(load_topic("politeness")), model=load_model(str(embedded_folder)), select=["PD402"]
    )
    assert style.findings == ()
