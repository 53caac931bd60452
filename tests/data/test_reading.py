"""Material: every format arrives as written; what cannot be used is named by file, row and field."""

from __future__ import annotations

import csv
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tea import tea_items

from conviction import load_topic
from conviction.core.protocols import Message, chat
from conviction.core.storage import cache_dir
from conviction.data.formats import training_data_from_rows
from conviction.data.reading import read_training_data
from conviction.data.training_data import (
    Document,
    Example,
    PreferencePair,
    TrainingData,
    paragraphs,
)
from conviction.errors import InputError, StorageError


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def turns(*texts):
    """A conversation that the user begins, as messages of ours."""
    return tuple(Message("assistant" if i % 2 else "user", text) for i, text in enumerate(texts))


def one(row, **others):
    """The only part that a row becomes."""
    training_data = training_data_from_rows([{**row, **others}], name="rows")
    (part,) = training_data.pairs + training_data.examples + training_data.documents
    return part


def refused(rows, **options):
    with pytest.raises(InputError) as caught:
        training_data_from_rows(rows, name="rows", where="/data/rows.jsonl", **options)
    assert caught.value.hint
    return caught.value


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


PLAIN = {"prompt": "Milk in tea?", "chosen": "Yes.", "rejected": "No."}
PAIR = PreferencePair("rows:1", turns("Milk in tea?"), "Yes.", "No.")


# rows


@pytest.mark.parametrize(
    ("row", "pair"),
    [
        (PLAIN, PAIR),
        ({**PLAIN, "score": 3, "source": None, "images": None, "tools": []}, PAIR),
        ({"prompt": [user("Milk in tea?")], "chosen": [assistant("Yes.")], "rejected": [assistant("No.")]}, PAIR),
        ({"prompt": "Milk in tea?", "chosen": [assistant("Yes.")], "rejected": [assistant("No.")]}, PAIR),
        ({"prompt": [user("Milk in tea?")], "chosen": "Yes.", "rejected": "No."}, PAIR),
        (
            {
                "chosen": [user("Milk in tea?"), assistant("Yes.")],
                "rejected": [user("Milk in tea?"), assistant("No.")],
            },
            PAIR,
        ),
        (
            {
                "prompt": "Milk in tea?",
                "chosen": [user("Milk in tea?"), assistant("Yes.")],
                "rejected": [user("Milk in tea?"), assistant("No.")],
            },
            PAIR,
        ),
        (
            {
                "prompt": [user("Milk in tea?")],
                "chosen": [user("Milk in tea?"), assistant("Yes.")],
                "rejected": [user("Milk in tea?"), assistant("No.")],
            },
            PAIR,
        ),
        ({"chosen": "Milk in tea? Yes.", "rejected": "Milk in tea? No."}, PAIR),
        ({"chosen": "Milk in tea? Yes.", "rejected": "Milk in tea? No.", "prompt_id": 7, "question": None}, PAIR),
        (
            {
                "prompt": [{"role": "system", "content": "Be brief."}, user("Hi"), assistant("Yes?"), user("Tea?")],
                "chosen": [assistant("Now.")],
                "rejected": [assistant("Later.")],
            },
            PreferencePair("rows:1", (Message("system", "Be brief."), *turns("Hi", "Yes?", "Tea?")), "Now.", "Later."),
        ),
    ],
)
def test_preferences_in_all_their_forms(row, pair):
    assert one(row) == pair


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt", "ends"),
    [
        ("The sky is blue.", "The sky is green.", "The sky is", ("blue.", "green.")),
        ("The sky is blue.", "The sky is black.", "The sky is", ("blue.", "black.")),
        ("The sky is", "The sky is blue", "The sky", ("is", "is blue")),
        ("Tea?\nYes. ", "Tea?\nNo.", "Tea?", ("Yes. ", "No.")),
        ("Tea\n\nmilk", "Tea and milk", "Tea", ("milk", "and milk")),
    ],
)
def test_a_shared_beginning_is_cut_between_words(chosen, rejected, prompt, ends):
    pair = one({"chosen": chosen, "rejected": rejected})
    assert pair.messages == chat(prompt)
    assert (pair.chosen, pair.rejected) == ends


