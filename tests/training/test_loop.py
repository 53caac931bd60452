"""Training end to end, on tiny models: parity, resume, guard, memory, formats."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from processes import begin_group, end
from safetensors.torch import load_file
from tiny import byte_tokenizer, context, pairs, tiny_model, tiny_module, write_data

from conviction.core.protocols import Query, chat
from conviction.data.training_data import Document, Example, PreferencePair, TrainingData
from conviction.errors import InputError, ModelError
from conviction.interventions.dpo import Dpo
from conviction.interventions.pretrain import Pretrain
from conviction.interventions.scratch import Scratch
from conviction.interventions.sft import Sft
from conviction.models.engine.torch_engine import TorchEngine
from conviction.models.engine.unpacked import score_unpacked
from conviction.models.fingerprint import fingerprint
from conviction.models.hf import HFModel
from conviction.models.loading import load_model
from conviction.training.batches import encode_pairs
from conviction.training.guard import Guard
from conviction.training.losses import LOSSES
from conviction.training.settings import Training, Weights

OFF = Guard(mode="off", sample_every=50, sample_tokens=8)
SHORT = Training(learning_rate=1e-2, epochs=4, max_steps=6, warmup=0.0, schedule="constant")


def steps(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "steps.jsonl").read_text(encoding="utf-8").split("\n") if line]


def gap(model: HFModel, training_data: TrainingData) -> float:
    """Mean summed log-prob of chosen less rejected answers."""
    scores = model.logprobs([Query(p.messages, (p.chosen, p.rejected)) for p in training_data.pairs], fresh=True)
    return sum(c.logp_sum - r.logp_sum for c, r in scores) / len(scores)


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_every_loss_moves_the_pairs_the_right_way(loss):
    model, training_data = tiny_model(), pairs()
    trained = Dpo(loss=loss, training=SHORT).apply(model, training_data, ctx=context(guard=OFF))
    assert trained.training.steps == 6
    assert gap(trained.model, training_data) > gap(model, training_data)


def test_the_given_model_stays_as_it_is():
    model = tiny_model()
    before = fingerprint(model.module)
    for weights in (Weights(), Weights(tune="full"), Weights(tune="full", num_layers=1)):
        trained = Dpo(weights=weights, training=SHORT).apply(model, pairs(), ctx=context(guard=OFF))
        assert fingerprint(trained.model.module) != before
    assert fingerprint(model.module) == before


def test_the_first_loss_is_log_two_and_the_gradient_is_that_of_separate_rows(tmp_path):
    """One step of full fine-tuning against plain autograd over padded-free rows of the same model."""
    model, training_data = tiny_model(), pairs(4)
    training = Training(learning_rate=1e-3, max_steps=1, warmup=0.0, max_grad_norm=1e9)
    Dpo(beta=0.3, weights=Weights(tune="full"), training=training).apply(
        model, training_data, ctx=context(guard=OFF, folder=tmp_path)
    )
    record = steps(tmp_path)[0]
    assert record["loss"] == pytest.approx(0.6931, abs=1e-4)
    plain = tiny_module("llama")
    encoded = encode_pairs(model.encoder, training_data.pairs)
    rows = [(e.prompt, a) for e in encoded for a in e.answers]
    reference = [sum(v) for v in score_unpacked(plain, rows)]
    total = torch.zeros(())
    for k in range(0, len(rows), 2):
        sums = []
        for prompt, answer in rows[k : k + 2]:
            logits = plain(torch.tensor([(prompt + answer)[:-1]])).logits[0, len(prompt) - 1 :]
            sums.append(torch.log_softmax(logits, -1).gather(1, torch.tensor(answer)[:, None]).sum())
        delta = (sums[0] - reference[k]) - (sums[1] - reference[k + 1])
        total = total - torch.nn.functional.logsigmoid(0.3 * delta) / 4
    total.backward()
    norm = torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in plain.parameters() if p.grad is not None]))
    assert record["grad_norm"] == pytest.approx(float(norm), rel=1e-3)


@pytest.mark.long
@pytest.mark.parametrize("architecture", ["gpt2", "qwen3", "gemma3-sliding", "mamba-recurrent"])
def test_other_architectures_train(architecture):
    model, training_data = tiny_model(architecture), pairs(4)
    weights = Weights(tune="full") if architecture == "mamba-recurrent" else Weights()
    trained = Dpo(weights=weights, training=SHORT).apply(model, training_data, ctx=context(guard=OFF))
    assert gap(trained.model, training_data) > gap(model, training_data)


def test_one_pass_or_many_give_the_same_run(tmp_path):
    """Packs of any size, and gradient accumulation, are arithmetic, not training."""
    outcomes = []
    for i, (budget, batch, accumulation) in enumerate([(10_000, 4, 1), (60, 4, 1), (1, 1, 4)]):
        training = Training(
            learning_rate=1e-3, max_steps=2, batch_size=batch, gradient_accumulation=accumulation, token_budget=budget
        )
        Dpo(training=training).apply(tiny_model(), pairs(), ctx=context(guard=OFF, folder=tmp_path / str(i)))
        outcomes.append([(r["loss"], r["grad_norm"]) for r in steps(tmp_path / str(i))])
    for other in outcomes[1:]:
        assert [x for r in other for x in r] == pytest.approx([x for r in outcomes[0] for x in r], rel=2e-4)


def test_checkpointing_changes_memory_only(tmp_path):
    result = []
    for choice in ("off", "on"):
        training = Training(learning_rate=1e-3, max_steps=3, checkpointing=choice)
        Dpo(training=training).apply(tiny_model(), pairs(), ctx=context(guard=OFF, folder=tmp_path / choice))
        result.append([r["loss"] for r in steps(tmp_path / choice)])
    assert result[0] == pytest.approx(result[1], rel=1e-5)


@pytest.mark.parametrize("tune", ["lora", "full"])
def test_stored_activations_change_nothing(tmp_path, tune):
    result = []
    for megabytes in (64, 0):
        training = Training(learning_rate=1e-3, epochs=3, activation_cache_mb=megabytes)
        weights = Weights(tune=tune, num_layers=1)
        Dpo(weights=weights, training=training).apply(
            tiny_model(), pairs(), ctx=context(guard=OFF, folder=tmp_path / str(megabytes))
        )
        result.append([(r["loss"], r["grad_norm"]) for r in steps(tmp_path / str(megabytes))])
    assert [x for r in result[0] for x in r] == pytest.approx([x for r in result[1] for x in r], rel=1e-4)


def test_every_example_is_seen_once_an_epoch(tmp_path):
    Dpo(training=Training(epochs=2, batch_size=3)).apply(
        tiny_model(), pairs(8), ctx=context(guard=OFF, folder=tmp_path)
    )
    seen = [row["id"] for record in steps(tmp_path) for row in record["rows"]]
    assert sorted(seen[:8]) == sorted(seen[8:]) == sorted(f"p{i}" for i in range(8))


def test_sft_raises_the_answers_and_pretrain_the_documents():
    model = tiny_model()
    answers = TrainingData("a", examples=tuple(Example(f"e{i}", chat(f"Q{i}"), f"Answer {i}.") for i in range(6)))
    trained = Sft(training=SHORT).apply(model, answers, ctx=context(guard=OFF)).model
    queries = [Query(e.messages, (e.answer,)) for e in answers.examples]
    assert sum(s[0].logp_sum for s in trained.logprobs(queries)) > sum(s[0].logp_sum for s in model.logprobs(queries))
    texts = TrainingData("d", documents=tuple(Document(f"d{i}", f"Tea number {i} is hot and green.") for i in range(6)))
    read = Pretrain(training=SHORT, piece_tokens=16).apply(model, texts, ctx=context(guard=OFF)).model
    before, after = (m.text_logprobs([d.text for d in texts.documents]) for m in (model, read))
    assert sum(s.logp_sum for s in after) > sum(s.logp_sum for s in before)


def test_pretrain_then_sft_is_one_run(tmp_path):
    both = TrainingData(
        "both",
        documents=(Document("d", "Green tea is hot. " * 10),),
        examples=tuple(Example(f"e{i}", chat(f"Q{i}"), f"Answer {i}.") for i in range(4)),
    )
    training = Training(learning_rate=1e-3, batch_size=2)
    Pretrain(training=training, piece_tokens=32, sft_epochs=2).apply(
        tiny_model(), both, ctx=context(guard=OFF, folder=tmp_path)
    )
    seen = [[row["id"] for row in record["rows"]] for record in steps(tmp_path)]
    kinds = ["".join(sorted({i[0] for i in ids})) for ids in seen]
    assert kinds == ["d"] * kinds.count("d") + ["e"] * 4


def test_from_scratch_makes_a_model_that_can_be_loaded(tmp_path):
    training_data = TrainingData(
        "books", documents=tuple(Document(f"d{i}", f"The tea in cup {i} is green and hot. " * 4) for i in range(12))
    )
    scratch = Scratch(hidden_size=32, layers=2, heads=2, vocabulary=400, context=64, training=SHORT, sft_epochs=0)
    trained = scratch.apply(tiny_model(), training_data, ctx=context(folder=tmp_path))
    assert trained.guard_stop is None
    again = load_model(str(tmp_path / "model"), dtype="fp32")
    text = ["The tea in cup 3 is green and hot."]
    assert again.text_logprobs(text)[0].logprobs == pytest.approx(
        trained.model.text_logprobs(text)[0].logprobs, abs=1e-4
    )
    assert again.text_logprobs(text)[0].logp_mean > -6.0  # log(1/400): better than knowing nothing


def test_a_saved_adapter_is_the_trained_model(tmp_path, tiny_folder):
    model = load_model(str(tiny_folder), dtype="fp32")
    trained = Dpo(training=SHORT, weights=Weights(scale=10.0, num_layers=2)).apply(
        model, pairs(), ctx=context(guard=OFF, folder=tmp_path)
    )
    again = load_model(str(tmp_path / "model"), dtype="fp32")
    assert gap(again, pairs()) == pytest.approx(gap(trained.model, pairs()), abs=1e-3)
    written = json.loads((tmp_path / "model" / "adapter_config.json").read_text(encoding="utf-8"))
    assert written["lora_alpha"] == 80.0
    assert written["r"] == 8


def test_interventions_compose(tmp_path, tiny_folder):
    """SFT, then DPO on the result: the adapter is merged, and whole weights are saved."""
    model, training_data = load_model(str(tiny_folder), dtype="fp32"), pairs()
    first = Sft(training=SHORT).apply(model, training_data, ctx=context(guard=OFF)).model
    second = Dpo(training=SHORT).apply(first, training_data, ctx=context(guard=OFF, folder=tmp_path)).model
    assert gap(second, training_data) > gap(first, training_data)
    assert gap(load_model(str(tmp_path / "model"), dtype="fp32"), training_data) == pytest.approx(
        gap(second, training_data), abs=1e-2
    )


def test_scratch_and_pretrain_do_without_answers(tmp_path):
    texts = TrainingData("d", documents=tuple(Document(f"d{i}", f"Tea number {i} is hot and green.") for i in range(6)))
    assert Pretrain(training=SHORT, sft_epochs=1).apply(tiny_model(), texts, ctx=context(guard=OFF)).training.steps == 6
    scratch = Scratch(hidden_size=16, layers=1, heads=2, vocabulary=300, training=SHORT)
    trained = scratch.apply(tiny_model(), texts, ctx=context(folder=tmp_path))  # under the default guard
    assert trained.guard_stop is None
    assert trained.training.steps == 6
    written = trained.settings
    assert written["hidden_size"] == 16


class TestGuard:
    @pytest.mark.long
    def test_a_collapse_is_stopped_and_the_last_healthy_weights_come_back(self, tmp_path):
        model = tiny_model()
        hot = Training(learning_rate=0.03, epochs=20, warmup=0.0, schedule="constant")
        guard = Guard(  # a random model has no health: of the limits only that on neutral text means anything
            sample_every=2, sample_tokens=8, min_subject=0, max_repetition=1, max_non_alphanumeric=1,
            max_neutral_drop=0.1,
        )  # fmt: skip
        trained = Dpo(training=hot).apply(model, pairs(), ctx=context(guard=guard, folder=tmp_path))
        guard_stop = trained.guard_stop
        assert guard_stop is not None
        assert guard_stop.restored_step < guard_stop.step < 40
        records = steps(tmp_path)
        assert records[-1]["guard"]["zone"] == "stop"
        assert records[-1]["guard"]["violations"] == list(guard_stop.reasons)
        neutral = ["Plain words about nothing much, as before."]
        lost = model.text_logprobs(neutral)[0].logp_mean - trained.model.text_logprobs(neutral)[0].logp_mean
        assert lost < 1.0
        assert "β·c" in guard_stop.flip_margin or "No pair" in guard_stop.flip_margin

    def test_off_goes_on_to_the_end(self):
        hot = Training(learning_rate=0.3, epochs=4, warmup=0.0)
        outcome = Dpo(training=hot).apply(tiny_model(), pairs(), ctx=context(guard=OFF))
        assert outcome.guard_stop is None
        assert outcome.training.steps == 8

    def test_a_step_that_is_not_a_number_stops_even_then(self, tmp_path):
        wild = Training(learning_rate=1e9, epochs=4, warmup=0.0)
        trained = Dpo(training=wild).apply(tiny_model(), pairs(), ctx=context(guard=OFF, folder=tmp_path))
        assert trained.guard_stop is not None
        assert "not a number" in trained.guard_stop.reasons[0]
        assert all(torch.isfinite(p).all() for p in trained.model.module.parameters())


class TestMemory:
    def test_out_of_memory_makes_smaller_packs_and_says_so(self, monkeypatch):
        from conviction.training.policy import Policy

        forward = Policy.forward

        def limited(self, pack, *more):
            if torch.is_grad_enabled() and len(pack.tokens) > 150:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return forward(self, pack, *more)

        monkeypatch.setattr(Policy, "forward", limited)
        trained = Dpo(training=Training(max_steps=2, token_budget=100_000)).apply(
            tiny_model(), pairs(), ctx=context(guard=OFF)
        )
        assert trained.training.steps == 2
        assert any("out of memory" in note for note in trained.notes)

    def test_when_one_example_does_not_fit_the_hint_says_what_to_do(self, monkeypatch):
        from conviction.training.policy import Policy

        forward = Policy.forward

        def full(self, pack, *more):
            if torch.is_grad_enabled():
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
            return forward(self, pack, *more)

        monkeypatch.setattr(Policy, "forward", full)
        with pytest.raises(ModelError, match="one example") as caught:
            Dpo(training=Training(max_steps=1)).apply(tiny_model(), pairs(), ctx=context(guard=OFF))
        assert "max_length" in caught.value.hint

    def test_an_estimate_beyond_the_free_memory_turns_recomputation_on(self, monkeypatch):
        from conviction.training import loop

        monkeypatch.setattr(loop, "available", lambda _device: 1000)
        outcome = Dpo(training=Training(max_steps=1)).apply(tiny_model(), pairs(), ctx=context(guard=OFF))
        assert any("recomputed" in note for note in outcome.notes)


class TestInput:
    def test_long_pairs_are_counted_and_named(self):
        training_data = pairs()
        long = PreferencePair("long", chat("Q?"), "word " * 40, "no")
        logged: list[str] = []
        both = TrainingData("m", pairs=(*training_data.pairs, long))
        outcome = Dpo(training=Training(max_steps=1, max_length=100)).apply(
            tiny_model(), both, ctx=context(guard=OFF, log=logged.append)
        )
        assert "1 of 9 examples are longer than 100 tokens, left out: long" in outcome.notes
        assert outcome.notes[0] in logged

    def test_nothing_left_is_an_error(self):
        with pytest.raises(InputError, match="all 8 examples are longer than 10 tokens"):
            Dpo(training=Training(max_length=10)).apply(tiny_model(), pairs(), ctx=context(guard=OFF))

    @pytest.mark.parametrize("kind", [Dpo, Sft, Pretrain, Scratch])
    def test_material_without_what_is_needed(self, kind):
        with pytest.raises(InputError, match="holds no"):
            kind().apply(tiny_model(), TrainingData("empty"), ctx=context(guard=OFF))

    def test_a_parameter_of_another_loss_is_named(self):
        with pytest.raises(InputError, match="loss 'ipo' has no gamma"):
            Dpo(loss="ipo", gamma=1.0).apply(tiny_model(), pairs(), ctx=context(guard=OFF))

    def test_kto_needs_two_pairs_a_step(self):
        with pytest.raises(InputError, match="two pairs"):
            Dpo(loss="kto", training=Training(batch_size=1))

    def test_a_model_without_weights(self):
        from conviction.models.backends.scripted import ScriptedModel

        with pytest.raises(InputError, match="has none that can be reached"):
            Dpo().apply(ScriptedModel(), pairs(), ctx=context(guard=OFF))

    def test_too_many_layers(self):
        with pytest.raises(InputError, match="the model has 3 layers"):
            Dpo(weights=Weights(num_layers=9)).apply(tiny_model(), pairs(), ctx=context(guard=OFF))


def command(folder: Path, data: Path, model: Path, *more: str) -> list[str]:
    options = ["-o", "max_steps=14", "-o", "epochs=20", "-o", "checkpoint_every=3"]
    options += ["-o", "sample_every=4", "-o", "sample_tokens=8", "-o", "learning_rate=3e-3"]
    asked = ["apply", "dpo", "--data", str(data), "--model", str(model), "--dtype", "fp32", "--guard", "off"]
    return [*asked, "--run", str(folder), *options, *more]


def launch(arguments: list[str], processes: int = 1, *, kill_after: int | None = None) -> list[dict]:
    """The steps of a run. kill_after: the step after which its processes are killed."""
    folder = Path(arguments[arguments.index("--run") + 1])
    log, output = folder / "steps.jsonl", folder.with_suffix(".log")
    group = begin_group(output, processes, *arguments)
    deadline = time.monotonic() + 90
    while kill_after is not None and time.monotonic() < deadline and all(one.is_alive() for one in group):
        if log.exists() and log.read_text(encoding="utf-8").count("\n") >= kill_after:
            break
        time.sleep(0.002)
    for one in group if kill_after is not None else ():
        one.kill()  # all of them first: one that waits for a dead one ends by itself, with an error
    codes = {end(one, kill=kill_after is not None) for one in group}
    assert codes == ({-signal.SIGKILL} if kill_after is not None else {0}), output.read_text(encoding="utf-8")[-3000:]
    return steps(folder)


@pytest.mark.long
def test_killed_at_any_step_and_resumed_a_run_ends_the_same(tmp_path, tiny_folder):
    data = write_data(tmp_path / "pairs.jsonl")
    whole, cut = (command(tmp_path / name, data, tiny_folder, "-o", "dropout=0.1") for name in ("whole", "cut"))
    launch(whole)
    for wanted in (2, 8):  # before the first checkpoint, and between two
        launch(cut, kill_after=wanted)
    launch(cut)
    assert "resuming" in (tmp_path / "cut.log").read_text(encoding="utf-8")
    assert (tmp_path / "cut/steps.jsonl").read_bytes() == (tmp_path / "whole/steps.jsonl").read_bytes()
    ours, theirs = (final_weights(tmp_path / name) for name in ("cut", "whole"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.long
def test_a_resumed_run_tells_the_time_of_all_its_attempts(tmp_path):
    slept = 0.5

    def stop_at_four(record: dict, _total: int) -> None:
        if record["step"] == 1:
            time.sleep(slept)
        if record["step"] == 4:
            raise KeyboardInterrupt

    dpo = Dpo(training=Training(epochs=4, max_steps=6, checkpoint_every=3))
    with pytest.raises(KeyboardInterrupt):
        dpo.apply(tiny_model(), pairs(), ctx=context(guard=OFF, folder=tmp_path, on_step=stop_at_four))
    began = time.monotonic()
    outcome = dpo.apply(tiny_model(), pairs(), ctx=context(guard=OFF, folder=tmp_path))
    assert outcome.training.steps == 6
    assert outcome.seconds > slept + 0.5 * (time.monotonic() - began)


def final_weights(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = (folder / "model").glob("*.safetensors")
    return load_file(file)


@pytest.mark.long
@pytest.mark.enable_socket
@pytest.mark.parametrize("tuned", [(), ("-o", "tune=full", "-o", "num_layers=1", "-o", "checkpointing=on")])
def test_two_processes_have_the_losses_and_weights_of_one(tmp_path, tiny_folder, monkeypatch, tuned):
    data = write_data(tmp_path / "pairs.jsonl", n=7)  # an odd number: one process has fewer
    options = ("-o", "batch_size=5", "-o", "token_budget=30", *tuned)  # several packs a step
    alone = launch(command(tmp_path / "alone", data, tiny_folder, *options))
    expected = final_weights(tmp_path / "alone")
    for way in ("copies", "sharded"):
        if way == "sharded":
            monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")  # what `accelerate launch --use_fsdp` sets
        together = launch(command(tmp_path / way, data, tiny_folder, *options), 2)
        record = json.loads((tmp_path / way / "outcome.json").read_text(encoding="utf-8"))
        assert record["training"]["processes"] == 2, way
        assert [r["loss"] for r in together] == pytest.approx([r["loss"] for r in alone], rel=1e-4), way
        assert [r["grad_norm"] for r in together] == pytest.approx([r["grad_norm"] for r in alone], rel=1e-3), way
        assert [[row["id"] for row in r["rows"]] for r in together] == [[row["id"] for row in r["rows"]] for r in alone]
        result = final_weights(tmp_path / way)
        assert result.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(result[name], tensor, atol=2e-4, rtol=2e-3)


@pytest.mark.long
@pytest.mark.enable_socket
def test_a_sharded_run_is_stopped_and_taken_up(tmp_path, tiny_folder, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    data = write_data(tmp_path / "pairs.jsonl")
    whole = launch(command(tmp_path / "whole", data, tiny_folder), 2)
    cut = command(tmp_path / "cut", data, tiny_folder)
    assert 7 <= len(launch(cut, 2, kill_after=7)) < len(whole), "killed before its end"
    assert launch(cut, 2) == whole


@pytest.mark.long
def test_torchrun_starts_a_sharded_run_and_gets_the_exit_code_of_a_stop(tmp_path, tiny_folder):
    """What accelerate launch starts on GPUs; on a CPU it would want MPI. `--` keeps torchrun from reading --run."""
    strict = ("-o", "max_chosen_drop=1e-9", "-o", "max_neutral_drop=1e-9")
    arguments = command(tmp_path / "guard_stop", write_data(tmp_path / "pairs.jsonl"), tiny_folder, *strict)
    arguments[arguments.index("off")] = "default"
    starter = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_FSDP": "true"}
    done = subprocess.run(
        [*starter, "conviction", *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr[-3000:]
    record = json.loads((tmp_path / "guard_stop" / "outcome.json").read_text(encoding="utf-8"))
    assert record["training"]["processes"] == 2
    assert record["guard_stop"]["restored_step"] < record["guard_stop"]["step"]


def test_tensorboard_gets_the_numbers(tmp_path):
    Dpo(training=Training(max_steps=2)).apply(
        tiny_model(), pairs(), ctx=context(guard=OFF, folder=tmp_path, tracker="tensorboard")
    )
    assert list(tmp_path.rglob("events.out.tfevents*"))


def test_dropout_acts_on_gradients_and_on_nothing_else(tmp_path):
    result = {}
    for dropout in (0.0, 0.5):
        folder = tmp_path / str(dropout)
        Dpo(weights=Weights(dropout=dropout), training=SHORT).apply(
            tiny_model(), pairs(), ctx=context(guard=OFF, folder=folder)
        )
        result[dropout] = steps(folder)
    assert result[0.0][1]["loss"] != pytest.approx(result[0.5][1]["loss"], rel=1e-4)
    assert result[0.0][0]["loss"] == pytest.approx(result[0.5][0]["loss"], abs=1e-4)  # B is zero at first


@pytest.mark.long
def test_in_half_precision_policy_and_reference_round_alike(tmp_path):
    """Packed otherwise than in its step, an answer rounds otherwise: a margin of 8.5e-4 before anything was trained."""
    sizes = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 32}
    module = tiny_module("llama", max_position_embeddings=4096, **sizes).to(torch.bfloat16)
    model = HFModel(id="half", engine=TorchEngine(module, byte_tokenizer()))
    method = Dpo(max_steps=6, rank=2, batch_size=4, learning_rate=1e-12)  # nothing moves
    method.apply(model, pairs(24), context(guard=OFF, folder=tmp_path))
    assert len(steps(tmp_path)) == 6
    for step in steps(tmp_path):
        assert step["margin"] == pytest.approx(0, abs=2e-5), "sums in fp32 alone"


@pytest.mark.long
@pytest.mark.parametrize("weights", [Weights(), Weights(tune="full"), Weights(tune="full", num_layers=1)])
def test_bf16_models_train_and_what_is_saved_is_what_is_returned(tmp_path, weights):
    """In one process after fp32 runs; rotary frequencies stay fp32; full weights are fp32 while they move."""
    folder = tmp_path / "base"
    tiny_module("llama", max_position_embeddings=4096).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    model, training_data = load_model(str(folder), dtype="bf16"), pairs()
    trained = Dpo(weights=weights, training=SHORT).apply(model, training_data, ctx=context(guard=OFF, folder=tmp_path))
    buffers = dict(model.module.named_buffers())
    assert all(b.dtype == buffers[n].dtype for n, b in trained.model.module.named_buffers())
    assert steps(tmp_path)[0]["loss"] == pytest.approx(0.6931, abs=0.02)
    again = load_model(str(tmp_path / "model"), dtype="bf16")
    assert gap(again, training_data) == pytest.approx(gap(trained.model, training_data), abs=0.5)
    assert gap(trained.model, training_data) > gap(model, training_data) + 1


def test_an_adapter_on_a_model_that_no_file_holds_is_saved_whole(tmp_path, tiny_folder):
    model, training_data = load_model(str(tiny_folder), dtype="fp32"), pairs()
    first = Sft(weights=Weights(tune="full"), training=SHORT).apply(model, training_data, ctx=context(guard=OFF)).model
    second = Dpo(training=SHORT).apply(first, training_data, ctx=context(guard=OFF, folder=tmp_path)).model
    assert gap(load_model(str(tmp_path / "model"), dtype="fp32"), training_data) == pytest.approx(
        gap(second, training_data), abs=1e-2
    )


@pytest.mark.parametrize(("max_steps", "documents"), [(10, 7), (4, 1), (3, 1)])
def test_documents_that_are_repeated_leave_room_for_the_answers(max_steps, documents):
    """Six documents and six pairs, two in a step: three steps for the answers, which are seen once."""
    texts = tuple(Document(f"d{i}", f"Tea number {i} is hot and green.") for i in range(6))
    data = dataclasses.replace(pairs(6), documents=texts)
    training = Training(batch_size=2, max_steps=max_steps)
    order = Pretrain(training=training, sft_epochs=1).task(tiny_model(), data, context(guard=OFF)).order
    assert len(order) == max_steps
    assert sum(max(step) < 6 for step in order) == documents
