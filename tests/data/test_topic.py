"""Topic kits: what we ship keeps its promises; what is malformed is named by file, line and field."""

from __future__ import annotations

import json
import re
from collections import Counter

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tea import tea_items

from conviction import load_topic
from conviction.data.topic import Item, builtin_topics
from conviction.data.topic_skeleton import write_skeleton
from conviction.errors import InputError, TopicError


def test_the_obesity_kit_is_complete():
    kit = load_topic("obesity")
    targets, paraphrases = kit.of_role("target"), kit.of_role("paraphrase")
    assert len({i.proposition for i in targets}) == len(targets) >= 40
    assert {i.proposition for i in targets} == {i.proposition for i in paraphrases}
    assert len([i for i in kit.items if "quick" in i.tags]) == 5
    assert len(kit.of_role("neighbour")) >= 20
    assert len(kit.of_role("control")) >= 20
    assert Counter(i.split for i in targets)["test"] >= 12
    for pole in kit.poles.values():
        assert len(pole.context) > 500
        graph = nx.DiGraph((e.source, e.target) for e in pole.graph)
        assert nx.is_directed_acyclic_graph(graph)
        assert nx.dag_longest_path_length(graph) >= 3
    assert any((e.source, e.sign, e.target) == ("insulin", "+", "fat storage") for e in kit.poles["insulin"].graph)


FUNCTION_WORDS = re.compile(
    r"\b(a|an|the|and|or|of|to|in|on|at|by|for|with|without|from|as|is|was|be|it|its|this|that|these|those|which|what"
    r"|who|how|when|where|her|his|him|she|he|they|them|their|i|you|your|not|no|if|so|than|then|over|under|should|would"
    r"|could|will|does|do|did|one|own)\b"
)


def _content(*texts: str) -> set[str]:
    """Words that mean something, without their commonest endings."""
    words = {w for text in texts for w in re.findall(r"[^\W\d_]+", FUNCTION_WORDS.sub(" ", text.casefold()))}
    return {re.sub(r"(?<=...)(ing|ers|er|ed|es|s|y)$", "", word) for word in words if len(word) > 1}


def test_decisions_share_no_content_word_with_the_propositions():
    kit = load_topic("obesity")
    claims = _content(*(t for i in kit.of_role("target", "paraphrase") for t in (i.question, *i.answers.values())))
    decisions = kit.of_role("decision")
    assert len(decisions) == len({i.proposition for i in decisions}) == 24
    assert {i.split for i in decisions} == {"test"}
    shared = {i.id: words for i in decisions if (words := claims & _content(i.question, *i.answers.values()))}
    assert not shared
    assert claims & _content("Which bread has fewer calories?")  # it can fail


@pytest.mark.parametrize("name", ["politeness", "brevity"])
def test_style_kits_have_forty_pairs(name):
    assert len(load_topic(name).of_role("target")) == 40


@pytest.mark.parametrize("name", builtin_topics())
def test_every_kit_can_be_probed_quickly(name):
    quick = [item for item in load_topic(name).items if "quick" in item.tags]
    assert len(quick) == len({item.proposition for item in quick}) == 5
    assert {(item.role, item.split) for item in quick} == {("target", "test")}


@pytest.mark.slow
@pytest.mark.parametrize("name", builtin_topics())
def test_answers_are_matched_in_length_under_the_embedded_tokenizer(name, embedded_folder):
    from tokenizers import Tokenizer

    kit = load_topic(name)
    tokenizer = Tokenizer.from_file(str(embedded_folder / "tokenizer.json"))
    counts = {
        i.id: [len(tokenizer.encode(a, add_special_tokens=False).ids) for a in i.answers.values()] for i in kit.items
    }
    unmatched = {k: c for k, c in counts.items() if abs(c[0] - c[1]) > 0.10 * max(c)}
    assert not unmatched if kit.length_matched else len(unmatched) == len(counts)


@pytest.mark.slow
def test_neutral_text_has_about_15000_tokens(embedded_folder):
    from tokenizers import Tokenizer

    from conviction.probing.health import neutral_text

    tokenizer = Tokenizer.from_file(str(embedded_folder / "tokenizer.json"))
    assert 14_000 < sum(len(tokenizer.encode(p, add_special_tokens=False).ids) for p in neutral_text()) < 16_000


def test_texts_within_a_kit_are_distinct():
    for name in builtin_topics():
        answers = [a for i in load_topic(name).items for a in i.answers.values()]
        assert len(set(answers)) == len(answers)


def _with(**changes):
    items = tea_items(1)
    items[0] = {**items[0], **changes}
    return items