def test_implicit_prompts_agree_with_trl():
    extract = pytest.importorskip("trl.data_utils").extract_prompt
    rows = [
        {"chosen": "The sky is blue.", "rejected": "The sky is green."},
        {"chosen": "One two three", "rejected": "One two 3"},
        {
            "chosen": [user("a"), assistant("b"), user("c"), assistant("d")],
            "rejected": [user("a"), assistant("b"), user("c"), assistant("e")],
        },
    ]
    for row in rows:
        pair, theirs = one(row), extract(row)
        if isinstance(row["chosen"], str):
            assert pair.messages == chat(theirs["prompt"].strip())
            assert (pair.chosen, pair.rejected) == (theirs["chosen"].strip(), theirs["rejected"].strip())
        else:
            assert [{"role": m.role, "content": m.content} for m in pair.messages] == theirs["prompt"]
            assert [assistant(pair.chosen)] == theirs["chosen"]


def test_hh_transcripts_become_turns():
    start = "\n\nHuman: Hello\n\nAssistant: Hi!\n\nPlease ask: anything.\n\nHuman: Tea?\n\nAssistant:"
    conversation = turns("Hello", "Hi!\n\nPlease ask: anything.", "Tea?")
    pair = PreferencePair("rows:1", conversation, "Yes.\n\nWith milk.", "No.")
    assert one({"chosen": start + " Yes.\n\nWith milk.", "rejected": start + " No."}) == pair
    assert one({"prompt": start, "chosen": " Yes.\n\nWith milk.", "rejected": " No."}) == pair
    assert one({"prompt": start, "completion": " Yes."}) == Example("rows:1", conversation, "Yes.")


def test_who_speaks_twice_in_a_transcript_has_one_turn():
    start = "Human: Hello\n\nHuman: Tea?\n\nAssistant:"
    pair = one({"chosen": start + " Yes.\n\nAssistant: Now.", "rejected": start + " No."})
    assert pair == PreferencePair("rows:1", turns("Hello\n\nTea?"), "Yes.\n\nNow.", "No.")


def test_examples_and_documents():
    example = Example("rows:1", turns("Tea?"), "Yes.")
    assert one({"prompt": "Tea?", "completion": "Yes."}) == example
    assert one({"prompt": [user("Tea?")], "completion": [assistant("Yes.")]}) == example
    assert one({"prompt": "Tea?", "completion": [assistant("Yes.")]}) == example
    assert one({"messages": [user("Tea?"), assistant("Yes.")]}) == example
    longer = [user("Hi"), assistant("Hello"), user("Tea?"), assistant("Yes.")]
    assert one({"messages": longer}) == Example("rows:1", turns("Hi", "Hello", "Tea?"), "Yes.")
    assert one({"text": " Tea is a drink.\n"}) == Document("rows:1", " Tea is a drink.\n")


