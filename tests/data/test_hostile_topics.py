"""Topics and saved data sets of strangers: what they may name, and what becomes of files that are none."""

from __future__ import annotations

import json
import os

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
