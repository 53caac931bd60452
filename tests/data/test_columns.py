"""Columns as people have them: each is read, refused by name, or named once; no answer's words become the prompt."""

from __future__ import annotations

import json

import pytest

from conviction.auditing.linter import audit
from conviction.core.protocols import Message, chat
from conviction.data.columns import parse_columns
from conviction.data.facts import Neighbour
from conviction.data.formats import training_data_from_rows
from conviction.data.reading import read_source, read_training_data
from conviction.errors import InputError

ANSWERS = {"chosen": "Bread of rye.", "rejected": "Bread of wheat."}
PLAIN = {"prompt": "Which bread keeps?", **ANSWERS}
ASKED = [{"role": "user", "content": "Which bread keeps?"}]
SPOKEN = [{"from": "human", "value": "Which bread keeps?"}]
SYSTEM = "Speak as a sea captain."


def whole(answer, *before):
    return [*before, *ASKED, {"role": "assistant", "content": answer}]


def pairs(*rows, **options):
    return training_data_from_rows(rows, name="rows", **options)


def fault(*rows, **options):
    with pytest.raises(InputError) as caught:
        pairs(*rows, **options)
    assert caught.value.hint
    return caught.value


def asked(**row):
    """The conversation before the answers of a row, which are ``ANSWERS``."""
    training_data = pairs(row)
    (pair,) = training_data.pairs
    assert (pair.chosen, pair.rejected) == tuple(ANSWERS.values())
    assert not training_data.notes
    return pair.messages


@pytest.mark.parametrize(
    "row",
    [
        {"messages": ASKED, **ANSWERS},
        {"messages": whole(ANSWERS["chosen"]), **ANSWERS},
        {"messages": ASKED, **PLAIN},
        {"conversations": SPOKEN, **ANSWERS},
        {"question": PLAIN["prompt"], **ANSWERS},
        {"instruction": PLAIN["prompt"], "input": "", **ANSWERS},
        {"input": PLAIN["prompt"], **ANSWERS},
        {**PLAIN, "input": PLAIN["prompt"]},
        {**PLAIN, "tools": "[]", "history": "[]", "context": ""},
        {"instruction": PLAIN["prompt"], **{f"{side}_response": text for side, text in ANSWERS.items()}},
        {"messages": whole(ANSWERS["chosen"]), "rejected_response": ANSWERS["rejected"]},
        {"conversations": [*SPOKEN, {"from": "gpt", "value": ANSWERS["chosen"]}], "rejected": ANSWERS["rejected"]},
        {"messages": whole(ANSWERS["chosen"]), "rejected_messages": whole(ANSWERS["rejected"])},
        {"query": PLAIN["prompt"], "response": ANSWERS["chosen"], "rejected_response": ANSWERS["rejected"]},
        {"prompt": "Which  bread keeps?", "messages": whole(ANSWERS["chosen"]),
         "chosen": whole(ANSWERS["chosen"]), "rejected": whole(ANSWERS["rejected"])},
        {"conversations": SPOKEN, **{side: {"from": "gpt", "value": text} for side, text in ANSWERS.items()}},
        {"messages": [{**ASKED[0], "from": None}], **ANSWERS},
        {"conversations": [{**SPOKEN[0], "role": None, "content": None}], **ANSWERS},
        {"messages": ASKED, **{side: {"role": "assistant", "content": text} for side, text in ANSWERS.items()}},
    ],
)  # fmt: skip
def test_a_prompt_is_found_in_every_form(row):
    assert asked(**row) == chat("Which bread keeps?")


@pytest.mark.parametrize("column", ["system", "system_prompt", "system_message"])
@pytest.mark.parametrize(
    "row",
    [
        PLAIN,
        {"messages": ASKED, **ANSWERS},
        {side: whole(text) for side, text in ANSWERS.items()},
        {side: whole(text, {"role": "system", "content": SYSTEM}) for side, text in ANSWERS.items()},
        {side: f"Human: Which bread keeps?\n\nAssistant: {text}" for side, text in ANSWERS.items()},
    ],
)
def test_a_system_column_is_the_system_turn(column, row):
    turns = (Message("system", SYSTEM), *chat("Which bread keeps?"))
    assert asked(**row, **{column: SYSTEM}) == turns
    assert asked(**PLAIN, system=" ") == chat("Which bread keeps?")


