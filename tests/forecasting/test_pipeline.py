"""The forecast: its gradients against autograd, its simulation against real training, its words against its numbers."""

from __future__ import annotations

import dataclasses
import json
import math
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import context, pairs, tiny_model

from conviction import Dpo, Guard, Sft, Training, Weights
from conviction.core.context import RunContext
from conviction.core.protocols import AnswerScore, chat
from conviction.core.run import Run
from conviction.data.training_data import PreferencePair
from conviction.errors import InputError, ModelError, RunError
from conviction.forecasting.flip_cost import flip_cost, flip_points
from conviction.forecasting.gradients import Layers, take_gradients
from conviction.forecasting.kernel import Kernel, Plan, simulate
from conviction.forecasting.pilot import distance, pilot_rate, run_pilot
from conviction.forecasting.pipeline import forecast
from conviction.forecasting.records import (
    Flips,
    Forecast,
    PairForecast,
    PilotReport,
    PredictedStop,
    Question,
    Signal,
    StepForecast,
    SweepPoint,
)
from conviction.forecasting.rows import HeldOutPair, choose_examples, number_rows
from conviction.forecasting.score import score_forecast
from conviction.forecasting.signal import signal_of
from conviction.forecasting.simulation import linearize, read_reference
from conviction.forecasting.sweep import default_sweep, parse_sweep
from conviction.forecasting.verdict import judge_forecast
from conviction.models.backends.scripted import ScriptedModel
from conviction.models.lora import ADAPTER, adapter_layers
from conviction.training.batches import encode_pairs
from conviction.training.loop import train
from conviction.training.losses import LOSSES, find_loss, parameters
from conviction.training.policy import plain_policy, trainable_parameters

OFF = Guard(mode="off", sample_every=1000, sample_tokens=8)
ALL = 10**6  # coordinates of a matrix: more than there are


def questions(n: int = 9) -> list[HeldOutPair]:
    return [
        HeldOutPair(PreferencePair(f"t{i}", chat(f"Test {i}?"), f"Yes, {i} holds.", f"No, {i} fails."), "target")
        for i in range(n)
    ]


def moved_policy(architecture: str = "llama", *, seed: int = 0, size: float = 0.05):
    """A policy whose adapter has left its start, and A₀ of each layer."""
    model = tiny_model(architecture)
    policy = plain_policy(model, Weights(rank=2), Training(seed=1), packed=model.check.packed)
    starts = {
        name: layer.lora_A[ADAPTER].weight.detach().clone() for name, layer in adapter_layers(policy.module).items()
    }
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in trainable_parameters(policy):
            parameter.add_(torch.randn(parameter.shape, generator=generator) * size)
    return policy, starts


# -- gradients -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "budget"), [("llama", 1), ("llama", 10_000), ("gpt2", 10_000), ("gemma2-softcap", 500)]
)
def test_gradients_of_packed_answers_are_autograds_one_by_one(architecture, budget):
    policy, starts = moved_policy(architecture)
    assert policy.packed == (architecture != "gemma2-softcap")
    encoded = encode_pairs(tiny_model().encoder, pairs(4).pairs)
    rows = [(e.prompt, answer) for e in encoded for answer in e.answers]
    layers = Layers.draw(policy.module, starts, per_matrix=ALL)
    assert layers.share == 1
    result = take_gradients(policy, layers, rows, token_budget=budget)
    for i, (prompt, answer) in enumerate(rows):
        policy.module.zero_grad()
        ids = torch.tensor([prompt + answer])
        logits = policy.module(input_ids=ids[:, :-1]).logits[0, len(prompt) - 1 :]
        logp = torch.log_softmax(logits, -1).gather(1, ids[0, len(prompt) :, None]).sum()
        torch.autograd.backward(logp)
        of_b = torch.cat([m.lora_B[ADAPTER].weight.grad.flatten() for m in adapter_layers(policy.module).values()])
        of_a = torch.cat([m.lora_A[ADAPTER].weight.grad.flatten() for m in adapter_layers(policy.module).values()])
        assert float(result.sums[i]) == pytest.approx(logp.item(), abs=1e-3)
        ours = result.b0[i].float() + result.b1[i].float()
        assert float((ours - of_b).norm() / of_b.norm()) < 0.01  # kept in bf16
        assert float((result.a1[i].float() - of_a).norm() / of_a.norm()) < 0.01
        b = torch.cat([m.flatten() for m in layers.b])
        assert float(result.along[i].sum() + result.cross[i].sum()) == pytest.approx(
            float(of_b @ b), rel=1e-3, abs=1e-3
        )
        moved = torch.cat([(a - a0).flatten() for a, a0 in zip(layers.a, layers.starts, strict=True)])
        assert float(result.cross[i].sum()) == pytest.approx(float(of_a @ moved), rel=1e-2, abs=1e-2)


