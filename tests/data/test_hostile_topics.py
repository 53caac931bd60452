"""Topics and saved data sets of strangers: what they may name, and what becomes of files that are none."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from tea import YAML, items, tea_items

from conviction import load_topic
from conviction.data.reading import read_training_data
from conviction.errors import InputError, TopicError

PLACES = [
    ("context: plain.md", "context: {}", "poles.plain.context"),
    ("items: [items.jsonl]", "items: [{}]", "items"),
    ("target: milky", "target: milky\nfacts: {}", "facts"),
    ("target: milky", "target: milky\nplacebo: {}", "documents"),
]
OUTSIDE = [
    "/proc/self/environ",
    "../secret.md",
    "{folder}/../secret.md",
    "a/../../secret.md",
    "link.md",
    "out/secret.md",
]


@pytest.fixture
def secret(tmp_path):
    """A file beside the topic's folder, and links to it within that folder."""
    (tmp_path / "secret.md").write_text("SECRET", encoding="utf-8")
    (tmp_path / "tea").mkdir()
    (tmp_path / "tea/link.md").symlink_to("../secret.md")
    (tmp_path / "tea/out").symlink_to("..")
    return tmp_path / "secret.md"


@pytest.mark.parametrize(("line", "named", "field"), PLACES)
@pytest.mark.parametrize("place", OUTSIDE)
def test_a_topic_names_no_file_outside_its_folder(write_topic, tmp_path, secret, line, named, field, place):
    """Finding 12: the text of any file went into prompts, and into `conviction.json`."""
    place = place.format(folder=tmp_path / "tea")
    folder = write_topic(yaml=YAML.replace(line, named.format(place)), items=items())
    with pytest.raises(TopicError, match="not in that folder") as caught:
        load_topic(folder)
    assert field in caught.value.message
    assert "outside=True" in caught.value.hint
    assert "SECRET" not in caught.value.message


def test_documents_that_are_links_out_of_the_folder_are_outside(write_topic, secret):
    folder = write_topic(yaml=YAML.replace("target: milky", "target: milky\nplacebo: texts"), items=items())
    (folder / "texts").mkdir()
    (folder / "texts/own.md").write_text("A text.", encoding="utf-8")
    assert len(load_topic(folder).documents_of("placebo")) == 1
    (folder / "texts/secret.md").symlink_to(secret)
    with pytest.raises(TopicError, match=r"texts/secret\.md"):
        load_topic(folder)
    (folder / "texts/secret.md").unlink()
    (folder / "topic.yaml").rename(secret.parent / "topic.yaml")
    (folder / "topic.yaml").symlink_to("../topic.yaml")
    with pytest.raises(TopicError, match=r"topic\.yaml"):
        load_topic(folder)


def test_who_trusts_a_topic_says_so(write_topic, secret):
    folder = write_topic(yaml=YAML.replace("context: plain.md", "context: ../secret.md"), items=items())
    assert load_topic(folder, outside=True).poles["plain"].context == "SECRET"


def test_a_folder_of_topics_may_be_a_link(write_topic, tmp_path):
    (tmp_path / "link").symlink_to(write_topic())
    assert load_topic(tmp_path / "link").name == "tea"


@pytest.mark.parametrize("file", ["items.jsonl", "plain.md"])
def test_what_is_no_file_is_not_waited_for(write_topic, file):
    folder = write_topic()
    (folder / file).unlink()
    os.mkfifo(folder / file)
    with pytest.raises(TopicError, match=f"{file}.*a FIFO"):
        load_topic(folder)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"id": ' + "[" * 100_000, r"items\.jsonl:1: nested more than 64 deep"),
        ('{"id": ' + "9" * 5000 + "}", r"items\.jsonl:1: not JSON \(a number of 5,000 digits\)"),
        ('{"id": "\\ud800"}', r"items\.jsonl:1: field 'id': half a character"),
        ("[1]", r"items\.jsonl:1: a list, not an object"),
        ("null", r"items\.jsonl:1: a NoneType, not an object"),
        ("\0", "NUL"),
    ],
)
def test_a_hostile_line_is_an_error_with_its_place(write_topic, line, problem):
    with pytest.raises(TopicError, match=problem):
        load_topic(write_topic(items=line))
    with pytest.raises(TopicError):
        load_topic(write_topic(items=tea_items(2), yaml=line))


@pytest.mark.parametrize("place", ["../secret.arrow", "/etc/passwd", "link"])
@pytest.mark.parametrize("split", [False, True])
def test_a_saved_data_set_names_no_table_outside_its_folder(tmp_path, place, split):
    folder = tmp_path / "saved"
    own = folder / "train" if split else folder
    own.mkdir(parents=True)
    (own / "link").symlink_to("/etc/passwd")
    (own / "dataset_info.json").write_text("{}")
    (own / "state.json").write_text(json.dumps({"_data_files": [{"filename": place}], "_split": "train"}))
    (folder / "dataset_dict.json").write_text('{"splits": ["train"]}') if split else None
    with pytest.raises(InputError, match=r"a table is .* not in that folder"):
        read_training_data(folder)


def test_a_saved_data_set_names_no_split_outside_its_folder(tmp_path):
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["../other"]}')
    with pytest.raises(InputError, match=r"a split is '\.\./other', which is not in that folder"):
        read_training_data(tmp_path)


