"""From texts to ids, and from examples to steps: nothing lost, nothing twice, the same in every process."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import TEMPLATE, byte_tokenizer

from conviction import chat
from conviction.core.protocols import Message
from conviction.data.training_data import Document, Example, PreferencePair
from conviction.errors import InputError
from conviction.models.prompts import PromptEncoder
from conviction.training.batches import (
    TokenizedExample,
    encode_documents,
    encode_examples,
    encode_pairs,
    keep_fitting,
    make_microbatches,
    step_order,
)
from conviction.training.settings import Training

EOS = 257
CHATML = "{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}</s>\n{% endfor %}"


def encoder_of(template: str | None = TEMPLATE, context: int | None = None) -> PromptEncoder:
    return PromptEncoder(byte_tokenizer(template), context)


def ids_of(text: str) -> tuple[int, ...]:
    return tuple(byte_tokenizer()(text, add_special_tokens=False).input_ids)


class WithBos:
    """The byte tokenizer as one of those that begin a text with BOS."""

    chat_template = None
    bos_token_id, eos_token_id = 256, EOS

    def __call__(self, text, *, add_special_tokens=True):
        ids = list(ids_of(text))
        return SimpleNamespace(input_ids=[256, *ids] if add_special_tokens else ids)


# -- the order of a run -----------------------------------------------------------


def runs(**changes):
    return Training(**{"batch_size": 3, **changes})


@given(st.integers(1, 60), st.integers(1, 7), st.integers(1, 3), st.integers(1, 3), st.integers(0, 99))
def test_every_example_is_seen_once_an_epoch(count, batch, accumulation, epochs, seed):
    training = Training(batch_size=batch, gradient_accumulation=accumulation, epochs=epochs, seed=seed)
    order = step_order(count, training)
    seen = [i for step in order for i in step]
    for epoch in range(epochs):
        assert sorted(seen[epoch * count : (epoch + 1) * count]) == list(range(count))
    size = batch * accumulation
    per_epoch = -(-count // size)
    assert len(order) == epochs * per_epoch
    assert {len(step) for k, step in enumerate(order) if (k + 1) % per_epoch} <= {size}, "only an epoch's last is short"


def test_the_order_is_a_function_of_the_seed():
    assert step_order(30, runs(seed=1)) == step_order(30, runs(seed=1))
    assert step_order(30, runs(seed=1)) != step_order(30, runs(seed=2))


def test_epochs_are_ordered_differently_and_a_longer_run_begins_as_a_shorter_one():
    two = step_order(30, runs(epochs=2))
    assert two[:10] == step_order(30, runs(epochs=1))
    assert two[10:] != two[:10]


def test_batches_and_accumulation_are_the_same_thing():
    split = step_order(30, Training(batch_size=2, gradient_accumulation=3))
    assert split == step_order(30, Training(batch_size=6))


@pytest.mark.parametrize("most", [1, 7, 10, 13, 50])
def test_max_steps_cuts_and_never_adds(most):
    whole = step_order(30, runs(epochs=2))
    assert step_order(30, runs(epochs=2, max_steps=most)) == whole[:most]


# -- the layout of a step ------------------------------------------------------------

token = st.integers(0, 3)
sequence = st.lists(token, min_size=1, max_size=10).map(tuple)
answer_pairs = st.tuples(sequence, sequence).filter(lambda a: a[0] != a[1])
batches = st.lists(st.tuples(sequence, answer_pairs), min_size=1, max_size=9)


def examples_of(parts):
    return [TokenizedExample(f"e{i}", prompt, answers) for i, (prompt, answers) in enumerate(parts)]


@settings(max_examples=60)
@given(batches, st.integers(1, 60), st.integers(1, 3), st.randoms(use_true_random=False))
def test_processes_share_a_step_without_loss_or_overlap(parts, budget, processes, rng):
    examples = examples_of(parts)
    indices = rng.sample(range(len(examples)), len(examples))
    layouts = [
        make_microbatches(examples, indices, token_budget=budget, process=p, processes=processes)
        for p in range(processes)
    ]
    assert len({len(layout) for layout in layouts}) == 1, "collectives need equally many passes"
    counted = Counter(i for layout in layouts for b in layout if b.weight for i in b.members)
    assert counted == Counter(indices)
    for layout in layouts:
        assert {b.weight for b in layout} <= {0.0, 1.0}
        for b in layout:
            assert len(b.members) == len(b.pack.trees)
            for i, tree in zip(b.members, b.pack.trees, strict=True):
                assert set(tree.answers) == {(examples[i].prompt, a) for a in examples[i].answers}, "a pair stays whole"
            assert len(b.pack.trees) == 1 or len(b.pack.tokens) <= budget
        sizes = [len(t.tokens) for b in layout if b.weight for t in b.pack.trees]
        assert sizes == sorted(sizes, reverse=True), "running out of memory happens at once"


def test_a_process_without_examples_repeats_anothers_first_pack_without_weight():
    examples = examples_of([((1, 2, 3), ((4, 5), (6,))), ((1,), ((2,), (3,)))])
    shares = [make_microbatches(examples, [1, 0], token_budget=99, process=p, processes=3) for p in range(3)]
    assert [[(b.members, b.weight) for b in share] for share in shares] == [[((1,), 1.0)], [((0,), 1.0)], [((1,), 0.0)]]


def test_one_process_gets_no_empty_passes():
    examples = examples_of([((1,) * n, ((2,), (3,))) for n in range(1, 9)])
    layout = make_microbatches(examples, range(8), token_budget=12)
    assert all(b.weight == 1.0 for b in layout)
    assert make_microbatches(examples, range(8), token_budget=12) == layout


def test_equal_examples_keep_their_places():
    """The same row twice: both count."""
    examples = examples_of([((1, 2), ((3,), (4,)))] * 2)
    (batch,) = make_microbatches(examples, [0, 1], token_budget=99)
    assert sorted(batch.members) == [0, 1]


# -- documents ------------------------------------------------------------------------

texts = st.text("abc é\n", min_size=1, max_size=80)


@given(texts, st.integers(2, 20))
def test_pieces_of_a_document_make_it_up(text, length):
    pieces = encode_documents(encoder_of(), [Document("d", text)], length)
    ids = ids_of(text)
    result = [piece.prompt + piece.answers[0] for piece in pieces]
    assert all(2 <= len(p) <= length for p in result)
    # a lone last token without BOS before it has nothing to be predicted from
    assert sum(result, ()) == (ids[:-1] if len(ids) % length == 1 else ids)
    assert [p.id for p in pieces] == [f"d#{k}" for k in range(len(pieces))]


@given(texts, st.integers(2, 20))
def test_with_bos_every_token_of_a_document_is_predicted_once(text, length):
    pieces = encode_documents(PromptEncoder(WithBos(), None), [Document("d", text)], length)
    assert {p.prompt for p in pieces} == {(256,)}
    assert sum((p.answers[0] for p in pieces), ()) == ids_of(text)
    assert all(p.longest <= length for p in pieces)


def test_documents_do_not_run_into_each_other():
    pieces = encode_documents(encoder_of(), [Document("a", "xxxx"), Document("b", "yyyyy")], 100)
    assert [(p.id, p.prompt + p.answers[0]) for p in pieces] == [("a#0", ids_of("xxxx")), ("b#0", ids_of("yyyyy"))]


# -- answers and their endings ----------------------------------------------------------


@pytest.mark.parametrize("question", ["Tea?", "s", "Tea. Tea.", "</s>"])
def test_the_ending_is_the_templates_end_of_turn(question):
    encoder = encoder_of(CHATML)
    assert encoder.encode_ending(chat(question)) == (EOS,)


def test_what_a_template_writes_before_its_end_of_turn_belongs_to_the_ending():
    encoder = encoder_of("{% for m in messages %}{{ m.role }}: {{ m.content }} --</s>\n{% endfor %}")
    assert encoder.encode_ending(chat("q")) == (*ids_of(" --"), EOS)


@pytest.mark.parametrize(
    "template",
    [None, TEMPLATE, "{% if messages | length > 1 %}{{ raise_exception('no') }}{% endif %}{{ messages[0].content }}"],
)
def test_without_an_end_of_turn_the_text_ends(template):
    assert encoder_of(template).encode_ending(chat("q")) == (EOS,)


def other_end(template: str) -> PromptEncoder:
    """A tokenizer whose turns end otherwise than its texts, as Gemma's."""
    encoder = encoder_of(template)
    fast = byte_tokenizer.__wrapped__(template)
    fast.add_special_tokens({"additional_special_tokens": ["<end_of_turn>"]})
    assert fast.convert_tokens_to_ids("<end_of_turn>") not in {EOS, None}
    return PromptEncoder(fast, encoder.context_length)