def test_drawn_coordinates_are_those_of_the_whole_and_the_error_is_told():
    policy, starts = moved_policy()
    rows = [(e.prompt, a) for e in encode_pairs(tiny_model().encoder, pairs(6).pairs) for a in e.answers]
    whole = take_gradients(policy, Layers.draw(policy.module, starts, per_matrix=ALL), rows, token_budget=500)
    layers = Layers.draw(policy.module, starts, per_matrix=24)
    few = take_gradients(policy, layers, rows, token_budget=500)
    ends = np.cumsum([0, *(m.numel() for m in layers.b)])
    where = torch.cat([pick + int(start) for pick, start in zip(layers.pick_b, ends[:-1], strict=True)])
    assert torch.allclose(few.b0.float(), whole.b0[:, where].float(), rtol=0.01, atol=1e-3)
    assert torch.allclose(few.along, whole.along, atol=1e-4)
    counts = torch.tensor([len(a) for _, a in rows])
    exact, sampled = (Kernel(g, g.sums, counts).sampling_error for g in (whole, few))
    assert exact < 0.01 < sampled


# -- simulation ----------------------------------------------------------------------


def linearization_of(intervention, training_data, *, steps: int = 4, held_out=(), model=None):
    model = model or tiny_model()
    task = intervention.task(model, training_data, ctx=context(guard=OFF))
    chosen = choose_examples(task, first=steps, most=128)
    rows = number_rows(model, task, chosen, held_out)
    pilot = run_pilot(task, rows, steps=steps, ctx=RunContext())
    return task, rows, linearize(task, rows, held_out, pilot, read_reference(task, chosen, None), OFF, None)


@pytest.mark.long
@pytest.mark.parametrize(
    "intervention",
    [
        Dpo(beta=0.1, weights=Weights(rank=2), training=Training(learning_rate=3e-4, epochs=4)),
        Dpo(loss="ipo", weights=Weights(rank=2), training=Training(learning_rate=2e-4, epochs=4, schedule="constant")),
        Dpo(loss="simpo", weights=Weights(rank=2, num_layers=1), training=Training(learning_rate=5e-4, epochs=3)),
        Sft(weights=Weights(rank=2), training=Training(learning_rate=2e-4, epochs=4, batch_size=3)),
    ],
    ids=["dpo", "ipo", "simpo on the last layer", "sft"],
)
def test_a_simulated_run_moves_answers_as_the_real_one(intervention):
    training_data, model = pairs(12), tiny_model()
    task, rows, linearization = linearization_of(intervention, training_data, model=model)
    plan = Plan(rows.examples, rows.order(task.order), task.objective, task.training)
    run = simulate(linearization.kernel, plan, watched=rows.neutral, read_after=[len(task.order)])
    foreseen = run.moved[len(task.order)]
    policy = plain_policy(
        train(task, context()).model, Weights(rank=2), task.training, packed=task.packed
    )  # a new adapter adds nothing
    layers = Layers.draw(
        policy.module, {n: m.lora_A[ADAPTER].weight for n, m in adapter_layers(policy.module).items()}, per_matrix=1
    )
    real = take_gradients(policy, layers, rows.rows, token_budget=500).sums - linearization.kernel.base
    trained_rows = rows.examples.flatten()
    a, b = foreseen[trained_rows].numpy(), real[trained_rows].numpy()
    assert np.corrcoef(a, b)[0, 1] > 0.97
    assert np.abs(a).mean() == pytest.approx(np.abs(b).mean(), rel=0.2)
    assert len(run.steps) == len(task.order)
    assert all(math.isfinite(step.loss) for step in run.steps)


