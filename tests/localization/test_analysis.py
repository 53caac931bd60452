"""Where an answer sits: tracing against whole runs, integrated gradients, truth directions, what is written."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tiny import tiny_model
from typer.testing import CliRunner

from conviction import load_topic
from conviction.data.facts import Fact
from conviction.errors import InputError, ModelError
from conviction.localization.analysis import localize
from conviction.localization.neurons import attributions, chosen_neurons, read_neurons
from conviction.localization.summary import average, findings
from conviction.localization.tracing import Setup, build_statement, noise_level, trace
from conviction.localization.truth import cross_validated, nested, read_truth
from conviction.models.backends.scripted import ScriptedModel
from conviction.models.engine.logprobs import find_head
from conviction.models.lora import decoder_layers
from conviction.models.states import hooked, states_of

FACT = Fact("f1", "The drink of {} is", "the town", "milk", paraphrases=("In the town people drink",))
SETUP = Setup(noise=0.5, samples=2, window=1)


def statement_of(model):
    result = build_statement(model, FACT, own_answer=True)
    assert result is not None
    return result


@pytest.mark.parametrize("architecture", ["llama", "gemma3-sliding", "gemma"])
def test_noise_is_three_times_the_spread_of_what_enters_the_model(architecture):
    """Gemma scales its embeddings: noise of the spread of the weights drowns nothing there."""
    model = tiny_model(architecture)
    embed, entering = model.module.get_input_embeddings(), []
    ids = torch.tensor([sorted(set(model.tokenizer(" the town", add_special_tokens=False).input_ids))])
    with hooked((embed, lambda _m, _i, out: entering.append(out.detach()))):
        model.module.base_model(input_ids=ids, use_cache=False)
    assert noise_level(model, [FACT]) == pytest.approx(3 * float(entering[0].std()), rel=1e-5)


def test_a_head_that_is_not_known_is_refused():
    """HyperCLOVA-X multiplies its logits where Granite divides: 'p' would be another number."""
    with pytest.raises(ModelError, match="in a way that is not known here"):
        statement_of(tiny_model("hyperclovax-scaled"))


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3-sliding", "gemma2-softcap"])
@pytest.mark.parametrize("kind", ["block", "mlp"])
def test_effects_are_those_of_whole_runs(architecture, kind):
    """Cached keys, skipped layers and many sites in one pass against one site in one whole run."""
    model = tiny_model(architecture)
    statement = statement_of(model)
    result = trace(model, statement, kind, SETUP)
    embedded = model.module.get_input_embeddings()(torch.tensor([statement.ids])).detach()
    first, end = statement.subject
    noisy = embedded.repeat(2, 1, 1)
    drawn = torch.randn(2, end - first, 32, generator=torch.Generator().manual_seed(0)) * SETUP.noise
    noisy[:, first:end] += drawn
    blocks = decoder_layers(model.module)
    places = list(blocks) if kind == "block" else [b.mlp for b in blocks]

    @torch.no_grad()
    def probability(*hooks):
        with hooked(*hooks):
            hidden = model.module.base_model(inputs_embeds=noisy, use_cache=False).last_hidden_state[:, -1]
        shares = torch.softmax(find_head(model.module).logits(hidden, slice(None)), -1)
        return float(shares[:, statement.answer].mean())

    clean = {}
    for layer in (0, 2):

        def keep(_module, _inputs, output, layer=layer):
            clean[layer] = states_of(output).detach()

        with hooked((places[layer], keep)), torch.no_grad():
            model.module.base_model(inputs_embeds=embedded, use_cache=False)
    assert result.noisy == pytest.approx(probability(), abs=1e-5)
    for layer in (0, 2):
        for token in (end - 1, len(statement.ids) - 1):

            def restore(_module, _inputs, output, layer=layer, token=token):
                states = states_of(output).clone()
                states[:, token] = clean[layer][0, token]
                return (states, *output[1:]) if isinstance(output, tuple) else states

            expected = probability((places[layer], restore)) - result.noisy
            assert result.effects[token][layer] == pytest.approx(expected, abs=1e-5)


def test_what_stands_before_the_noise_has_no_effect_and_all_of_the_last_token_has_all():
    model = tiny_model()
    statement = statement_of(model)
    result = trace(model, statement, "block", SETUP)
    assert all(x == 0 for row in result.effects[: statement.subject[0]] for x in row)
    assert result.effects[-1][-1] == pytest.approx(result.clean - result.noisy, abs=1e-5)


def test_a_control_drowns_other_tokens():
    model = tiny_model()
    statement = statement_of(model)
    result = trace(model, statement, "block", SETUP, control=True)
    first, end = result.corrupted
    assert end <= statement.subject[0] or first >= statement.subject[1]


def test_attributions_sum_to_what_the_layer_does():
    """Completeness of integrated gradients (Sundararajan et al. 1703.01365): they sum to f(x) - f(0)."""
    from conviction.editing.sites import find_sites
    from conviction.localization.neurons import _answer, _past

    model = tiny_model()
    statement = statement_of(model)
    result = attributions(model, statement)
    site = find_sites(model)[1]
    past = _past(model, statement.ids)
    with torch.no_grad():
        base = float(_answer(model, statement, past, 1)[0])
        handle = site.linear.register_forward_pre_hook(lambda _m, inputs: (0 * inputs[0],))
        silent = float(_answer(model, statement, past, 1)[0])
        handle.remove()
    assert base == pytest.approx(statement.probability, abs=1e-5)
    assert float(result[1].sum()) == pytest.approx(base - silent, abs=2e-3)


def test_neurons_are_those_that_most_wordings_share():
    one, other = torch.zeros(2, 4), torch.zeros(2, 4)
    one[0, 1], one[1, 3] = 1.0, 0.5
    other[0, 1], other[1, 2] = 1.0, 0.1
    assert chosen_neurons([one, other]) == ((0, 1), (1, 3))
    assert chosen_neurons([one, other, other]) == ((0, 1),)


def test_silencing_is_a_share_of_the_probability():
    model = tiny_model()
    statement = statement_of(model)
    read = read_neurons(model, statement, chosen_neurons([attributions(model, statement)]))
    assert -1 <= read.suppressed <= 1e3
    assert read_neurons(model, statement, ()).suppressed == 0


def test_a_truth_direction_is_found_where_there_is_one():
    """A model whose states are its last token's embedding: true answers end in one letter, false ones in another."""
    topic = load_topic("obesity")
    facts = [
        i.model_copy(update={"answers": {"true": f"This is {n} a", "false": f"This is {n} z"}})
        for n, i in enumerate(topic.of_role("neighbour", "control"))
    ]
    kit = topic.model_copy(update={"items": (*facts, *topic.of_role("target")[:3])})
    readings = read_truth(tiny_model(max_position_embeddings=4096), kit)
    assert readings is not None
    assert len(readings.layers) == 3
    assert readings.layers[0].auc > 0.95
    assert readings.auc > 0.95
    assert abs(readings.layers[0].shuffled - 0.5) < 0.3


