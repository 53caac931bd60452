"""Chat templates and patterns of strangers come to an end, with a clear error."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
from strangers import adapter
from tiny import TEMPLATE, byte_tokenizer

from conviction.core.protocols import chat
from conviction.errors import ConvictionError, InputError, ModelError
from conviction.models import load_model, sandbox
from conviction.models.prompts import PromptEncoder

ENDLESS = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a power": "{{ 10 ** (10 ** 9) }}",
    "macros that call each other": "{% macro a(n) %}{{ a(n-1) }}{{ a(n-1) if n > 1 }}{% endmacro %}{{ a(60) }}",
    "the third turn": "{% if messages | length > 2 %}{{ 7 ** (7 ** 11) }}{% endif %}" + TEMPLATE,
}
LARGE = {
    "a text times a number": "{{ 'a' * (2 * 10 ** 9) }}",
    "a text that doubles": "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}"
    "{% endfor %}",
    "a width": "{{ '%9999999999d' | format(1) }}",
    "more than may be written": "{% for i in range(2000) %}{{ 'a' * 10000 }}{% endfor %}",
}


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    """A tenth of the time, and a process with these settings for this test alone."""
    sandbox._WORKER.close()
    monkeypatch.setattr(sandbox, "SECONDS", 0.1)
    yield
    sandbox._WORKER.close()


def encoder(template: str) -> PromptEncoder:
    own = byte_tokenizer.__wrapped__(template)
    own.name_or_path = "stranger"
    return PromptEncoder(own, None)


@pytest.mark.parametrize("kind", ENDLESS)
def test_a_template_without_end_is_ended(kind):
    begun = time.monotonic()
    messages = (*chat("a"), *chat("b"), *chat("c"))
    with pytest.raises(ConvictionError, match=r"of stranger does not come to an end|nested too deep") as caught:
        encoder(ENDLESS[kind]).render(messages)
    assert caught.value.hint
    assert time.monotonic() - begun < 5
    assert encoder(TEMPLATE).render(chat("q")) == "<|user|>q\n<|assistant|>\n"


@pytest.mark.parametrize("kind", LARGE)
def test_a_template_that_takes_too_much_memory_is_ended(kind):
    at_once = kind == "a text times a number"  # the others may take too much time before
    with pytest.raises(ConvictionError, match="takes more than 1024 MB of memory" if at_once else None) as caught:
        encoder(LARGE[kind]).render(chat("a"))
    assert caught.value.hint
    assert encoder(TEMPLATE).render(chat("q")) == "<|user|>q\n<|assistant|>\n"


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[9].content }}",
        "{{ 1 / 0 }}",
        "{{ messages + 1 }}",
        "{{ messages[0]['content'] | float | foo }}",
        "{% for %}",
        "{{ raise_exception('no') }}",
        "{{ ''.__class__.__mro__ }}",
        "{% set n = namespace(_x=1) %}",
        "{# nothing #}",
        " ",
        "{{ '[' * 5000 }}" + "[" * 5000 + "]" * 5000,
        "{% for m in messages %}{{ m.content }}{{ 1 / (3 - messages | length) }}{% endfor %}",
    ],
)
def test_a_template_that_fails_or_renders_nothing_is_an_error_of_the_tree(template):
    with pytest.raises(InputError, match="chat template") as caught:
        encoder(template).encode((*chat("a"), *chat("b"), *chat("c")), ("yes",))
    assert caught.value.hint


def test_a_template_that_fails_at_an_answer_is_asked_for_what_comes_before_it():
    refuses = "{% for m in messages if m.role == 'assistant' %}{{ raise_exception('no answers') }}{% endfor %}"
    own, plain = encoder(refuses + TEMPLATE), encoder(TEMPLATE)
    assert own.encode(chat("a"), ("yes",)) == plain.encode(chat("a"), ("yes",))


def test_a_model_whose_template_has_no_end_is_refused_when_it_is_loaded(tiny_folder, tmp_path):
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "stranger"))
    (folder / "chat_template.jinja").write_text(ENDLESS["a power"], encoding="utf-8")
    with pytest.raises(ModelError, match=r"stranger does not come to an end: it takes more than 0\.1 seconds"):
        load_model(str(folder))


def test_a_process_that_was_killed_is_started_again():
    own = encoder(TEMPLATE)
    first = own.render(chat("q"))
    sandbox._WORKER._process.kill()
    assert own.render(chat("q")) == first


# -- patterns of adapters ----------------------------------------------------------------------------


BACKTRACKS = "(([a-z_.0-9]+)+)+!"


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": BACKTRACKS},
        {"exclude_modules": BACKTRACKS},
        {"modules_to_save": [BACKTRACKS]},
        {"rank_pattern": {BACKTRACKS: 2}},
        {"alpha_pattern": {BACKTRACKS: 2.0}},
        {"layers_to_transform": [0], "layers_pattern": [BACKTRACKS]},
    ],
)
@pytest.mark.long
def test_a_pattern_that_backtracks_for_ever_is_ended(settings, tiny_folder, tmp_path):
    with pytest.raises(ModelError, match=r"config\.json: matching its patterns does not come to an end") as caught:
        load_model(str(adapter(tmp_path / "a", str(tiny_folder), **settings)))
    assert "target_modules" in caught.value.hint


def test_a_pattern_that_is_none_is_named(tiny_folder, tmp_path):
    with pytest.raises(ModelError, match=r"adapter_config\.json: a pattern is none"):
        load_model(str(adapter(tmp_path / "a", str(tiny_folder), target_modules="(q_proj")))


def test_patterns_that_end_are_followed(tiny_folder, tmp_path):
    settings = {"target_modules": r"^(?!.*vision).*\.(q_proj|foo)$", "rank_pattern": {r".*\.0\..*": 2}}
    assert load_model(str(adapter(tmp_path / "a", str(tiny_folder), **settings))).check.packed