def test_simulated_losses_begin_as_the_real_ones(tmp_path):
    intervention = Dpo(beta=0.1, weights=Weights(rank=2), training=Training(learning_rate=3e-4, epochs=2))
    training_data = pairs(12)
    task, rows, linearization = linearization_of(intervention, training_data)
    run = simulate(
        linearization.kernel,
        Plan(rows.examples, rows.order(task.order), task.objective, task.training),
        watched=rows.neutral,
        read_after=[],
    )
    train(task, ctx=context(folder=tmp_path))
    real = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text(encoding="utf-8").splitlines()]
    for simulated, step in zip(run.steps, real, strict=True):
        assert simulated.loss == pytest.approx(step["loss"], rel=0.1)
        assert simulated.margin == pytest.approx(step["margin"], abs=0.05)
        assert simulated.grad_norm == pytest.approx(step["grad_norm"], rel=0.35)


def test_examples_beyond_the_most_are_stood_in_for():
    model, training_data = tiny_model(), pairs(12)
    task = Dpo(weights=Weights(rank=2), training=Training(epochs=1)).task(model, training_data, ctx=context(guard=OFF))
    rows = number_rows(model, task, choose_examples(task, first=1, most=5), [])
    assert set(task.order[0]) <= set(rows.chosen)
    assert rows.examples.shape == (5, 2)
    assert rows.unsampled_examples == 7
    order = rows.order(task.order)
    assert [len(step) for step in order] == [len(step) for step in task.order]
    assert {i for step in order for i in step} == set(range(5))
    for k, i in enumerate(rows.chosen):
        assert rows.place[i] == k


def test_the_pilot_goes_to_the_middle_of_the_way():
    training = Training(learning_rate=1e-4, epochs=1, warmup=0.0, schedule="constant")
    assert distance(training, 30) == pytest.approx(30e-4)
    assert pilot_rate(training, 30, 10) == pytest.approx(1.5e-4)
    assert pilot_rate(training, 3000, 10) == pytest.approx(3e-4)  # bounded


# -- flips ---------------------------------------------------------------------------


@given(c=st.floats(0.01, 200), beta=st.floats(0.001, 2))
def test_dpos_flip_is_chens_arithmetic(c, beta):
    reference = torch.tensor([[-50.0 - c, -50.0]], dtype=torch.float64)
    points = flip_points(find_loss("dpo"), beta, {"label_smoothing": 0.0}, reference, torch.tensor([[7, 9]]))
    assert points.c[0] == pytest.approx(c, rel=1e-6)
    assert points.margin[0] == pytest.approx(beta * c, rel=1e-6)
    assert points.loss[0] == pytest.approx(math.log1p(math.exp(-beta * c)), rel=1e-6, abs=1e-12)
    assert points.weight[0] / points.weight_at_start[0] == pytest.approx(
        2 / (1 + math.exp(beta * c)), rel=1e-5, abs=1e-9
    )


def cost_of(loss: str, beta: float, c: float = 8.0, *, cap: float = 2.0):
    own = parameters(loss)
    own.pop("beta")
    return flip_cost(loss, beta, own, [[-30.0 - c, -30.0], [-10.0, -40.0]], [[10, 10], [10, 10]], cap=cap)


def test_every_loss_has_a_cost_or_a_reason():
    for name in LOSSES:
        cost = cost_of(name, 0.1)
        assert (cost is None) == bool(LOSSES[name].no_flip_point)
        if cost is not None:
            assert (cost.pairs, cost.wrong) == (2, 1)
            assert cost.quantiles["c"]["0.5"] == pytest.approx(0.8 if LOSSES[name].per_token else 8.0, rel=1e-6)