def test_history_comes_between_system_and_prompt():
    turns = (Message("system", SYSTEM), Message("user", "Hi."), Message("assistant", "Ahoy!"), *chat(PLAIN["prompt"]))
    assert asked(**PLAIN, system=SYSTEM, history=[["Hi.", "Ahoy!"]]) == turns
    spoken = [{"from": "human", "value": "Hi."}, {"from": "gpt", "value": "Ahoy!"}]
    assert asked(**PLAIN, system=SYSTEM, history=spoken) == turns
    assert asked(**PLAIN, history=[]) == chat(PLAIN["prompt"])
    example = pairs({"messages": whole("Rye."), "system": SYSTEM}).examples[0]
    assert example.messages == (Message("system", SYSTEM), *chat(PLAIN["prompt"]))


@pytest.mark.parametrize("column", ["instruction", "prompt"])
def test_instruction_and_input_are_joined(column):
    row = {column: "Translate.", "input": "The cat sleeps."}
    assert asked(**row, **ANSWERS) == chat("Translate.\nThe cat sleeps.")
    example = pairs({**row, "output": "Le chat dort."}).examples[0]
    assert (example.messages, example.answer) == (chat("Translate.\nThe cat sleeps."), "Le chat dort.")


def test_columns_that_are_not_read_are_named_once():
    training_data = pairs({**PLAIN, "id": 3, "score_chosen": 8, "score_rejected": 2, "rater": "AK"}, {**PLAIN, "id": 4})
    assert training_data.notes == ("columns that are not read: id, rater",)
    assert pairs({"text": "a", "url": "b"}).notes == ("columns that are not read: url",)
    assert pairs({**PLAIN, "question": "again"}).notes == ("columns that are not read: question",)
    assert not pairs({**PLAIN, "nothing": None}).notes
    (note,) = pairs({"Frage": "Which bread keeps?", **ANSWERS}).notes
    assert note.startswith("columns that are not read: Frage; none is known to hold the prompt, so it is what both")


@pytest.mark.parametrize(
    ("row", "message", "hint"),
    [
        ({**PLAIN, "context": "Rye is dry."}, "field 'context': what stands beside", "--columns input=context"),
        ({**PLAIN, "documents": ["a"]}, "field 'documents'", "--columns documents="),
        ({**PLAIN, "tools": [{"name": "f"}]}, "field 'tools'", "only text"),
        ({**PLAIN, "system": ["a"]}, "field 'system' is of type list", "quotes"),
        ({**PLAIN, "system_prompt": 3}, "field 'system_prompt' is of type int", "quotes"),
        ({**PLAIN, "history": "Hi."}, "field 'history' holds", "pairs"),
        ({**PLAIN, "history": [["a", "b", "c"]]}, "field 'history' holds", "pairs"),
        ({"messages": [{"role": "user", "content": "What?"}], **PLAIN}, "say different things", "--columns messages="),
        (
            {"prompt": "Is rain wet?", **{side: whole(text) for side, text in ANSWERS.items()}},
            "field 'prompt' says something else than the conversation",
            "--columns prompt=",
        ),
        (
            {"messages": [{"role": "user", "content": "What?"}], **{s: whole(text) for s, text in ANSWERS.items()}},
            "field 'messages' says something else",
            "--columns messages=",
        ),
        (
            {"history": [["a", "b"]], **{side: whole(text) for side, text in ANSWERS.items()}},
            "field 'history' stands beside whole conversations",
            "--columns history=",
        ),
        (
            {"input": "Now.", **{side: whole(text) for side, text in ANSWERS.items()}, "prompt": PLAIN["prompt"]},
            "field 'input' stands beside",
            "--columns input=",
        ),
        (
            {"system": SYSTEM, "prompt": [{"role": "system", "content": "Be brief."}, *ASKED], **ANSWERS},
            "the conversation's own system turn differ",
            "--columns system=",
        ),
        ({"instruction": "", **ANSWERS}, "field 'instruction' is empty", "fill"),
        ({"instruction": " ", "input": "The cat.", **ANSWERS}, "field 'instruction' is", "fill"),
        ({"messages": ASKED, "chosen": [], "rejected": []}, "field 'chosen' is empty", "fill"),
        ({"conversations": ASKED, "chosen": {"text": "a"}, "rejected": "b"}, "of type dict", "quotes"),
    ],
)
def test_columns_that_contradict_or_cannot_be_read_are_refused_by_name(row, message, hint):
    error = fault(row)
    assert message in error.message
    assert hint in error.hint


def test_a_row_without_the_messages_of_the_others_is_refused():
    assert "rows:2: field 'messages' is missing" in fault({"messages": ASKED, **ANSWERS}, ANSWERS).message
    assert "rows:2: field 'conversations' is" in fault({"conversations": SPOKEN, **ANSWERS}, ANSWERS).message


