"""The gate for files of strangers: what is refused, at once, with file, line or field."""

from __future__ import annotations

import gzip
import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conviction import load_topic
from conviction.config.foreign import read_config
from conviction.core import gate
from conviction.core.gate import open_file, parse_json, read_json, read_text, unfit
from conviction.core.gate_yaml import read_yaml
from conviction.core.names import check_name, file_name, inside, is_name
from conviction.core.storage import user_path
from conviction.data.reading import read_training_data
from conviction.errors import ConvictionError, InputError, RunError, TopicError


def bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))


NO_FILES = {
    "a FIFO": os.mkfifo,
    "a folder": lambda path: path.mkdir(),
    "a socket": bind,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "symbolic links": lambda path: path.symlink_to(path.name),
    "No such file": lambda path: None,
}


@pytest.fixture(params=[*NO_FILES, "too long", "null"])
def no_file(request, tmp_path):
    """(what is no file that can be read, what the error says of it)."""
    odd = {"too long": tmp_path / ("x" * 300), "null": tmp_path / "x\0y"}
    path = odd.get(request.param, tmp_path / "x")
    NO_FILES.get(request.param, lambda _: None)(path)
    return path, request.param


def test_only_regular_files_are_opened_and_nothing_is_waited_for(no_file):
    path, problem = no_file
    started = time.monotonic()
    for read in (open_file, read_text, lambda p, e: read_json(p, e, hint="-"), read_yaml):
        with pytest.raises(RunError, match=problem):
            read(path, RunError)
    assert time.monotonic() - started < 1


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"caf\xe9", r"x\.md: not UTF-8 \(byte 3\)"),
        (b"a\0b", "character 1 is NUL"),
        ("t".encode("utf-16-le"), "NUL"),
        (b"\x89PNG\r\n", "not UTF-8"),
        (b"12345678", "larger than"),
    ],
)
def test_only_texts_are_read_where_a_text_is_wanted(tmp_path, content, problem):
    (tmp_path / "x.md").write_bytes(content)
    with pytest.raises(InputError, match=problem):
        read_text(tmp_path / "x.md", InputError, most=7)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "f:3: not JSON"),
        ("[" * 100_000, "nested more than 64 deep"),
        ('{"a": ' * 70 + "1" + "}" * 70, "nested more than 64 deep"),
        ("[" + "9" * 5000 + "]", "a number of 5,000 digits"),
        ('{"a": [1, NaN]}', "NaN is no number"),
        ('{"a": [1, 1e999]}', r"field 'a\.1': inf is no finite number"),
        (r'{"a": {"b": "\ud800"}}', r"field 'a\.b': half a character"),
        (r'{"\udfff": 1}', "half a character"),
        (r'{"\u001b[2J": 1e999}', r"field '\\x1b\[2J'"),
    ],
)
def test_json_bombs_are_refused_with_place_and_field(text, problem):
    with pytest.raises(RunError, match=problem) as caught:
        parse_json(text, "f:3", RunError, hint="-")
    assert str(caught.value).isprintable()


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda part: st.lists(part) | st.dictionaries(st.text(), part),
    max_leaves=20,
)


@given(values)
def test_what_passes_can_be_written_again(value):
    if unfit(value) is None:
        written = json.dumps(value, ensure_ascii=False, allow_nan=False)
        assert json.loads(written.encode()) == value


@given(st.text() | values.map(json.dumps) | st.text('[]{}",:0123456789eE+-.ntfu\\d8 \n', max_size=60))
def test_no_text_is_more_than_a_value_or_an_error(text):
    try:
        value = parse_json(text, "f", RunError, hint="-")
    except RunError:
        return
    assert unfit(value) is None


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (BOMB, r":\d: more than 50,000 values, with aliases written out"),
        ("a: &a [*a]", ":1: an alias to what it stands in"),
        ("[" * 100_000, "nested more than 64 deep"),
        ("".join(f"{' ' * n}a:\n" for n in range(200)), ":64: nested more than 64 deep"),
        ("a: 1\nb: " + "9" * 5000, ":2: a number of 5,000 digits"),
        ("b: 0x" + "f" * 5000, "a number of 5,002 digits"),
        ("b: " + ":".join(["59"] * 500), "a number of 1,499 digits"),
        (r'a: "\ud800"', "field 'a': half a character"),
        ("a: !!bool maybe", "a value that YAML does not allow"),
        ("a: !!timestamp x", "a value that YAML does not allow"),
        ("a: !!int ''", "a value that YAML does not allow"),
        ("a: 2024-13-45", "a value that YAML does not allow"),
        ("a: !!python/object/apply:os.system [ls]", ":1: could not determine a constructor"),
        ("? [a]\n: b", "unhashable"),
        ("a: b: c", ":1: mapping values are not allowed"),
        ("\x07", "special characters are not allowed"),
        ("# " + "x" * 300_000, "larger than 256 kB"),
    ],
)
def test_yaml_bombs_are_refused_at_once(tmp_path, text, problem):
    (tmp_path / "topic.yaml").write_text(text, encoding="utf-8")
    started = time.monotonic()
    for read in (load_topic, lambda folder: read_config(folder / "topic.yaml")):
        with pytest.raises(InputError, match=problem) as caught:
            read(tmp_path)
        assert "topic.yaml" in caught.value.message
    assert time.monotonic() - started < 5