def _noise(rng, facts=24, layers=30, hidden=16):
    """States that say nothing of truth."""
    return rng.normal(size=(facts, layers, hidden)), rng.normal(size=(facts, layers, hidden))


def test_the_best_layer_of_thirty_is_too_good_and_nested_folds_are_not():
    """On noise the best layer by its own AUC reads 0.7 and more; the choice in nested folds reads chance."""
    best, honest = [], []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        states, folds = _noise(rng), rng.permutation(24) % 6
        best.append(max(cross_validated((states[0][:, n], states[1][:, n]), folds) for n in range(30)))
        honest.append(nested(states, folds)[0])
    assert np.mean(best) > 0.65
    assert abs(np.mean(honest) - 0.5) < 0.06


def test_nested_folds_choose_the_layer_that_knows():
    rng = np.random.default_rng(0)
    true, false = _noise(rng)
    true[:, 7] += 1.0
    auc, layers = nested((true, false), rng.permutation(24) % 6)
    assert set(layers) == {7}
    assert auc > 0.9


@pytest.mark.long
def test_all_of_it_from_the_library_and_the_command_line(tmp_path, tiny_folder, monkeypatch):
    from conviction.cli.app import app

    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": "The drink of the town is", "subject": "the town", "target": "milk"}]
    (tmp_path / "facts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    arguments = ["localize", "--data", "facts.jsonl", "--model", str(tiny_folder), "--run", "r", "--own-answer"]
    done = CliRunner().invoke(app, [*arguments, "--samples", "1", "--dtype", "fp32"])
    assert done.exit_code == 0, done.output
    assert "What this does not show" in done.output
    record = json.loads((tmp_path / "r" / "localization.json").read_text(encoding="utf-8"))
    assert {(t["kind"], t["control"]) for t in record["traces"]} == {
        (kind, control) for kind in ("block", "mlp", "attention") for control in (False, True)
    }
    assert (tmp_path / "r" / "maps" / "average.png").read_bytes().startswith(b"\x89PNG")
    assert "</svg>" in (tmp_path / "r" / "maps" / "facts_jsonl_1.svg").read_text(encoding="utf-8")
    result = localize(
        tiny_model(max_position_embeddings=4096), [FACT], source="x", own_answer=True, kinds=("block",), samples=1
    )
    assert len(result.neurons) == 1


def test_means_are_over_statements_and_roles():
    model = tiny_model()
    statement = statement_of(model)
    traces = [trace(model, statement, "block", SETUP), trace(model, statement, "block", SETUP, control=True)]
    maps = average(traces, [statement])
    last = maps[0].roles.index("last token")
    assert maps[0].effects[last] == traces[0].effects[-1]
    assert "control's strongest" in findings(maps, [], None)[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["obesity", "--kinds", "blok"], "unknown kind of site 'blok'"),
        ([], "neither a topic nor data"),
        (["politeness"], "holds no facts"),
    ],
)
def test_what_cannot_be_traced(arguments, words, capsys, monkeypatch):
    from conviction.cli.app import main

    monkeypatch.setattr("sys.argv", ["conviction", "localize", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert words in capsys.readouterr().err


def test_a_model_must_know_and_have_weights():
    with pytest.raises(InputError, match="knows none"):
        localize(tiny_model(), [FACT], source="x")
    with pytest.raises(InputError, match="no weights"):
        localize(ScriptedModel(), [FACT], source="x")