def test_losses_that_stop_before_the_flip_say_so():
    assert cost_of("hinge", 0.05).faded == 0  # a margin of 0.4, the hinge ends at 1
    assert cost_of("hinge", 0.2).faded == 1
    assert cost_of("ipo", 0.1).faded == 0  # its optimum is 5 nats per token
    stopped = cost_of("ipo", 1.0)  # 0.5, and 0.8 are needed
    assert stopped.faded == 1
    assert "stops pushing" in stopped.summary
    assert cost_of("hypo", 0.1).quantiles["loss"]["0.5"] == pytest.approx(math.log(2))
    assert cost_of("simpo", 2.0).beta_for_half is None


def test_a_cap_that_excludes_the_flip_names_the_beta_that_would_do():
    cost = flip_cost("dpo", 0.1, {}, [[-110.0, -50.0]] * 3, [[100, 100]] * 3, cap=2.0)
    assert cost.over == 3
    assert cost.quantiles["margin"]["0.5"] == pytest.approx(6.0)
    assert cost.beta_for_half == pytest.approx(0.033)
    assert "need a margin of 6.0" in cost.summary
    assert "β ≤ 0.033 would do" in cost.summary
    assert flip_cost("dpo", 0.1, {}, [[-1.0, -2.0]], [[3, 3]], cap=2.0).wrong == 0


# -- signal, sweep, verdict ----------------------------------------------------------


def test_a_common_direction_is_told_from_none():
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((40, 500))
    common = signal_of((noise + 0.5) @ (noise + 0.5).T)
    assert common.p_value < 0.01
    assert common.mean_cosine == pytest.approx(0.2, abs=0.05)
    assert common.snr > 2
    alone = signal_of(noise @ noise.T)
    assert alone.p_value > 0.05
    assert abs(alone.mean_cosine) < 0.02


def test_a_sweep_is_a_grid_of_options():
    grid = parse_sweep(Dpo(), ["beta=0.01,0.1", "learning_rate=1e-6..1e-4:3"])
    assert len(grid) == 6
    assert {g["beta"] for g in grid} == {0.01, 0.1}
    assert sorted({g["learning_rate"] for g in grid}) == pytest.approx([1e-6, 1e-5, 1e-4])
    assert parse_sweep(Dpo(), ["loss=dpo,ipo"]) == [{"loss": "dpo"}, {"loss": "ipo"}]
    assert {"learning_rate": 1e-4, "beta": 0.1} not in default_sweep({"learning_rate": 1e-4, "beta": 0.1})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("beta", "not key=values"),
        ("rank=4,8", "cannot be swept"),
        ("nothing=1", "cannot be swept"),
        ("beta=1..x", "not two numbers"),
        ("beta=1..0.1", "cannot be walked"),
        ("beta=zero", "beta is 'zero'"),
        ("beta=-1,2", "beta is -1"),
        ("gamma=1,2", "has no gamma"),
    ],
)
def test_bad_sweeps_are_refused(text, message):
    with pytest.raises(InputError, match=message):
        parse_sweep(Dpo(), [text])
    with pytest.raises(InputError, match="settings"):
        parse_sweep(Dpo(), ["beta=1e-3..1:30", "learning_rate=1e-6..1e-3:30"])


def moment(chosen=5.0, rejected=-5.0) -> StepForecast:
    return StepForecast(
        step=9, loss=0.2, margin=1.0, train_chosen_nats=1.0, train_rejected_nats=-1.0, test_chosen_nats=chosen,
        test_rejected_nats=rejected, test_gap_nats=0.1, facts_gap_nats=None, neutral_nats=0.0,
    )  # fmt: skip


def setting(expected: float, *, guard_utilisation=0.1, extrapolation=1.0, predicted_stop=None) -> SweepPoint:
    flips = Flips(pairs=20, wrong=10, expected=expected, low=0, high=10)
    return SweepPoint(
        options={"learning_rate": 1e-4}, steps=9, flips=flips, margin=1.0, test_gap_nats=0.1, seconds=0.1,
        predicted_stop=predicted_stop, guard_utilisation=guard_utilisation, extrapolation=extrapolation,
    )  # fmt: skip