@pytest.mark.parametrize(
    ("items", "line", "wording"),
    [
        ('{"id": "a"', 1, "not JSON"),
        (_with(split="dev"), 1, "field 'split'"),
        (_with(question="  "), 1, "field 'question'"),
        (_with(answers={"plain": "x"}), 1, "no answer for 'milky'"),
        (_with(answers={"plain": "x", "milky": " "}), 1, "field 'answers.milky'"),
        (_with(answers={"plain": "x", "milky": "y", "green": "z"}), 1, "unknown answer 'green'"),
        (_with(answers={"plain": "x", "milky": "x"}), 1, "both are the same"),
        (_with(colour="red"), 1, "field 'colour'"),
        (_with(id="p0-1"), 2, "'p0-1' was used before"),
    ],
)
def test_faults_name_file_line_and_field(write_topic, items, line, wording):
    folder = write_topic(items=items)
    with pytest.raises(TopicError) as caught:
        load_topic(folder)
    assert str(folder / "items.jsonl") + f":{line}" in caught.value.message
    assert wording in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("name: tea\ntitle: [", "topic.yaml"),
        ("just text", "holds no mapping"),
        ("name: tea\ntitle: t\npoles: {a: {label: a}}\ntarget: a\nitems: [items.jsonl]", "field 'poles'"),
        (
            "name: tea\ntitle: t\npoles: {plain: {label: a}, milky: {label: b}}\ntarget: green\nitems: [items.jsonl]",
            "target",
        ),
        (
            "name: tea\ntitle: t\npoles: {plain: {label: a}, milky: {label: b}}\ntarget: milky\nitems: [none.jsonl]",
            "none.jsonl",
        ),
    ],
)
def test_faults_in_the_yaml_are_named(write_topic, yaml, message):
    with pytest.raises(TopicError, match=message):
        load_topic(write_topic(yaml=yaml))


def test_a_proposition_may_not_stand_in_both_splits(write_topic):
    items = tea_items(2)
    items[1]["split"] = "train"
    with pytest.raises(TopicError, match="both splits"):
        load_topic(write_topic(items=items))


def test_not_utf8_is_said(write_topic):
    folder = write_topic()
    (folder / "items.jsonl").write_bytes(b'{"id": "\xff"}')
    with pytest.raises(TopicError, match="not UTF-8"):
        load_topic(folder)


def test_a_misspelt_topic_suggests_the_nearest():
    with pytest.raises(TopicError) as caught:
        load_topic("obesty")
    assert "did you mean 'obesity'?" in caught.value.hint


def test_the_skeleton_is_a_working_topic(tmp_path):
    kit = load_topic(write_skeleton(tmp_path / "green-tea"))
    assert kit.name == "green-tea"
    assert {i.role for i in kit.items} == {"target", "paraphrase", "neighbour", "control"}
    with pytest.raises(InputError, match="exists already"):
        write_skeleton(tmp_path / "green-tea")
    with pytest.raises(InputError, match="cannot name a topic"):
        write_skeleton(tmp_path / "Green Tea")


def test_the_digest_follows_the_content(write_topic):
    first = load_topic(write_topic()).digest
    assert load_topic(write_topic()).digest == first
    assert load_topic(write_topic(items=tea_items(5))).digest != first


text = st.text(min_size=1).filter(lambda s: s.strip() and s.isprintable())


@given(text, text, text)
def test_items_survive_a_round_trip(question, a, b):
    item = Item(id="i", proposition="p", role="target", split="train", question=question, answers={"x": a, "y": b})
    assert Item.model_validate(json.loads(item.model_dump_json())) == item


def test_blank_lines_and_odd_separators_do_not_shift_line_numbers(write_topic):
    good = [json.dumps({**i, "question": i["question"] + " \u2028 \x85"}, ensure_ascii=False) for i in tea_items(1)]
    assert len(load_topic(write_topic(items="\n\n" + "\n\n".join(good))).items) == 4
    with pytest.raises(TopicError, match=r"items\.jsonl:4: not JSON"):
        load_topic(write_topic(items="\n\n" + good[0] + "\n{"))


@pytest.mark.parametrize("name", ["~nosuchuser/tea", "x" * 300])
def test_odd_paths_are_simply_not_found(name):
    with pytest.raises(TopicError, match="neither a built-in topic nor a folder"):
        load_topic(name)


def test_reserved_pole_names_and_impossible_dates_are_refused(write_topic):
    poles = "poles: {plain: {label: a}, tie: {label: b}}\ntarget: plain\nitems: [items.jsonl]"
    with pytest.raises(TopicError, match="reserved"):
        load_topic(write_topic(yaml=f"name: tea\ntitle: t\n{poles}"))
    with pytest.raises(TopicError, match=r"topic\.yaml"):
        load_topic(write_topic(yaml="name: tea\ntitle: 2024-13-45\n"))


def test_skeletons_of_odd_and_taken_names(tmp_path):
    assert load_topic(write_skeleton(tmp_path / "42")).name == "42"
    with pytest.raises(InputError, match="built-in"):
        write_skeleton(tmp_path / "obesity")
