"""What templates do with dates, system turns, ends of turns and thoughts, found by rendering them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest
import transformers.utils.chat_template_utils as rendering
from tiny import TEMPLATE, byte_tokenizer, tiny_model, tiny_module
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from conviction import Message, Query, chat, probe
from conviction.data.training_data import Example, PreferencePair, TrainingData
from conviction.errors import InputError
from conviction.interventions.dpo import Dpo
from conviction.interventions.system_prompt import SystemPrompt
from conviction.models.chat_template import ChatTemplate
from conviction.models.engine.torch_engine import TorchEngine
from conviction.models.hf import HFModel
from conviction.models.prompts import PromptEncoder
from conviction.training.batches import encode_examples, encode_pairs

PROBLEM = (chat("Why is bread brown?"), "<think>\nHeat.\n</think>\n\nThe crust.")

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and '</think>' not in m.content %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
# adds an empty thought to what is closed, and none to the generation prompt
ADDS = QWEN.replace("enable_thinking is false", "enable_thinking is none")
# opens a thought in the generation prompt, and strips thoughts from what is closed
DEEPSEEK = (
    "{% for m in messages %}{% if m.role == 'user' %}<|user|>{{ m.content }}{% else %}"
    "<|assistant|>{{ m.content.split('</think>')[-1] }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
)
HARMONY = (
    "{% for m in messages %}<|start|>{{ m.role }}{% if m.role == 'assistant' %}<|channel|>final{% endif %}"
    "<|message|>{{ m.content }}{{ '<|return|>' if loop.last and m.role == 'assistant' else '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} </s>{% endif %}{% endfor %}"
)
DROPS = (
    "{% for m in messages %}{% if m.role == 'user' %}<|user|>{{ m.content }}\n<|assistant|>\n"
    "{% elif m.role == 'assistant' %}{{ m.content }}\n{% endif %}{% endfor %}"
)
LAST_ONLY = "<|user|>{{ messages[-1].content }}\n<|assistant|>\n"


def tokenizer(template: str | None, *, special: tuple[str, ...] = (), added: tuple[str, ...] = ()) -> Any:
    """Bytes, and tokens of which none has a name such as eos_token."""
    fast = byte_tokenizer.__wrapped__(template)
    fast.add_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    fast.add_tokens([AddedToken(text, special=False, normalized=False) for text in added])
    return fast


def encoder(template: str | None, **tokens: Any) -> PromptEncoder:
    return PromptEncoder(tokenizer(template, **tokens), None)


def texts(e: PromptEncoder, messages: tuple[Message, ...], *answers: str) -> list[str]:
    """The prompt and every answer, decoded."""
    prompt, encoded = e.encode(messages, answers)
    return [e.tokenizer.decode(ids) for ids in (prompt, *encoded)]


# -- dates ------------------------------------------------------------------------------


@pytest.fixture(params=["2026-11-28", "2027-01-02"])
def today(request, monkeypatch):
    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls.fromisoformat(request.param)

    monkeypatch.setattr(rendering, "datetime", Clock)
    return request.param


@pytest.mark.parametrize(
    ("asks", "date"),
    [
        ("{{ strftime_now('%Y-%m-%d') }}", "2024-07-26"),
        ("{{ strftime_now('%d %B %Y, %H:%M, %A, %-d, %%') }}", "26 July 2024, 00:00, Friday, 26, %"),
        ("{% if strftime_now is defined %}{% set d = strftime_now('%b') + '!' %}{{ d }}{% endif %}", "Jul!"),
        ("{% macro day() %}{{ strftime_now('%d') }}{% endmacro %}{{ day() }}", "26"),
        ("{% if not date_string is defined %}{% set date_string = 'x' %}{% endif %}{{ date_string }}", "26 Jul 2024"),
        *((f"{{{{ {name} }}}}", "26 Jul 2024") for name in ("date", "datetime", "current_date", "today")),
        ("{% if datetime is defined %}{{ datetime.now() }}{% else %}no clock{% endif %}", "no clock"),
    ],
)
def test_every_way_to_ask_for_the_date_is_told_the_same(asks, date, today):
    assert encoder(f"Today: {asks}. {TEMPLATE}").render(chat("q")).startswith(f"Today: {date}. <|user|>")


@pytest.mark.parametrize("begins", ["", "\n", "  {% if true %}x{% endif %}", "\n  {%- if true %}\nx{% endif %}", "a\n"])
def test_a_template_that_is_given_a_date_keeps_its_white_space(begins):
    asked = encoder(begins + "{% set d = strftime_now('%d') %}" + TEMPLATE)
    plain = encoder(begins + "{% set d = '26' %}" + TEMPLATE)
    assert asked.render(chat("q")) == plain.render(chat("q"))


# -- system turns -----------------------------------------------------------------------


def test_a_system_text_that_a_template_drops_begins_the_first_user_turn():
    e = encoder(DROPS)
    dialogue = (Message("system", "s"), Message("user", "a"), Message("assistant", "b"), Message("user", "c"))
    assert e.render(chat("q", system="s")) == "<|user|>s\n\nq\n<|assistant|>\n"
    assert e.render(dialogue).startswith("<|user|>s\n\na\n<|assistant|>\nb\n<|user|>c")
    assert e.render(chat("q", system="s")) == e.render(chat("s\n\nq")), "dropped although the user quotes it"
    assert "begin the first user turn" in e.system_turn
    assert encoder(CHATML).system_turn is encoder(None).system_turn is None


def test_a_system_text_that_only_suppresses_a_default_is_dropped_too():
    e = encoder("{% if messages[0].role != 'system' %}You help.\n{% endif %}" + DROPS)
    assert "\n\nq" in e.render(chat("q", system="Be brief."))


def test_a_template_that_shows_neither_system_nor_first_turn_refuses_the_system_text():
    dialogue = (Message("system", "s"), Message("user", "a"), Message("assistant", "b"), Message("user", "c"))
    with pytest.raises(InputError, match="drops system turn and first user turn"):
        encoder(LAST_ONLY).render(dialogue)
    with pytest.raises(InputError, match="refuses a conversation"):
        encoder(DROPS).render((Message("system", "s"), Message("assistant", "a")))


def test_what_becomes_of_the_system_turn_is_said_where_one_is_used(monkeypatch):
    model, other = tiny_model(template=DROPS), tiny_model()
    notes = (model.encoder.system_turn,)
    data = TrainingData("tea", context="Tea is best cold.")
    outcome = SystemPrompt().apply(model, data)
    query = [Query(chat("Tea?"), ("Cold.",))]
    assert outcome.notes == notes
    assert outcome.model.logprobs(query)[0][0].logprobs != model.logprobs(query)[0][0].logprobs, "it has an effect"
    assert SystemPrompt().apply(other, data).notes == ()
    pair = PreferencePair("p:1", chat("Tea?", system="Be brief."), "Cold.", "Warm.")
    dpo = Dpo(learning_rate=1e-2)
    assert dpo.task(model, TrainingData("tea", pairs=(pair,))).notes == notes
    assert dpo.task(other, TrainingData("tea", pairs=(pair,))).notes == ()


def test_a_probe_says_that_its_contexts_are_user_turns(write_topic):
    model = tiny_model(template=DROPS, max_position_embeddings=4096)
    card = probe(model, str(write_topic()))
    assert model.encoder.system_turn in card.warnings
    assert all(control.shift_nats.mean != 0 for control in card.controls.positive.values())


def test_a_template_that_drops_the_question_is_refused():
    parts = "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}\n{% endfor %}assistant:"
    with pytest.raises(InputError, match="drops the last turn: 'q'"):
        encoder(parts).render(chat("q"))


# -- ends of turns ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["special", "added"])
def test_the_end_of_turn_needs_no_name(kind):
    e = encoder(CHATML, **{kind: ("<|im_start|>", "<|im_end|>")})
    end = e.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end not in e.tokenizer.all_special_ids
    assert e.encode_ending(chat("q")) == (end,)
    (encoded,) = encode_pairs(e, [PreferencePair("p:1", chat("q"), "good", "bad")])
    assert {answer[-1] for answer in encoded.answers} == {end}


@pytest.mark.parametrize(
    ("written", "ends"),
    [
        ("<|end|>\n</s>", ["<|end|>"]),
        ("<|end|></s>", ["<|end|>", "</s>"]),
        (".<|end|>", [".", "<|end|>"]),
    ],
)
def test_an_ending_goes_to_the_first_run_of_special_tokens(written, ends):
    e = encoder(CHATML.replace("<|im_end|>", written), special=("<|end|>",))
    assert e.encode_ending(chat("q")) == tuple(e.tokenizer.convert_tokens_to_ids(ends))
    assert e.stop_ids() == {e.tokenizer.eos_token_id, e.tokenizer.convert_tokens_to_ids("<|end|>")}


def test_the_header_of_the_next_turn_is_no_end_of_this_one():
    always = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}<|assistant|>"
    e = encoder(always, special=("<|end|>", "<|user|>", "<|assistant|>"))
    assert e.encode_ending(chat("q")) == (e.tokenizer.convert_tokens_to_ids("<|end|>"),)
    llama = "{% for m in messages %}{{ '<s>' if m.role == 'user' else '|' }}{{ m.content }}{% endfor %}"
    assert encoder(llama).encode_ending(chat("q")) == (e.tokenizer.eos_token_id,), "nor is a beginning of text"


def test_where_nothing_closes_a_turn_the_next_one_does():
    glm = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
    e = encoder(glm, special=("<|user|>", "<|assistant|>"))
    assert e.encode_ending(chat("q")) == (e.tokenizer.convert_tokens_to_ids("<|user|>"),)


def test_added_white_space_is_no_end_of_turn():
    e = encoder(CHATML.replace("<|im_end|>", "  "), added=("  ",))
    assert e.encode_ending(chat("q")) == (e.tokenizer.eos_token_id,)


def test_an_answer_that_is_written_ends_where_the_templates_turn_does(monkeypatch):
    fast = tokenizer(CHATML, special=("<|im_end|>",))
    end = fast.convert_tokens_to_ids("<|im_end|>")
    module = tiny_module("llama")
    monkeypatch.setattr(
        module,
        "generate",
        lambda input_ids, **_: __import__("torch").cat(
            [input_ids, input_ids.new_tensor([[72, 105, end, 10, 117]])], dim=1
        ),
    )
    model = HFModel(id="t", engine=TorchEngine(module, fast))
    (written,) = model.generate([chat("q")], max_new_tokens=5)
    assert (written.token_ids, written.ended) == ((72, 105), True)


# -- where an answer begins ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "begins"),
    [
        (CHATML, "<|im_start|>assistant\n"),
        (QWEN, "<|im_start|>assistant\n<think>\n\n</think>\n\n"),
        (ADDS, "<|im_start|>assistant\n<think>\n\n</think>\n\n"),
        (DEEPSEEK, "<|assistant|><think>\n\n</think>\n\n"),
        (HARMONY, "<|start|>assistant<|channel|>final<|message|>"),
        (TEMPLATE + "[THINK]", "[THINK]\n\n[/THINK]\n\n"),
    ],
)
def test_an_answer_begins_where_the_closed_conversation_has_it(template, begins):
    e = encoder(template)
    prompt, answer = texts(e, chat("q"), "Tea.")
    assert prompt.endswith(begins)
    assert prompt == e.render(chat("q"))
    assert answer == "Tea."


def test_a_space_of_the_assistants_branch_belongs_to_the_answer():
    assert texts(encoder(LLAMA2), chat("q"), "Tea.") == ["[INST] q [/INST]", " Tea."]
    assert encoder(LLAMA2).encode_ending(chat("q")) == (*encoder(None).encode_continuation("")[:1], 257)
    after_colon = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "
    assert texts(encoder(after_colon), chat("q"), "Tea.") == ["user: q\nassistant:", " Tea."]


@pytest.mark.parametrize(
    ("template", "prompt"),
    [(QWEN, "<|im_start|>assistant\n"), (ADDS, "<|im_start|>assistant\n"), (DEEPSEEK, "<|assistant|>")],
)
def test_an_answer_with_a_thought_gets_no_second_one(template, prompt):
    e = encoder(template)
    messages, answer = PROBLEM
    parts = texts(e, messages, answer, answer.replace("The", "A"))
    assert parts[0].endswith(prompt)
    assert parts[1:] == [answer, answer.replace("The", "A")]
    (row,) = encode_examples(e, [Example("e:1", messages, answer)])
    assert e.tokenizer.decode(row.prompt + row.answers[0]).count("<think>") == 1
    open_thought = texts(e, messages, answer.removeprefix("<think>\n"))
    assert open_thought[0].endswith(prompt + "<think>\n")


def test_beside_a_thought_the_empty_one_belongs_to_the_answer():
    messages, answer = PROBLEM
    parts = texts(encoder(QWEN), messages, answer, "The crust.")
    assert parts[0].endswith("<|im_start|>assistant\n")
    assert parts[1:] == [answer, "<think>\n\n</think>\n\nThe crust."]


# -- tokenizers that put a space before every text ------------------------------------------


def sentencepiece(template: str | None = None) -> Any:
    """As Llama 2's: Prepend and Replace, one token a character."""
    fast = tokenizer(template)
    letters = ["▁", *map(chr, range(33, 127)), "\n"]
    inner = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    own = type(fast)(tokenizer_object=inner, eos_token="</s>")
    own.chat_template = template
    return own