GEMMA = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
)


def test_a_turn_may_end_otherwise_than_a_text():
    encoder = other_end(GEMMA)
    end = encoder.tokenizer.convert_tokens_to_ids("<end_of_turn>")
    assert encoder.encode_ending(chat("q")) == (end,)


def test_a_template_that_refuses_a_system_turn_still_ends_its_turn():
    encoder = other_end(GEMMA)
    end = encoder.tokenizer.convert_tokens_to_ids("<end_of_turn>")
    assert encoder.encode_ending(chat("q", system="Be brief.")) == (end,)


def test_pairs_are_encoded_chosen_first_and_closed():
    encoder = encoder_of(CHATML)
    (result,) = encode_pairs(encoder, [PreferencePair("p:1", chat("q"), "good", "not good")])
    assert result.id == "p:1"
    assert result.prompt == encoder.encode_prompt(chat("q"))
    assert result.answers == ((*ids_of("good"), EOS), (*ids_of("not good"), EOS))
    assert result.counts == (5, 9)
    assert result.longest == len(result.prompt) + 9


def test_examples_are_encoded_with_their_whole_conversation():
    encoder = encoder_of(CHATML)
    messages = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"))
    (result,) = encode_examples(encoder, [Example("e:1", messages, "d")])
    assert result.prompt == encoder.encode_prompt(messages)
    assert result.answers == ((*ids_of("d"), EOS),)