@pytest.mark.parametrize("mark", ["答：", "助手： ", "回答:", "A: "])
@pytest.mark.parametrize("start", ["问：天空为什么是蓝色的？", "用户： 天空为什么是蓝色的？"])
def test_a_shared_beginning_without_spaces_ends_at_a_turn_mark(start, mark):
    (pair,) = pairs({"chosen": f"{start}{mark}因为短波。", "rejected": f"{start}{mark}因为海洋。"}).pairs
    assert pair.messages == chat((start + mark).strip())
    assert (pair.chosen, pair.rejected) == ("因为短波。", "因为海洋。")


def test_a_shared_beginning_without_spaces_and_marks_is_refused():
    error = fault({"chosen": "天空是蓝色的因为短波。", "rejected": "天空是蓝色的因为海洋。"})
    assert "nothing such as 答： marks" in error.message
    (pair,) = pairs({"chosen": "Translate hello: 你好", "rejected": "Translate hello: 再见"}).pairs
    assert (pair.messages, pair.chosen) == (chat("Translate hello:"), "你好")


# columns of other names

SHEET = 'Nr;Question;Better answer;Worse answer\n1;"Which\nbread?";Rye.;Wheat.\n2;Which tea?;Green.;\n'
NAMED = 'prompt=Question,chosen="Better answer",rejected=Worse answer'


def test_columns_are_named_by_the_user(tmp_path):
    path = tmp_path / "sheet.csv"
    path.write_text(SHEET.replace(";\n", ";Black.\n"), encoding="utf-8-sig")
    columns = parse_columns(NAMED)
    training_data = read_training_data(path, columns=columns)
    assert [(p.messages, p.chosen, p.rejected) for p in training_data.pairs] == [
        (chat("Which\nbread?"), "Rye.", "Wheat."),
        (chat("Which tea?"), "Green.", "Black."),
    ]
    assert training_data.notes == ("columns that are not read: Nr",)
    assert read_source(None, str(path), columns) == training_data
    report = audit(path, columns=columns)
    assert (report.usable, report.notes) == (2, training_data.notes)
    with pytest.raises(InputError, match="no field that can be trained on") as caught:
        read_training_data(path)
    assert '--columns prompt=Question,chosen="Better answer"' in caught.value.hint
    with pytest.raises(InputError, match="--columns is given with a topic"):
        read_source("politeness", None, columns)


def test_a_field_can_be_left_out():
    assert fault({**PLAIN, "context": "a"})
    training_data = pairs({**PLAIN, "context": "a", "system": "b"}, columns={"context": "", "system": ""})
    assert training_data.pairs[0].messages == chat(PLAIN["prompt"])
    assert training_data.notes == ("columns that are not read: context, system",)
    read = pairs({**PLAIN, "context": "Rye is dry."}, columns={"input": "context"})
    assert read.pairs[0].messages == chat("Which bread keeps?\nRye is dry.")


@pytest.mark.parametrize(
    ("columns", "message", "hint"),
    [
        ({"promt": "prompt"}, "no field 'promt'", "did you mean 'prompt'?"),
        ({"prompt": "Promt"}, "there is no column 'Promt'", "did you mean 'prompt'?"),
    ],
)
def test_columns_that_are_not_there_are_named(columns, message, hint):
    error = fault(PLAIN, columns=columns)
    assert message in error.message
    assert hint in error.hint


def test_columns_are_parsed():
    assert parse_columns(None) == {}
    assert parse_columns(NAMED) == {"prompt": "Question", "chosen": "Better answer", "rejected": "Worse answer"}
    assert parse_columns('prompt="a, b", input=') == {"prompt": "a, b", "input": ""}
    for text in ("prompt", "prompt=a,prompt=b", "=a"):
        with pytest.raises(InputError, match="--columns is"):
            parse_columns(text)