def judged(**changes):
    facts = {
        "pairs": 20,
        "flips": Flips(pairs=20, wrong=10, expected=8.0, low=5, high=10),
        "predicted_stop": None,
        "guard_utilisation": 0.1,
        "extrapolation": 2.0,
        "last": moment(),
        "settings": (),
        "cost": None,
        "signal": Signal(pairs=20, mean_cosine=0.1, snr=3.0, p_value=0.001),
        "pilot": PilotReport(steps=10, learning_rate=1e-4),
    }
    return judge_forecast(**(facts | changes))


FEW = Flips(pairs=20, wrong=10, expected=1.0, low=0, high=3)
STOP = PredictedStop(step=7, reasons=("neutral text lost 0.2",))


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({}, "trainable"),
        ({"pairs": 7}, "none"),
        ({"flips": None}, "none"),
        ({"flips": Flips(pairs=7, wrong=5, expected=5, low=5, high=5)}, "none"),
        ({"flips": Flips(pairs=20, wrong=0, expected=0, low=0, high=0)}, "nothing to flip"),
        ({"flips": FEW}, "not at these settings"),
        ({"predicted_stop": STOP}, "not within the guard's limits"),
        ({"guard_utilisation": 0.8}, "not at these settings"),
        ({"extrapolation": 4.5}, "not at these settings"),
        ({"flips": FEW, "last": moment(9.0, 8.0)}, "style only"),
        ({"flips": FEW, "settings": [setting(9.0)]}, "only with these settings"),
        ({"predicted_stop": STOP, "settings": [setting(6.0)]}, "only with these settings"),
        ({"flips": FEW, "settings": [setting(9.0, predicted_stop=STOP)]}, "not within the guard's limits"),
        ({"flips": FEW, "settings": [setting(9.0, guard_utilisation=0.9)]}, "not at these settings"),
        ({"flips": FEW, "settings": [setting(9.0, extrapolation=5.0)]}, "not at these settings"),
    ],
)
def test_the_verdict_follows_from_the_numbers(changes, kind):
    verdict = judged(**changes)
    assert verdict.kind == kind
    assert verdict.reasons
    assert verdict.advice or kind == "trainable"


def test_what_hinders_is_named():
    """A run that flips half of its pairs was once called impossible by this method."""
    most = judged(flips=FEW, settings=[setting(9.0, predicted_stop=STOP), setting(2.0)])
    assert (
        "most pairs would flip with learning_rate=0.0001, and the guard is expected to stop it about step 7"
        in (most.reasons[-1])
    )
    risky = judged(flips=FEW, settings=[setting(9.0, guard_utilisation=0.9), setting(9.5, predicted_stop=STOP)])
    assert risky.kind == "not at these settings"
    assert (
        "learning_rate=0.0001: 9.0 [0, 10] of 10 pairs wrong per token are expected to flip, but 90% of a limit"
        in (risky.reasons[-1])
    )
    none = judged(flips=FEW, settings=[setting(2.0), setting(3.0)])
    assert (
        "of 3 settings that were tried none flips half of them, and at the best no limit stops it: 3.0"
        in (none.reasons[-1])
    )


def test_a_limit_that_is_nearly_reached_is_named_beside_the_one_that_is_passed():
    stop = PredictedStop(step=7, reasons=("chosen answers lost 0.62", "loss rose"), close={"neutral_drop": 0.8})
    verdict = judged(predicted_stop=stop)
    assert "chosen answers lost 0.62; loss rose; simulated drifts fall short" in verdict.reasons[-1]
    assert "neutral_drop (80 % of its limit) may be what stops it" in verdict.reasons[-1]


@pytest.mark.parametrize(("loss", "how"), [("dpo", "wrong by their sums"), ("simpo", "wrong per token")])
def test_a_wrong_pair_says_by_what_it_is_wrong(loss, how):
    """[-6, -4] with 6 and 2 tokens: the chosen answer is less likely by its sum, and likelier per token."""
    cost = flip_cost(loss, 0.1, {}, [[-6.0, -4.0], [-9.0, -2.0]], [[6, 2], [3, 3]], cap=20.0)
    assert cost.wrong == (2 if loss == "dpo" else 1)
    assert how in cost.summary