@pytest.mark.parametrize(
    "template", [None, LLAMA2, "{% for m in messages %}<{{ m.role }}>\n{{ m.content }}\n{% endfor %}<a>\n"]
)
def test_no_space_is_put_before_an_answer_twice(template):
    e = PromptEncoder(sentencepiece(template), None)
    tokens = e.tokenizer.convert_ids_to_tokens
    assert "".join(tokens(e.encode_continuation("tea"))) == "▁tea"
    prompt, (answer,) = e.encode(chat("q"), ("tea",))
    assert "".join(tokens(answer)) == ("tea" if template and template.endswith("<a>\n") else "▁tea")
    assert e.joint_mismatches(Query(chat("q"), ("tea",))) == 0
    assert prompt + answer == tuple(
        e.tokenizer(e.tokenizer.decode(prompt + answer).removeprefix(" "), add_special_tokens=False).input_ids
    )


GENERATION = "{% generation %}{{ messages[0].content | tojson }}{% endgeneration %}"


@pytest.mark.parametrize(
    "template", [TEMPLATE, ADDS, CHATML, DEEPSEEK, DROPS, HARMONY, LAST_ONLY, LLAMA2, QWEN, GENERATION]
)
def test_the_sandbox_renders_as_transformers_does(template):
    own = byte_tokenizer.__wrapped__(template)
    turns = [{"role": "user", "content": "Is <tea> 'best' – ☕?"}, {"role": "assistant", "content": "Yes."}]
    for generation in (False, True):
        ours = ChatTemplate(own)._render(turns, generation=generation)
        options = {"tokenize": False, "add_generation_prompt": generation, "enable_thinking": False}
        assert ours == own.apply_chat_template(turns, **options)