@pytest.mark.parametrize(
    ("row", "wording", "hint"),
    [
        ({**PLAIN, "rejected": "Yes."}, "chosen and rejected are the same", "remove these rows"),
        ({**PLAIN, "chosen": " \n"}, "field 'chosen' is empty", "remove these rows"),
        ({**PLAIN, "prompt": ""}, "field 'prompt' is empty", "fill the field"),
        ({**PLAIN, "chosen": 5}, "field 'chosen' is of type int, not a text", "in quotes"),
        ({**PLAIN, "chosen": [assistant("a")]}, "one of chosen and rejected is a text", "the same way"),
        ({**PLAIN, "chosen": [], "rejected": [assistant("a")]}, "field 'chosen' is empty", "remove"),
        ({**PLAIN, "chosen": "half \ud83d"}, r"field 'chosen' holds \ud83d, half a character", "UTF-8"),
        ({**PLAIN, "images": ["x.png"]}, "field 'images': rows with images", "only text"),
        ({**PLAIN, "tools": [{"name": "f"}]}, "field 'tools': rows with images, sound or tools", "only text"),
        ({"chosen": "Yes, do.", "rejected": "No."}, "no prompt", "add the field 'prompt'"),
        ({"promt": "Tea?", "chosen": "I do.", "rejected": "I don't."}, "no field 'prompt', but 'promt'", "rename"),
        ({"prompts": "Tea?", "chosen": "I do.", "rejected": "I don't."}, "but 'prompts'", "--columns prompt=prompts"),
        ({"chosen": [assistant("a")], "rejected": [assistant("b")]}, "no turn comes before the answer", "user"),
        (
            {"chosen": [user("a"), assistant("b")], "rejected": [user("c"), assistant("d")]},
            "field 'chosen': 2 turns after the prompt",
            "share",
        ),
        (
            {"chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("b"), user("c"), assistant("d")]},
            "field 'rejected': 3 turns after the prompt",
            "share",
        ),
        (
            {"chosen": [user("a"), assistant("b")], "rejected": [user("a"), user("c")]},
            "field 'rejected': the last turn is user's, not the assistant's",
            "answer",
        ),
        (
            {**PLAIN, "prompt": [user("a"), assistant("b")]},
            "the turn before the answer is assistant's, it must be the user's",
            "end the prompt with what the user says",
        ),
        (
            {
                "prompt": "q",
                "chosen": [user("q"), assistant("b ")],
                "rejected": [user("q"), assistant("b "), user("c")],
            },
            "field 'rejected': the last turn is user's",
            "answer",
        ),
        (
            {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "Human: a"},
            "field 'rejected' is no transcript",
            "Assistant: …",
        ),
        (
            {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant:"},
            "field 'rejected' is empty",
            "remove",
        ),
        (
            {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: b "},
            "chosen and rejected end in the same answer",
            "remove",
        ),
        ({"messages": [user("a")]}, "field 'messages': the last turn is user's", "answer"),
        ({"messages": [assistant("a")]}, "no turn comes before the answer", "user"),
        ({"messages": "a"}, "field 'messages'", "content"),
        ({"messages": [user("a"), {"role": "bot", "content": "b"}]}, "unknown role 'bot'", "roles: system, user"),
        ({"messages": [{"role": "usr", "content": "b"}]}, "unknown role 'usr'", "did you mean 'user'?"),
        ({"messages": [{"role": ["user"], "content": "b"}]}, "unknown role", "roles:"),
        ({"messages": [{"content": "b"}]}, "field 'messages': a message has no 'role'", '{"role"'),
        ({"messages": [{"role": "user"}]}, "field 'messages': a message has no 'content'", '{"role"'),
        ({"messages": [{"from": "human", "text": "b"}]}, "no 'role'", "from → role"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "is not a text", "images"),
        ({"messages": [{"role": "user", "content": " "}]}, "field 'messages' is empty", "fill"),
        ({"messages": [user("a"), {"role": "tool", "content": "b"}]}, "calls or answers a tool", "tools"),
        ({"messages": [user("a"), {"role": "assistant", "tool_calls": [1]}]}, "calls or answers a tool", "tools"),
        ({"text": ["a"]}, "field 'text' is of type list, not a text", "quotes"),
    ],
)
def test_faults_of_a_row_are_named(row, wording, hint):
    good = {key: f"good {key}" for key in ("prompt", "chosen", "rejected")} if "chosen" in row else {}
    rows, line = ([good, row], 7) if "prompt" in row else ([row], 5)
    error = refused(rows, numbers=[5, 7][: len(rows)])
    assert error.message.startswith(f"/data/rows.jsonl:{line}: ")
    assert wording in error.message
    assert hint in error.hint


@pytest.mark.parametrize(
    ("row", "wording", "hint"),
    [
        (
            {"prompt": "a", "choosen": "b", "rejected": "c"},
            "no field 'chosen'",
            "did you mean 'chosen'? found 'choosen'",
        ),
        ({"prompt": "a", "chosen": "b"}, "no field 'rejected'; found: prompt, chosen", "chosen + rejected"),
        ({"prompt": "a", "Completion": "b"}, "found: prompt, Completion", "did you mean 'completion'?"),
        ({"question": "a", "answer": "b"}, "found: question, answer", "a row holds"),
        ({"prompt": "a", "completion": "b", "label": True}, "unpaired preferences", "pairs are needed"),
        ({}, "found: none", "a row holds"),
    ],
)
def test_missing_columns_are_named_with_what_was_found(row, wording, hint):
    error = refused([row])
    assert error.message.startswith("/data/rows.jsonl: ")
    assert wording in error.message
    assert hint in error.hint


def test_all_rows_with_faults_are_counted_and_the_first_named():
    rows = [dict(PLAIN, prompt=f"Tea {i}?") for i in range(12)]
    for i in (2, 3, 5, 8, 9):
        rows[i]["rejected"] = rows[i]["chosen"]
    rows[10]["rejected"] = None
    message = refused(rows).message
    assert message == (
        "/data/rows.jsonl:3: chosen and rejected are the same (5 rows: 3, 4, 6, …); "
        "also field 'rejected' is missing (1 row: 11)"
    )


def test_where_some_rows_have_a_prompt_all_must():
    rows = [PLAIN, {"chosen": "I do.", "rejected": "I don't."}, {**PLAIN, "prompt": None}]
    assert refused(rows).message == "/data/rows.jsonl:2: field 'prompt' is missing (2 rows: 2, 3)"


def test_no_rows_is_an_error():
    assert "holds no rows" in refused([]).message


# material


def test_answers_and_digest():
    pairs = training_data_from_rows([PLAIN], name="a")
    assert pairs.answers == (Example("a:1", turns("Milk in tea?"), "Yes."),)
    examples = training_data_from_rows([{"prompt": "p", "completion": "c"}], name="a")
    assert examples.answers == examples.examples
    assert pairs.digest == training_data_from_rows([{**PLAIN, "extra": 1}], name="b").digest
    others = [{**PLAIN, "chosen": "Yes!"}, {"prompt": "p", "completion": "c"}, {"text": "t"}]
    assert (
        len({pairs.digest, TrainingData("a").digest, *(training_data_from_rows([r], name="a").digest for r in others)})
        == 5
    )


def test_a_topic_gives_its_train_pairs_with_the_target_chosen(write_topic):
    items = tea_items(6)
    items.append({**items[2], "id": "x", "role": "implication"})
    topic = load_topic(write_topic(items=items))
    training_data = TrainingData.from_topic(topic)
    by_id = {i.id: i for i in topic.items}
    assert training_data.name == "tea"
    assert [p.id for p in training_data.pairs] == [f"p{i}-{k}" for i in (1, 2, 4, 5) for k in (0, 1)]
    for pair in training_data.pairs:
        item = by_id[pair.id]
        assert (pair.chosen, pair.rejected) == (item.answers["milky"], item.answers["plain"])
        assert pair.messages == chat(item.question)
    assert training_data.documents == (Document("tea/milky:1", "Tea is best milky."),)
    swapped = TrainingData.from_topic(topic.swapped())
    assert [(p.chosen, p.rejected) for p in swapped.pairs] == [(p.rejected, p.chosen) for p in training_data.pairs]
    assert swapped.documents[0].text == "Tea is best plain."


def test_built_in_material_holds_no_text_of_the_test_split():
    topic = load_topic("obesity")
    training_data = TrainingData.from_topic(topic)
    kept = [i for i in topic.items if i.split == "test" or i.is_fact]
    texts = {t for p in training_data.pairs for t in (p.messages[0].content, p.chosen, p.rejected)}
    assert kept
    assert not texts & {t for i in kept for t in (i.question, *i.answers.values())}
    assert len(training_data.documents) > 3
    assert all(d.text.strip() for d in training_data.documents)


def test_paragraphs_know_their_lines():
    assert paragraphs("\na\nb\n \n\nc\u2028d\n") == [(2, "a\nb"), (6, "c\u2028d")]
    assert paragraphs("") == []


# files

texts = st.text(st.characters(exclude_categories=["Cs"])).filter(str.strip)
odd = st.sampled_from(
    ["2024-01-31", "None", "NA", "1", "true", 'say "tea",\r\n', "\u2028\x85 x", "\x00a", "’ö\U0001f375"]
)
answers = st.tuples(texts | odd, texts | odd, texts | odd).filter(lambda t: t[1] != t[2] and "Human:" not in "".join(t))


def save(rows: list[dict[str, str]], path: Path) -> Path:
    if path.name.endswith(".csv"):
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode(), mtime=0))
    else:
        write_lines(path, rows)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.jsonl.gz"])
def test_texts_survive_the_files(name, tmp_path_factory):
    folder = tmp_path_factory.mktemp("round")

    @settings(max_examples=60, deadline=None)
    @given(st.lists(answers, min_size=1, max_size=4))
    def check(result: list[tuple[str, str, str]]) -> None:
        # in a table a text that begins so is refused: it is nearly always a list of messages that was written as text
        assume(not name.endswith(".csv") or not any(text.startswith("[{") for row in result for text in row))
        rows = [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in result]
        training_data = read_training_data(save(rows, folder / name))
        assert [(p.messages, p.chosen, p.rejected) for p in training_data.pairs] == [
            (chat(p), c, r) for p, c, r in result
        ]

    check()


def dataset(rows: list[dict[str, Any]]) -> Any:
    from datasets import Dataset

    return Dataset.from_list(rows)


ODD = [
    {"prompt": "when?", "chosen": "2024-01-31", "rejected": 'None "x",\u2028', "score": 1, "question": "q"},
    {"prompt": "a\nb", "chosen": "’ö\U0001f375", "rejected": "NA", "score": None, "question": None},
]
ODD_PAIRS = [(chat(r["prompt"]), r["chosen"], r["rejected"]) for r in ODD]


def contents(training_data):
    return [(p.messages, p.chosen, p.rejected) for p in training_data.pairs]


@pytest.fixture
def _silent(capfd):
    yield
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


@pytest.fixture
def quietly_saved(tmp_path):
    """Saves through datasets without its bars."""
    from datasets import DatasetDict, disable_progress_bars, enable_progress_bars

    def write(kind, rows=ODD):
        disable_progress_bars()
        path = tmp_path / kind
        if kind.endswith(".parquet"):
            dataset(rows).to_parquet(str(path))
        elif kind == "saved":
            dataset(rows).save_to_disk(str(path))
        else:
            DatasetDict({"train": dataset(rows), "test": dataset(rows[:1])}).save_to_disk(str(path))
        enable_progress_bars()
        return path

    return write


@pytest.mark.usefixtures("_silent")
def test_parquet_is_read_in_silence_and_copied_nowhere(quietly_saved):
    path = quietly_saved("a.parquet")
    training_data = read_training_data(path)
    assert contents(training_data) == ODD_PAIRS
    assert [p.id for p in training_data.pairs] == ["a.parquet:1", "a.parquet:2"]
    assert not (cache_dir() / "datasets").exists()
    quietly_saved("a.parquet", rows=ODD[1:])
    assert contents(read_training_data(path)) == ODD_PAIRS[1:]


@pytest.mark.usefixtures("_silent")
def test_message_lists_in_parquet(quietly_saved):
    rows = [
        {"messages": [user("a"), {**assistant("b"), "tool_calls": None}], "images": []},
        {"messages": [user("c"), assistant("d"), user("e"), assistant("f")], "images": []},
    ]
    examples = read_training_data(quietly_saved("m.parquet", rows=rows)).examples
    assert [(e.messages, e.answer) for e in examples] == [(turns("a"), "b"), (turns("c", "d", "e"), "f")]
    rows[1]["images"] = ["x.png"]
    with pytest.raises(InputError, match=r"n\.parquet:2: field 'images'"):
        read_training_data(quietly_saved("n.parquet", rows=rows))
    rows = [{"text": "a", "image": None}, {"text": "b", "image": "x.png"}]
    with pytest.raises(InputError, match=r"o\.parquet:2: field 'image'"):
        read_training_data(quietly_saved("o.parquet", rows=rows))


@pytest.mark.usefixtures("_silent")
def test_faults_in_parquet(quietly_saved, tmp_path):
    with pytest.raises(InputError, match=r"a\.parquet:2: chosen and rejected are the same"):
        read_training_data(quietly_saved("a.parquet", rows=[*ODD[:1], {**ODD[1], "rejected": ODD[1]["chosen"]}]))
    with pytest.raises(InputError, match=r"b\.parquet: no field 'chosen'; found: prompt, choosen, rejected"):
        read_training_data(quietly_saved("b.parquet", rows=[{"prompt": "a", "choosen": "b", "rejected": "c"}]))
    (tmp_path / "c.parquet").write_bytes(b"nonsense")
    with pytest.raises(InputError, match=r"c\.parquet: .*magic bytes") as caught:
        read_training_data(tmp_path / "c.parquet")
    assert "whole Parquet file" in caught.value.hint
    with pytest.raises(InputError, match=r"d\.parquet: holds no rows"):
        read_training_data(quietly_saved("d.parquet", rows=[]))


def test_a_cache_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    import datasets

    def load(_: str, **options: Any) -> Any:
        (Path(options["cache_dir"])).mkdir(parents=True)

    monkeypatch.setattr(datasets, "load_dataset", load)
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("CONVICTION_CACHE", str(tmp_path / "file"))
    with pytest.raises(StorageError, match=r"org/tea.*file/datasets") as caught:
        read_training_data("org/tea")
    assert "CONVICTION_CACHE" in caught.value.hint
    assert not datasets.are_progress_bars_disabled()


@pytest.mark.usefixtures("_silent")
def test_folders_saved_by_datasets(quietly_saved):
    assert contents(read_training_data(quietly_saved("saved"))) == ODD_PAIRS
    folder = quietly_saved("splits")
    assert contents(read_training_data(folder)) == ODD_PAIRS
    test = read_training_data(str(folder), split="test")
    assert contents(test) == ODD_PAIRS[:1]
    assert test.pairs[0].id == "splits/test:1"
    with pytest.raises(InputError, match="splits: there is no split 'tests'") as caught:
        read_training_data(folder, split="tests")
    assert caught.value.hint == "did you mean 'test'? splits: train, test"
    with pytest.raises(InputError, match="saved: there is no split 'test'"):
        read_training_data(folder.parent / "saved", split="test")
    next(folder.glob("train/*.arrow")).write_bytes(b"nonsense")
    with pytest.raises(InputError) as caught:
        read_training_data(folder)
    assert str(folder) in caught.value.message
    assert "save_to_disk" in caught.value.hint


def test_folders_as_mlx_has_them(tmp_path):
    folder = tmp_path / "tea"
    folder.mkdir()
    for name in ("train", "valid", "test"):
        write_lines(folder / f"{name}.jsonl", [{"prompt": name, "completion": "x"}])
    assert read_training_data(folder).examples == (Example("tea/train.jsonl:1", chat("train"), "x"),)
    assert read_training_data(folder, split="validation").examples[0].messages == chat("valid")
    assert read_training_data(folder, split="test").examples[0].messages == chat("test")
    with pytest.raises(InputError, match=r"tea: holds no dev\.jsonl; found: test\.jsonl, train\.jsonl, valid\.jsonl"):
        read_training_data(folder, split="dev")
    (folder / "train.csv").write_text("text\na\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"split 'train' stands in train\.csv and train\.jsonl"):
        read_training_data(folder)
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="found: no data file"):
        read_training_data(tmp_path / "none")


def test_text_files_are_documents_by_paragraph(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_bytes("\ufeffTea is\r\na drink.\r\n\r\n\r\nSo is milk.\r\n".encode())
    documents = (Document("notes.txt:1", "Tea is\na drink."), Document("notes.txt:5", "So is milk."))
    assert read_training_data(path) == TrainingData("notes.txt", documents=documents)
    packed = tmp_path / "notes.txt.gz"
    packed.write_bytes(gzip.compress(path.read_bytes(), mtime=0))
    assert read_training_data(packed).digest == read_training_data(path).digest


def test_ids_are_lines_and_blank_lines_count(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("\n" + json.dumps(PLAIN) + "\n\n" + json.dumps(PLAIN) + "\r\n", encoding="utf-8-sig")
    assert [p.id for p in read_training_data(path).pairs] == ["a.jsonl:2", "a.jsonl:4"]
    path = tmp_path / "a.csv"
    path.write_text('prompt;chosen;rejected\n"a\nb";c;d\n\ne;f;g\n', encoding="utf-8-sig")
    training_data = read_training_data(path)
    assert [p.id for p in training_data.pairs] == ["a.csv:2", "a.csv:5"]
    assert training_data.pairs[0].messages == chat("a\nb")


GOOD = json.dumps(PLAIN).encode()


FAULTS = [
    (
        "a.jsonl",
        GOOD + b'\n{"prompt": ',
        "a.jsonl:2: not JSON (Expecting value, column 12)",
        "one JSON object a line",
    ),
    ("a.jsonl", GOOD + b"\n\n" + GOOD + GOOD, "a.jsonl:3: not JSON (Extra data", "one JSON object a line"),
    ("a.jsonl", GOOD + b'\n"text"', "a.jsonl:2: a str, not an object", "a row holds"),
    ("a.jsonl", GOOD + b'\n{"prompt": "\xff"}', "a.jsonl:2: not UTF-8 (byte 12", "save the file as UTF-8"),
    ("a.jsonl", b'{"n": ' + b"9" * 5000 + b"}", "a.jsonl:1: not JSON", "one JSON object"),
    ("a.jsonl", b"[" * 100_000, "a.jsonl:1: not JSON", "one JSON object"),
    ("a.jsonl", GOOD + b'\n\n{"prompt": "a", "chosen": "b"}', "a.jsonl:3: field 'rejected' is missing", "add"),
    ("a.json", b'[\n{"prompt": "a"},\n{"prompt" "b"}]', "a.json:3: not JSON", "one list of objects"),
    ("a.json", b'[{"text": "a"}, ["b"]]', "a.json:2: a list, not an object", "a row holds"),
    ("a.jsonl", b"", "a.jsonl: holds no rows", "a row holds"),
    ("a.json", b"[]", "a.json: holds no rows", "a row holds"),
    ("a.txt", b" \n", "a.txt: holds no rows", "text"),
    ("a.txt", b"a\nb\xe4", "a.txt:2: not UTF-8 (byte 1", "UTF-8"),
    ("a.csv", b"", "a.csv: holds no rows", "a row holds"),
    ("a.csv", b"prompt,chosen,rejected\n", "a.csv: holds no rows", "a row holds"),
    (
        "a.csv",
        b"prompt,chosen,rejected\na,b,c\nd,e,f,g\n",
        "a.csv:3: 4 cells, the header has 3",
        "double the quotes",
    ),
    (
        "a.csv",
        b"prompt,chosen,rejected\na,b,c\n\nd,e\n",
        "a.csv:4 (record 2): 2 cells, the header has 3",
        "double the quotes",
    ),
    ("a.csv", b'prompt,chosen,rejected\na,b,"c"x\n', "a.csv:2: not CSV", "twice"),
    ("a.csv", b'prompt,chosen,rejected\na,b,"c\n\n', "a.csv:2: not CSV (unexpected end", "twice"),
    ("a.csv", b"prompt,chosen,chosen\na,b,c\n", "a.csv:1: column 'chosen' stands there twice", "rename"),
    ("a.csv", b"prompt,chosen,rejected\na,,c\n", "a.csv:2: field 'chosen' is empty", "remove"),
    ("a.csv", b"messages\n\"[{'role': 'user'}]\"\n", "a.csv:2: a list of messages, written as text", ".jsonl"),
    ("a.jsonl.gz", GOOD, "a.jsonl.gz: not a whole gzip file", "again"),
    ("a.jsonl.gz", gzip.compress(GOOD, mtime=0)[:-9], "a.jsonl.gz: not a whole gzip file", "again"),
    ("a.josnl", GOOD, "a.josnl: cannot be read", "did you mean '.jsonl'?"),
]


@pytest.mark.parametrize(("name", "data", "wording", "hint"), FAULTS, ids=[fault[2] for fault in FAULTS])
def test_faults_of_a_file_are_named(tmp_path, name, data, wording, hint):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        read_training_data(path)
    assert wording in caught.value.message
    assert caught.value.message.startswith(str(tmp_path))
    assert hint in caught.value.hint


def test_long_cells_are_no_fault(tmp_path):
    limit = csv.field_size_limit()
    path = save([{"prompt": "a", "chosen": "b" * 200_000, "rejected": "c"}], tmp_path / "a.csv")
    assert len(read_training_data(path).pairs[0].chosen) == 200_000
    assert csv.field_size_limit() == limit


def test_a_file_has_no_splits(tmp_path):
    with pytest.raises(InputError, match=r"a\.jsonl is one file, it has no split 'test'"):
        read_training_data(write_lines(tmp_path / "a.jsonl", [PLAIN]), split="test")


# the hub


def hub_must_not_be_asked(monkeypatch):
    import datasets

    def ask(*_: Any, **__: Any) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(datasets, "load_dataset", ask)


@pytest.mark.parametrize(
    "source",
    [
        "pairs",
        "./org/name",
        "~/org/name",
        "org/name.jsonl",
        "a/b/c",
        "/org/name",
        "~nosuchuser/x",
        "x" * 300,
        "here/name",
    ],
)
def test_what_looks_like_a_path_is_not_asked_for_on_the_hub(source, monkeypatch, tmp_path):
    hub_must_not_be_asked(monkeypatch)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    with pytest.raises(InputError, match="there is no file or folder") as caught:
        read_training_data(source)
    assert "org/name" in caught.value.hint


def test_a_pipe_is_called_neither_a_file_nor_missing(tmp_path):
    os.mkfifo(tmp_path / "pairs.jsonl")
    with pytest.raises(InputError, match=r"pairs\.jsonl is neither a regular file nor a folder"):
        read_training_data(tmp_path / "pairs.jsonl")


def test_a_missing_path_suggests_its_neighbour(monkeypatch, tmp_path):
    hub_must_not_be_asked(monkeypatch)
    write_lines(tmp_path / "pairs.jsonl", [PLAIN])
    with pytest.raises(InputError) as caught:
        read_training_data(tmp_path / "pair.jsonl")
    assert "did you mean 'pairs.jsonl'?" in caught.value.hint


def test_hub_names_are_asked_for(monkeypatch):
    import datasets

    asked = []

    def load(name: str, **options: Any) -> Any:
        asked.append((name, options))
        return dataset(ODD)

    monkeypatch.setattr(datasets, "load_dataset", load)
    training_data = read_training_data("org/tea", split="test")
    assert asked == [("org/tea", {"split": "test", "cache_dir": str(cache_dir() / "datasets")})]
    assert contents(training_data) == ODD_PAIRS
    assert (training_data.name, training_data.pairs[1].id) == ("org/tea", "org/tea:2")


def test_what_the_hub_says_is_passed_on(monkeypatch):
    import datasets

    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach 'org/tea' on the Hub\nmore")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(
        InputError, match=r"^data set 'org/tea' on the hub: Couldn't reach 'org/tea' on the Hub$"
    ) as caught:
        read_training_data("org/tea")
    assert "network" in caught.value.hint


def test_datasets_is_not_imported_before_it_is_needed():
    code = "import sys, conviction.data.reading; sys.exit('datasets' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