def test_without_a_template_the_space_belongs_to_the_answer():
    (result,) = encode_examples(encoder_of(None), [Example("e:1", chat("q"), "yes")])
    assert result.prompt == ids_of("Question: q\nAnswer:")
    assert result.answers == ((*ids_of(" yes"), EOS),)


def test_a_pair_of_equal_answers_is_an_error_that_names_it():
    with pytest.raises(InputError, match=r"rows\.jsonl:7: chosen and rejected are the same") as caught:
        encode_pairs(encoder_of(), [PreferencePair("rows.jsonl:7", chat("q"), "same", "same")])
    assert "remove the pair" in caught.value.hint


def test_an_empty_answer_is_an_error():
    with pytest.raises(InputError, match="empty"):
        encode_pairs(encoder_of(), [PreferencePair("p", chat("q"), "good", "  ")])


# -- what fits ------------------------------------------------------------------------


@given(batches, st.one_of(st.none(), st.integers(2, 25)))
def test_what_does_not_fit_is_named_and_the_rest_kept_in_order(parts, limit):
    examples = examples_of(parts)
    fits = [limit is None or len(e.prompt) + max(map(len, e.answers)) <= limit for e in examples]
    if not any(fits):
        with pytest.raises(InputError, match=f"all {len(parts)} examples are longer than {limit} tokens"):
            keep_fitting(examples, limit)
        return
    kept, too_long = keep_fitting(examples, limit)
    assert kept == [e for e, ok in zip(examples, fits, strict=True) if ok]
    assert too_long == [e.id for e, ok in zip(examples, fits, strict=True) if not ok]


def test_nothing_to_train_on_is_an_error():
    with pytest.raises(InputError, match="there are no examples"):
        keep_fitting([], 10)


@pytest.mark.parametrize(
    ("count", "settings", "epochs", "steps"),
    [
        (54, {}, 2, 28),  # 14 steps an epoch: twice, for 24 at least
        (6, {}, 12, 24),
        (96, {}, 1, 24),
        (400, {}, 1, 100),
        (54, {"max_steps": 60}, 5, 60),  # until so many are done
        (54, {"max_steps": 5}, 1, 5),
        (54, {"epochs": 1}, 1, 14),
        (54, {"epochs": 1, "max_steps": 60}, 1, 14),
    ],
)
def test_without_epochs_examples_are_seen_once_and_again_until_enough_steps_are_done(count, settings, epochs, steps):
    training = Training(**settings)
    assert training.epochs_of(count) == epochs
    assert len(step_order(count, training)) == steps