def test_no_common_direction_is_named_with_what_to_do():
    none = Signal(pairs=20, mean_cosine=0.0, snr=0.9, p_value=0.6)
    verdict = judged(flips=FEW, signal=none)
    assert any("no common direction" in reason for reason in verdict.reasons)
    assert any("on-policy" in advice for advice in verdict.advice)


# -- the whole -----------------------------------------------------------------------


QUICK = Dpo(weights=Weights(rank=2), training=Training(learning_rate=1e-3, epochs=3))


def test_a_forecast_leaves_the_model_as_it_is_and_tells_every_pair():
    model, training_data, asked = tiny_model(), pairs(10), questions()
    before = model.scope()
    result = forecast(QUICK, model, training_data, held_out=asked, pilot_steps=3, ctx=context(guard=OFF))
    assert model.scope() == before
    assert result.steps == 9
    assert {o.id for o in result.pair_forecasts} == {p.id for p in training_data.pairs} | {q.pair.id for q in asked}
    assert result.flips.pairs == 9
    assert result.step_forecasts[-1].step == 9
    assert result.pilot.correlation > 0.9
    assert result.verdict.kind != "none"
    assert set(result.seconds) == {"arithmetic", "pilot", "gradients", "simulation", "sweep"}
    assert Forecast.model_validate_json(result.model_dump_json()) == result


@pytest.mark.long
def test_the_same_forecast_twice_is_the_same():
    def made():
        result = forecast(QUICK, tiny_model(), pairs(10), held_out=questions(), pilot_steps=3, ctx=context(guard=OFF))
        return result.model_dump(exclude={"seconds", "settings"})

    assert made() == made()


@pytest.mark.parametrize(
    ("intervention", "message"),
    [
        (Dpo(weights=Weights(tune="full")), "tune=full"),
        (Dpo(loss="kto", weights=Weights(rank=2)), "what a flip costs under kto"),
        (Dpo(loss="orpo", weights=Weights(rank=2)), "what a flip costs under orpo"),
        (Sft(weights=Weights(rank=2)), "does not train on pairs"),
    ],
    ids=["full", "kto", "orpo", "sft"],
)
def test_what_cannot_be_foreseen_is_said(intervention, message):
    result = forecast(
        intervention, tiny_model(), pairs(10), held_out=questions(), pilot_steps=2, sweep=(), ctx=context(guard=OFF)
    )
    assert any(message in line for line in result.unknown)
    full = message == "tune=full"
    assert (result.flips is None) == full
    assert (result.cost is not None) == full


def test_few_pairs_get_intervals_and_no_verdict():
    result = forecast(QUICK, tiny_model(), pairs(5), held_out=questions(), pilot_steps=2, ctx=context(guard=OFF))
    assert result.verdict.kind == "none"
    assert "5 pairs" in result.verdict.reasons[0]
    assert result.flips.low <= result.flips.expected <= result.flips.high


def test_a_model_without_weights_is_refused():
    with pytest.raises(InputError, match="changes weights"):
        forecast(QUICK, ScriptedModel(), pairs(8))


@pytest.mark.long
def test_too_little_memory_takes_fewer_coordinates_or_says_what_is_needed(monkeypatch):
    model = tiny_model()

    def forecast_with(free: int):
        monkeypatch.setattr(import_module("conviction.forecasting.simulation"), "available", lambda _device: free)
        return forecast(QUICK, model, pairs(10), pilot_steps=2, sweep=(), ctx=context(guard=OFF))

    enough = forecast_with(10**9)
    assert forecast_with(300_000).sampling_error > enough.sampling_error
    with pytest.raises(ModelError, match="MB or more"):
        forecast_with(1000)


def test_a_pilot_reads_what_a_blind_guard_does_not():
    blind = forecast(QUICK, tiny_model(), pairs(10), pilot_steps=2, sweep=(), ctx=context(guard=Guard(mode="none")))
    off = forecast(QUICK, tiny_model(), pairs(10), pilot_steps=2, sweep=(), ctx=context(guard=Guard(mode="off")))
    assert blind.verdict == off.verdict
    assert blind.pilot == off.pilot
    assert blind.provenance["guard"]["mode"] == "none"