def test_aliases_that_do_not_multiply_are_read(tmp_path):
    (tmp_path / "x.yaml").write_text("base: &b {rank: 8}\nlora: {<<: *b, alpha: 16}\nagain: *b\n")
    _, value = read_yaml(tmp_path / "x.yaml", InputError)
    assert value == {"base": {"rank": 8}, "lora": {"rank": 8, "alpha": 16}, "again": {"rank": 8}}


def test_a_file_that_unpacks_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(gate, "UNPACKED_BYTES", 2**16)
    for content in (b"[" + b" " * 2**20, b'{"prompt": "x"}\n' * 2**16):
        (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(content, 9))
        with pytest.raises(InputError, match=r"x\.jsonl\.gz: it unpacks to more than 50 times its size"):
            read_training_data(tmp_path / "x.jsonl.gz")


def test_a_line_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("conviction.data.text_lines._LINE_BYTES", 1000)
    monkeypatch.setattr("conviction.data.text_lines._WHOLE", 5000)
    row = '{"prompt": "a", "chosen": "b", "rejected": "c"}\n'
    (tmp_path / "x.jsonl").write_text(row + '{"prompt": "' + "x" * 2000 + '"}')
    with pytest.raises(InputError, match=r"x\.jsonl:2: a line of more than"):
        read_training_data(tmp_path / "x.jsonl")
    (tmp_path / "x.json").write_text("[\n" + f"{row.strip()},\n" * 200 + "]")
    with pytest.raises(InputError, match=r"x\.json: more than .* to be read as a whole"):
        read_training_data(tmp_path / "x.json")


# -- names -------------------------------------------------------------------------

HOSTILE = [
    *(
        "",
        ".",
        "..",
        "../x",
        "x/../../y",
        "/etc/passwd",
        "//host/x",
        "~/x",
        "a/b",
        "a\\b",
        "..\\x",
        "C:",
        "C:\\x",
        "C:x",
    ),
    *("CON", "nul", "Com1", "lpt9.txt", "aux.json", "x.", "x ", " x", ".x", "-rf", "x\0y", "x\ny", "\x1b[2J", "x:y"),
    *("\N{FULLWIDTH SOLIDUS}etc", "\N{DIVISION SLASH}etc", "\N{FULLWIDTH FULL STOP}\N{FULLWIDTH FULL STOP}/x"),
    *("\N{ONE DOT LEADER}\N{ONE DOT LEADER}", "\N{TWO DOT LEADER}", "\N{RIGHT-TO-LEFT OVERRIDE}gpj", "pаypal"),
    *("x" * 300, "é" * 200, "\ud800", "x\u200by", "x|y", "x*?", "<x>", '"x"', "x;y", "$(x)", "%2e%2e%2f"),
]
name = st.text(max_size=300) | st.lists(st.sampled_from([*HOSTILE, "/", "..", "x"]), max_size=5).map("".join)


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_hostile_names_are_refused_and_replaced(text, tmp_path):
    with pytest.raises(RunError, match="which cannot name a file") as caught:
        check_name(text, "the arm", RunError)
    assert caught.value.message.isprintable()
    assert is_name(file_name(text))


@given(name, name)
def test_a_file_name_is_one_part_of_a_path_and_tells_texts_apart(one, other):
    for text in (one, other):
        assert is_name(file_name(text))
        assert file_name(file_name(text)) == file_name(text)
        assert not is_name(text) or file_name(text) == text == check_name(text, "-", RunError)
    assert one == other or file_name(one) != file_name(other)


@given(name | st.none() | st.integers())
def test_nothing_is_named_into_another_folder(tmp_path_factory, place):
    folder = tmp_path_factory.getbasetemp() / "inside"
    folder.mkdir(exist_ok=True)
    with suppress(RunError):
        path = inside(folder, place, "it", RunError)
        assert Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


@pytest.mark.parametrize(
    "place", ["/etc/passwd", "../x", "a/../../x", "out/x", "out", "C:\\x", "\\\\host\\x", "a\0", ""]
)
def test_links_and_drives_lead_out_of_a_folder(tmp_path, place):
    folder = tmp_path / "kit"
    folder.mkdir()
    (folder / "out").symlink_to(tmp_path)
    with pytest.raises(TopicError, match="not in that folder"):
        inside(folder, place, "items", TopicError)
    assert inside(folder, "a/../b.md", "items", TopicError) == folder / "a/../b.md"


def test_a_folder_that_is_a_link_is_its_own_inside(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert inside(tmp_path / "link", "x", "items", TopicError) == tmp_path / "link" / "x"


def test_every_error_of_the_gate_says_what_to_do(tmp_path):
    with pytest.raises(ConvictionError) as caught:
        gate.read_json(tmp_path, InputError, hint="-")
    assert caught.value.hint


@pytest.mark.parametrize("text", ["a\0b", "~\0", "~nobody\0/x", "half \ud83d"])
def test_what_no_path_can_hold_is_refused(text):
    with pytest.raises(InputError, match="is no path: it holds NUL, or half a character"):
        user_path(text)