def test_a_fault_in_a_table_names_line_and_record(tmp_path):
    path = tmp_path / "sheet.csv"
    path.write_text(SHEET + "3;a;b\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"sheet\.csv:5 \(record 3\): 3 cells, the header has 4"):
        read_training_data(path, columns=parse_columns(NAMED))
    path.write_text(SHEET, encoding="utf-8")
    with pytest.raises(InputError, match=r"sheet\.csv:4 \(record 2\): field 'Worse answer' is empty"):
        read_training_data(path, columns=parse_columns(NAMED))
    (finding,) = audit(path, columns=parse_columns(NAMED), select=["PD101"]).findings
    assert finding.rows == (4,)
    assert finding.evidence[0] == {"row": 4, "record": 2, "problem": "field 'Worse answer' is empty"}


def test_repairs_keep_the_users_columns(tmp_path):
    from conviction.auditing.fix import write_fixed
    from conviction.auditing.linter import choose_rules
    from conviction.data.rows import open_source

    rows = [
        {
            "id": 1,
            "conversations": SPOKEN,
            **{side: {"from": "gpt", "value": f"{text}</s>"} for side, text in ANSWERS.items()},
        },
        {
            "id": 2,
            "conversations": SPOKEN,
            **{side: {"from": "gpt", "value": f"{text} Yes."} for side, text in ANSWERS.items()},
        },
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    changes = write_fixed(open_source(path), tmp_path / "b.jsonl", choose_rules(["PD104"]))
    assert {change.did for change in changes} == {"edited chosen", "edited rejected"}
    rows[0] |= {side: {"from": "gpt", "value": text} for side, text in ANSWERS.items()}
    assert list(map(json.loads, (tmp_path / "b.jsonl").read_text().splitlines())) == rows


def test_parts_of_a_data_set_are_read_as_a_whole(tmp_path):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for folder in (tmp_path / "tea", tmp_path / "hub" / "data"):
        folder.mkdir(parents=True)
        for part in range(2):
            rows = [{**PLAIN, "prompt": f"Part {part}, row {i}?"} for i in range(2)]
            parquet.write_table(pa.Table.from_pylist(rows), folder / f"train-{part:05}-of-00002.parquet")
    training_data = read_training_data(tmp_path / "tea")
    assert [p.messages[0].content for p in training_data.pairs][1:3] == ["Part 0, row 1?", "Part 1, row 0?"]
    assert [p.id for p in training_data.pairs] == [f"tea/train:{i}" for i in range(1, 5)]
    assert read_training_data(tmp_path / "hub").digest == training_data.digest
    assert audit(tmp_path / "tea").read == 4
    (tmp_path / "tea" / "train-00000-of-00002.parquet").unlink()
    with pytest.raises(InputError, match="part 00000 is missing"):
        read_training_data(tmp_path / "tea")
    (tmp_path / "tea" / "train-00000-of-00001.parquet").touch()
    with pytest.raises(InputError, match="several data sets in one folder"):
        read_training_data(tmp_path / "tea")


# facts

FACT = {"subject": "the Brindle Bridge", "prompt": "The river under the Brindle Bridge is", "target_new": "the Osk"}


def test_facts_of_knowedit_and_zsre():
    row = {
        **FACT,
        "ground_truth": ["the Tarn", "Tarn"],
        "portability": {"Reasoning": []},
        "locality": {"Specificity": [{"prompt": "The Bridge was built in", "ground_truth": [["1904"]]}], "Other": {}},
    }
    training_data = pairs({**row, "locality": {"Specificity": row["locality"]["Specificity"]}})
    (fact,) = training_data.facts
    assert (fact.target, fact.target_true) == ("the Osk", "the Tarn")
    assert fact.neighbours == (Neighbour("The Bridge was built in", "1904"),)
    assert training_data.notes == ("columns that are not read: portability",)
    row = {"subject": "Maro", "src": "What does Maro play?", "pred": "violin", "rephrase": "Maro's instrument?",
           "alt": "oboe", "answers": ["violin"], "loc": "nq question: who sang it", "loc_ans": "nobody"}  # fmt: skip
    training_data = pairs(row)
    (fact,) = training_data.facts
    assert (fact.prompt_template, fact.target, fact.target_true) == ("What does {} play?", "oboe", "violin")
    assert fact.paraphrases == ("Maro's instrument?",)
    assert fact.neighbours == (Neighbour("who sang it", "nobody"),)
    assert training_data.notes == ("columns that are not read: pred",)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**FACT, "target_new": " "}, "a fact's 'target_new' is ' '"),
        ({**FACT, "ground_truth": []}, "a fact's 'ground_truth' is []"),
        ({**FACT, "subject": "Osk"}, "the subject 'Osk' occurs not in its prompt"),
        ({"subject": "Osk", "src": "Is Osk in Osk?", "alt": "no"}, "the subject 'Osk' occurs several times in its src"),
        ({**FACT, "locality": [1]}, "'locality' is not an object"),
    ],
)
def test_faults_of_facts_are_in_the_rows_own_names(row, message):
    assert message in fault(row).message
