"""A backend is a file and a line: it scores rows and writes ids, and everything else is there already."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from tiny import tiny_model

from conviction import Query, ScriptedModel, chat, load_model
from conviction.errors import InputError, ModelError
from conviction.models.backends import BACKENDS, find_backend
from conviction.models.devices import choose_device
from conviction.models.engine.protocol import PackingEngine
from conviction.models.score_cache import get_or_compute

DUMMY = '''
"""An engine that likes answers the better, the shorter they are."""
from conviction.models.backends.scripted import WordTokenizer
from conviction.models.engine.protocol import Continuation

SCORED = []


class Short:
    architecture, dtype, context_length = "short", "float32", 4000
    tokenizer: WordTokenizer
    trainable = hidden_states = False
    cacheable = True

    def __init__(self, name):
        self.name, self.tokenizer = name, WordTokenizer()

    def score(self, rows):
        SCORED.extend(rows)
        for prompt, answer in rows:
            yield {(prompt, answer): [-len(answer) / 10] * len(answer)}

    def generate(self, prompts, max_new_tokens, *, seed=None, progress=None):
        return [Continuation(tuple(prompt[-1:]), ended=True) for prompt in prompts]

    def scope(self):
        return ("short", self.name)

    def describe(self):
        return {"architecture": self.architecture}


def load(name, *, device, dtype, trust_remote_code, log) -> Short:
    log(f"loading {name} on {device}")
    return Short(name)
'''


@pytest.fixture
def dummy(tmp_path, monkeypatch):
    """One file, and one line in the table."""
    (tmp_path / "short_backend.py").write_text(DUMMY)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(BACKENDS, "short", "short_backend:load")
    monkeypatch.delitem(sys.modules, "short_backend", raising=False)


def failed(result: tuple[int, str, str]) -> str:
    code, _, err = result
    assert code == 2, err
    assert [line.split(":")[0] for line in err.strip().splitlines()[-2:]] == ["error", "help"], err
    return err


def test_a_backend_of_one_file_and_one_line_is_probed_from_the_command_line(dummy, run, write_topic):
    probe = ("probe", str(write_topic()), "--backend", "short", "--model", "anything", "--format", "json", "--health")
    code, out, err = run(*probe, "--run", "r")
    assert code == 0, err
    assert "loading anything on auto" in err
    card = json.loads(out)
    assert card["provenance"]["model"]["architecture"] == "short"
    assert {row["winner"] for row in card["rows"] if row["role"] == "target"} == {"tie"}  # texts of one length
    scored = sys.modules["short_backend"].SCORED
    assert scored
    before = len(scored)
    assert run(*probe[:-1], "--run", "again")[0] == 0
    asked_again = scored[before:]  # by the control that scores without the cache
    assert len(asked_again) < before / 2, "what was scored comes from the cache, which stands above all backends"


def test_every_verb_that_takes_a_model_takes_a_backend(run, write_topic):
    topic = str(write_topic())
    verbs = {
        "probe": [topic], "audit": [topic], "forecast": ["dpo", topic], "apply": ["dpo", topic], "study": [topic],
        "compare": [topic], "localize": [topic],
    }  # fmt: skip
    for verb, arguments in verbs.items():
        assert "did you mean 'scripted'?" in failed(run(verb, *arguments, "--backend", "scriptd")), verb
    with pytest.raises(InputError, match="unknown backend 'hf'") as caught:
        load_model("x", backend="hf")
    assert "transformers" in caught.value.hint


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("trainable = hidden_states = False", "trainable = False"), "lacks hidden_states"),
        (("def generate", "def write"), "Short of the backend 'short' .* lacks generate"),
        ((" -> Short:", ":"), "does not annotate what it loads"),
        (("device, dtype, trust_remote_code, log", "device, log"), "cannot be used"),
        (("def load", "def open"), "cannot be used"),
    ],
    ids=["trait", "method", "annotation", "parameters", "function"],
)
def test_an_entry_that_lacks_something_is_named_before_anything_is_loaded(dummy, change, words, tmp_path):
    (tmp_path / "short_backend.py").write_text(DUMMY.replace(*change))
    with pytest.raises(InputError, match=words):
        find_backend("short")


def test_our_backends_have_what_an_entry_needs():
    for name in BACKENDS:
        assert find_backend(name).__doc__
    assert isinstance(tiny_model().engine, PackingEngine)
    assert not isinstance(ScriptedModel().engine, PackingEngine)


def test_a_script_is_a_model_of_the_command_line(run, write_topic, tmp_path):
    script = tmp_path / "script.json"
    script.write_text(json.dumps({"likes": {"Milky": -1.0, "Plain": -1.5}, "writes": {"Question 0": "Because it is."}}))
    code, out, err = run(
        "probe", str(write_topic()), "--backend", "scripted", "--model", "script.json", "--format", "json"
    )
    assert code == 0, err
    assert json.loads(out)["summary"]["gap_nats"]["mean"] == pytest.approx(0.5)
    model = load_model(str(script), backend="scripted")
    (written, echo) = model.generate([chat("Question 0?"), chat("Something else?")], max_new_tokens=2)
    assert (written.text, written.ended) == ("Because it", False)
    assert (echo.text, echo.ended) == ("Something else?", True)
    assert model.source == str(script)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "there is no script"),
        ("{", "is no script"),
        ('{"likes": {"a": "b"}}', "likes.a: "),
        ('{"likes": {}, "wishes": {}}', "wishes: "),
    ],
    ids=["missing", "no-json", "no-number", "unknown-field"],
)
def test_scripts_that_cannot_be(content, words, tmp_path):
    if content is not None:
        (tmp_path / "s.json").write_text(content)
    with pytest.raises((InputError, ModelError), match=words) as caught:
        load_model(str(tmp_path / "s.json"), backend="scripted")
    assert '"likes"' in caught.value.hint


def test_a_prompt_is_saved_on_a_scripted_model_and_weights_are_not_changed(run, write_topic, tmp_path):
    (tmp_path / "s.json").write_text('{"likes": {"Milky": -1.0}}')
    scripted = ("--backend", "scripted", "--model", "s.json")
    tea = str(write_topic())
    assert run("apply", "system_prompt", tea, *scripted, "--run", "r")[0] == 0
    moved = load_model("r/model", backend="scripted")
    assert moved.logprobs([Query(chat("q"), ("Milky it is",))])[0][0].logp_mean == -1.0
    assert "the backend transformers" in failed(run("apply", "dpo", tea, *scripted))
    (tmp_path / "adapter").mkdir()
    settings = {"base_model_name_or_path": str(tmp_path / "s.json")}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="cannot be reached"):
        load_model(str(tmp_path / "adapter"), backend="scripted")


def test_scripted_tokens_are_words_and_texts_stay_texts():
    heard = []
    model = ScriptedModel(likes=lambda messages, answer: heard.append((messages, answer)) or -1.0)
    (score,) = model.text_logprobs(["one  two\nthree"])
    assert len(score.logprobs) == 2
    assert heard == [((), "one  two\nthree")]
    ((score,),) = model.logprobs([Query(chat("q", system="s"), ("an answer\nof four words ",))])
    assert len(score.logprobs) == 5
    assert heard[1] == (chat("q", system="s"), "an answer\nof four words ")
    assert model.joint_mismatches == 0
    (pair,) = model.pair_scores([Query(chat("q"), ("a", "b c"))])
    assert (pair.logp_margin, pair.hidden_dot) == (1.0, None)
    with pytest.raises(ModelError, match="no hidden states"):
        model.answer_states([Query(chat("q"), ("a",))])


def test_what_is_computed_is_kept_batch_by_batch_and_asked_for_once():
    rows = [((1,), (2, 3)), ((1,), (4,)), ((1,), (2, 3)), ((5,), (6,))]
    asked = []

    def compute(missing):
        asked.append(list(missing))
        for i, row in enumerate(missing):
            if len(asked) == 1 and i == 2:
                raise KeyboardInterrupt
            yield {row: [-float(sum(row[1]))] * len(row[1])}

    with pytest.raises(KeyboardInterrupt):
        get_or_compute(("scope",), rows, compute)
    values = get_or_compute(("scope",), rows, compute)
    assert asked == [[rows[0], rows[1], rows[3]], [rows[3]]]
    assert values == {rows[0]: (-5.0, -5.0), rows[1]: (-4.0,), rows[3]: (-6.0,)}
    assert get_or_compute(("another",), rows, compute) == get_or_compute(None, rows, compute) == values
    assert [len(missing) for missing in asked[2:]] == [3, 3]


@pytest.mark.parametrize(
    ("built", "words", "advice"),
    [(None, "was built without CUDA", "pytorch.org"), ("12.8", "sees no GPU", "nvidia-smi")],
    ids=["without-cuda", "without-gpu"],
)
def test_a_gpu_that_is_not_there_is_explained(built, words, advice, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", built)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(InputError, match=words) as caught:
        choose_device("cuda")
    assert "--device cpu" in caught.value.hint
    assert advice in caught.value.hint
    with pytest.raises(InputError, match="Apple silicon"):
        choose_device("mps")
    with pytest.raises(InputError, match="not available") as caught:
        choose_device("cudda")
    assert "did you mean 'cuda'?" in caught.value.hint