def test_a_pilot_that_the_guard_stops_is_told():
    wild = dataclasses.replace(QUICK, training=Training(learning_rate=0.5, epochs=8, schedule="constant", warmup=0.0))
    strict = Guard(max_neutral_drop=1e-4, sample_tokens=8)
    wrong = [
        HeldOutPair(PreferencePair(q.pair.id, q.pair.messages, q.pair.rejected, q.pair.chosen), q.role)
        for q in questions()
    ]
    result = forecast(
        wild, tiny_model(), pairs(10), held_out=questions() + wrong, pilot_steps=4, sweep=(), ctx=context(guard=strict)
    )
    assert result.pilot.predicted_stop is not None
    assert result.predicted_stop is not None
    assert result.predicted_stop.step <= result.pilot.predicted_stop.step
    assert result.verdict.kind == "not within the guard's limits"


# -- frozen, and scored --------------------------------------------------------------


def test_a_forecast_is_frozen_once_and_before_training(tmp_path):
    result = forecast(Dpo(weights=Weights(tune="full")), tiny_model(), pairs(8))
    with Run.start(tmp_path / "r", topic="tea", verb="x") as run:
        with pytest.raises(RunError, match="no forecast"):
            run.load_forecast(Forecast)
        assert run.save_forecast(result) is result
        assert run.load_forecast(Forecast) == result
        with pytest.raises(RunError, match="written once"):
            run.save_forecast(result)
    with Run.start(tmp_path / "s", topic="tea", verb="x") as run:
        (run.folder / "steps.jsonl").write_text("{}\n")
        with pytest.raises(RunError, match="comes before"):
            run.save_forecast(result)
        (run.folder / "forecast.json").write_text("{")
        with pytest.raises(RunError, match="no readable forecast"):
            run.load_forecast(Forecast)


def outlook(name: str, start: float, gap: float, p_correct: float) -> PairForecast:
    moved = {
        "chosen_nats": 1.0,
        "rejected_nats": -1.0,
        "question": Question(turns=(("user", name),), wanted="x", other="y"),
    }
    return PairForecast(
        id=name, split="test", role="target", start_nats=start, gap_nats=gap, p_correct=p_correct, **moved
    )


def sides(gap: float) -> tuple[AnswerScore, AnswerScore]:
    return AnswerScore((1,), (-2.0 + gap,)), AnswerScore((1,), (-2.0,))


def test_a_score_counts_what_happened():
    expected = [("a", -1.0, 0.5, 0.9), ("b", -1.0, -0.5, 0.2), ("c", 1.0, 1.2, 1.0), ("d", -1.0, -0.9, 0.1)]
    made = SimpleNamespace(pair_forecasts=[outlook(*e) for e in expected], predicted_stop=None)
    before = {name: sides(start) for name, start, _, _ in expected}
    after = {name: sides(gap) for name, gap in (("a", 1.0), ("b", -0.2), ("c", 1.1), ("d", 0.1))}
    score = score_forecast(made, before, after, guard_stop=None)
    assert (score.pairs, score.wrong, score.flips) == (4, 3, 2)
    assert score.expected_flips == pytest.approx(1.2)
    assert score.brier == pytest.approx((0.1**2 + 0.2**2 + 0.9**2) / 3)
    assert score.brier_constant == pytest.approx(2 / 9)
    assert score.expected_nats == pytest.approx((1.5 + 0.5 + 0.2 + 0.1) / 4)
    assert score.real_nats == pytest.approx((2.0 + 0.8 + 0.1 + 1.1) / 4)
    assert score.relative_error == pytest.approx(0.425)
    assert score.spearman == pytest.approx(0.4)
    other = score_forecast(made, before | {"c": sides(-0.1), "b": sides(0.2)}, after, guard_stop=None)
    assert (other.wrong, other.expected_flips) == (3, pytest.approx(1.2))  # a frozen count stays what it was
    stopped = SimpleNamespace(pair_forecasts=made.pair_forecasts, predicted_stop=PredictedStop(step=12, reasons=("x",)))
    score = score_forecast(stopped, before, None, guard_stop=10)
    assert score.stop_error == pytest.approx(0.2)
    assert score.real_nats is None