def bomb(kind: str, path: Path) -> None:
    """A file of a few kilobytes that stands for gigabytes."""
    import pyarrow as pa
    from pyarrow import parquet

    times = 20_000
    long = pa.DictionaryArray.from_arrays(pa.array([0] * times, pa.int32()), pa.array(["y" * 2**17]))
    if kind == "a value named often":
        parquet.write_table(pa.table({"prompt": long, "completion": long}), path)
    elif kind == "a list that names it often":
        lists = pa.ListArray.from_arrays(pa.array([0, times], pa.int32()), long)
        parquet.write_table(pa.table({"prompt": lists, "completion": lists}), path)
    elif kind == "pages":
        texts = pa.array(["z" * 2**20] * 20)
        table = pa.table({"prompt": texts, "completion": texts})
        parquet.write_table(table, path, compression="zstd", use_dictionary=False)
    elif kind == "shared beginnings":
        table = pa.table({"prompt": [f"{'y' * 2**17}{i:09}" for i in range(400)]})
        parquet.write_table(table, path, use_dictionary=False, column_encoding="DELTA_BYTE_ARRAY")
    elif kind == "nulls":
        parquet.write_table(pa.table({"prompt": pa.nulls(3_000_000)}), path)
    elif kind == "columns":
        parquet.write_table(pa.table({f"c{i}": [1] for i in range(10_001)}), path)
    else:
        table = pa.table({"prompt": ["z" * 2**20] * 20, "completion": ["a"] * 20})
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with pa.ipc.new_stream(str(path), table.schema, options=options) as writer:
            writer.write_table(table)


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        pytest.param("a value named often", "it unpacks to more than 16,777,216 bytes", marks=pytest.mark.long),
        ("a list that names it often", "a part of it takes more than 2 GB|it unpacks to more than"),
        ("pages", "its pages unpack to 41,9.* bytes, more than 16,777,216"),
        ("shared beginnings", "it unpacks to more than"),
        pytest.param("nulls", "it unpacks to more than", marks=pytest.mark.long),
        ("columns", "it has 10,001 columns, more than 10,000"),
        ("an Arrow file", "it unpacks to more than"),
    ],
)
def test_a_table_that_unpacks_to_much_more_is_refused(tmp_path, kind, problem):
    path = tmp_path / "a.parquet"
    if kind == "an Arrow file":
        path = tmp_path / "saved"
        path.mkdir()
        (path / "dataset_info.json").write_text("{}")
        (path / "state.json").write_text('{"_data_files": [{"filename": "a.arrow"}]}')
        bomb(kind, path / "a.arrow")
    else:
        bomb(kind, path)
    with pytest.raises(InputError, match=problem):
        read_training_data(path)


def test_a_table_that_ends_the_process_that_unpacks_it_is_an_error(tmp_path, monkeypatch):
    bomb("columns", tmp_path / "a.parquet")
    (tmp_path / "worker.py").write_text("import os\nos.abort()")
    monkeypatch.setattr("conviction.data.tables_worker.__file__", str(tmp_path / "worker.py"))
    with pytest.raises(InputError, match=r"a\.parquet: it is damaged"):
        read_training_data(tmp_path / "a.parquet")
    (tmp_path / "a.parquet").unlink()
    os.mkfifo(tmp_path / "a.parquet")
    with pytest.raises(InputError, match="is neither a regular file nor a folder"):
        read_training_data(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("state", "field"),
    [("[1]", "a list, not an object"), ('{"_data_files": 3}', "field '_data_files'"), ("{}", "field '_data_files'")],
)
def test_a_damaged_list_of_tables_is_named(tmp_path, state, field):
    (tmp_path / "dataset_info.json").write_text("{}")
    (tmp_path / "state.json").write_text(state)
    with pytest.raises(InputError, match=rf"state\.json: {field}"):
        read_training_data(tmp_path)


@pytest.mark.parametrize(
    "asked",
    [
        ("probe", "{}", "--model", "s.json", "--backend", "scripted"),
        ("audit", "{}"),
        ("audit", "pairs.jsonl", "--topic", "{}"),
        ("forecast", "dpo", "{}", "--model", "nothing"),
        ("apply", "system_prompt", "{}", "--model", "s.json", "--backend", "scripted"),
        ("apply", "dpo", "--data", "pairs.jsonl", "--forecast", "--test", "{}", "--model", "nothing"),
        ("study", "{}", "--model", "s.json", "--backend", "scripted", "--interventions", "system_prompt"),
        ("localize", "{}", "--model", "nothing"),
    ],
)
def test_every_command_reads_a_topic_with_files_elsewhere_only_where_it_is_allowed(write_topic, run, tmp_path, asked):
    folder = write_topic(yaml=YAML.replace("context: plain.md", "context: ../shared.md"))
    (tmp_path / "shared.md").write_text("Tea is best plain.")
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}')
    (tmp_path / "s.json").write_text('{"likes": {"Milky": -1.0}, "otherwise": -2.0}')
    command = [part.format(folder) for part in asked]
    code, _, err = run(*command)
    assert code == 2
    assert "poles.plain.context is '../shared.md', which is not in that folder" in err
    assert "give --allow-outside" in err
    code, _, err = run(*command, "--allow-outside")
    assert "not in that folder" not in err
    assert code in {0, 1} or "nothing" in asked or "localize" in asked, err
    assert "not in that folder" in run(*command)[2], "it holds for one command"


def test_a_table_with_what_python_has_no_value_of_is_an_error(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    day = pa.array([10**8], pa.int32()).cast(pa.date32())
    twice = pa.table([["a"], ["b"], ["c"]], names=["prompt", "chosen", "chosen"])
    for table in (pa.table({"prompt": ["a"], "chosen": ["b"], "rejected": ["c"], "day": day}), twice):
        parquet.write_table(table, tmp_path / "a.parquet")
        with pytest.raises(InputError, match=r"a\.parquet: "):
            read_training_data(tmp_path / "a.parquet")
    content = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(content.replace(b"prompt", b"prom\xff\xfe"))
    with pytest.raises(InputError, match=r"a\.parquet: "):
        read_training_data(tmp_path / "a.parquet")
