"""Chat templates: one rendering for all, with the traps of the field."""

from __future__ import annotations

import pytest
from tiny import TEMPLATE, byte_tokenizer
from tokenizers import normalizers

from conviction import Message, Query, chat
from conviction.errors import ModelError
from conviction.models.prompts import PromptEncoder

NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "[{{ m.role }}]{{ m.content }}{% endfor %}[model]"
)


def encoder(template: str | None = TEMPLATE) -> PromptEncoder:
    return PromptEncoder(byte_tokenizer(template), None)


def test_ids_of_prompt_and_answer_are_concatenated():
    e = encoder()
    prompt, (answer,) = e.encode(chat("q"), ("an answer",))
    text = e.tokenizer.decode(prompt + answer)
    assert text == "<|user|>q\n<|assistant|>\nan answer"
    assert e.joint_mismatches(Query(chat("q"), ("an answer",))) == 0


def test_a_template_without_system_role_gets_it_in_the_user_turn():
    assert encoder(NO_SYSTEM).render(chat("q", system="s")) == "[user]s\n\nq[model]"


def test_a_thinking_template_gets_an_empty_thought():
    assert encoder(TEMPLATE + "<think>\n").render(chat("q")).endswith("<think>\n\n</think>\n\n")
    qwen = TEMPLATE + "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    assert encoder(qwen).render(chat("q")).endswith("<think>\n\n</think>\n\n")


def test_dates_in_templates_are_pinned():
    assert "26 Jul 2024" in encoder("Today is {{ date_string }}. " + TEMPLATE).render(chat("q"))


def test_without_a_template_the_space_belongs_to_the_answer():
    e = encoder(None)
    assert e.render((Message("system", "s"), Message("user", "q"))) == "s\n\nQuestion: q\nAnswer:"
    assert e.tokenizer.decode(e.encode(chat("q"), ("yes",))[1][0]) == " yes"


def test_a_tokenizer_without_tokens_for_an_answer_is_refused():
    """As a damaged tokenizer.json gives it."""
    tokenizer = byte_tokenizer.__wrapped__()
    encoder = PromptEncoder(tokenizer, None)
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("yes", "")
    with pytest.raises(ModelError, match="no tokens for 'Tea"):
        encoder.encode(chat("Tea?"), ("yes",))
