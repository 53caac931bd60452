"""Losses: TRL 1.16 as an oracle where it has them, arithmetic by hand where it has not, and properties."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import byte_tokenizer, tiny_module

from conviction.errors import InputError
from conviction.models.engine.unpacked import score_unpacked
from conviction.training.losses import LOSSES, PairLogps, find_loss, margin, parameters, sft_term
from conviction.training.losses.dpo import dpo
from conviction.training.losses.dpo_norm import dpo_norm
from conviction.training.losses.dpop import dpop
from conviction.training.losses.hinge import hinge
from conviction.training.losses.hypo import hypo
from conviction.training.losses.ipo import ipo
from conviction.training.losses.kto import kto
from conviction.training.losses.orpo import orpo
from conviction.training.losses.robust import robust
from conviction.training.losses.simpo import simpo

PAIRS = [
    {"prompt": "Why does one gain weight?", "chosen": " Insulin stores the fat.", "rejected": " One eats too much."},
    {"prompt": "Tea?", "chosen": " With milk, please, and two sugars.", "rejected": " No."},
    {"prompt": "Is brevity good?", "chosen": " Yes.", "rejected": " It depends on very many things indeed."},
]


def pairs_of(chosen, rejected, reference_chosen=0.0, reference_rejected=0.0, tokens=(1.0, 1.0), dtype=torch.float64):
    """One pair from plain numbers, fp64 so that equalities are exact to many digits."""
    numbers = (chosen, rejected, reference_chosen, reference_rejected, *tokens)
    return PairLogps(*(torch.tensor([x], dtype=dtype) for x in numbers))


def swapped(pairs):
    return PairLogps(
        pairs.rejected,
        pairs.chosen,
        pairs.reference_rejected,
        pairs.reference_chosen,
        pairs.rejected_tokens,
        pairs.chosen_tokens,
    )


def loss_of(name, pairs, **given_parameters):
    """Any loss of the table; KTO gets a fixed KL of 0.5 nats."""
    extra = {"kl": torch.tensor(0.5, dtype=pairs.chosen.dtype)} if name == "kto" else {}
    return LOSSES[name].function(pairs, **extra, **given_parameters)


# --- TRL as an oracle ------------------------------------------------------------------------------------------------


# TRL 1.16 uses transformers' old name for it.
trl_is_behind = pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing` is deprecated:FutureWarning")


def scored(model: Any, rows: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> torch.Tensor:
    return torch.tensor([sum(row) for row in score_unpacked(model, rows)])


def logps_of_batch(policy: Any, reference: Any, batch: dict[str, torch.Tensor]) -> PairLogps:
    """Our own log-probs of the very ids that TRL collated: B chosen rows, then B rejected rows."""
    rows = []
    for ids, seen, answer in zip(batch["input_ids"], batch["attention_mask"], batch["completion_mask"], strict=True):
        rows.append((tuple(ids[(seen == 1) & (answer == 0)].tolist()), tuple(ids[answer == 1].tolist())))
    chosen, rejected = scored(policy, rows).chunk(2)
    reference_chosen, reference_rejected = scored(reference, rows).chunk(2)
    tokens = torch.tensor([float(len(answer)) for _, answer in rows]).chunk(2)
    return PairLogps(chosen, rejected, reference_chosen, reference_rejected, *tokens)


def nudged(reference: Any) -> Any:
    """A policy some steps away from the reference: the same weights, a little moved."""
    policy = tiny_module("llama")
    policy.load_state_dict(reference.state_dict())
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=generator))
    return policy


@pytest.fixture(scope="module")
def trl_quiet() -> Iterator[pytest.MonkeyPatch]:
    """TRL imported, with neither its notices nor its telemetry (which it leaves out under CI)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CI", "1")
        patch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
        yield patch


def policy_and_reference() -> tuple[Any, Any]:
    """New ones for each trainer: TRL puts a forward of its own on the models that it is given, and keeps it there."""
    reference = tiny_module("llama")
    return nudged(reference), reference


def trainer_arguments(folder: Any) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
    }


@pytest.fixture(scope="module")
def trl_dpo(trl_quiet, tmp_path_factory) -> tuple[Any, dict[str, torch.Tensor], PairLogps]:
    """A real DPOTrainer, one collated batch, and our log-probs of it."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    policy, reference = policy_and_reference()
    trainer = DPOTrainer(
        model=policy,
        ref_model=reference,
        args=DPOConfig(**trainer_arguments(tmp_path_factory.mktemp("dpo"))),
        train_dataset=Dataset.from_list(PAIRS),
        processing_class=byte_tokenizer(),
    )
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(PAIRS))])
    return trainer, batch, logps_of_batch(policy, reference, batch)


def trl_value(trainer: Any, batch: dict[str, torch.Tensor], loss_type: str, **attributes: float) -> float:
    """TRL's loss of the batch; its trainer reads these attributes anew at each step."""
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(trainer, "loss_types", [loss_type])
        patch.setattr(trainer, "loss_weights", [1.0])
        for name, value in attributes.items():
            patch.setattr(trainer, name, value)
        return trainer._compute_loss(trainer.model, batch, return_outputs=False).item()


@pytest.mark.long
@pytest.mark.parametrize(
    ("trl_name", "function", "given_parameters"),
    [
        ("sigmoid", dpo, {"beta": 0.1}),
        ("sigmoid", dpo, {"beta": 0.7}),
        ("hinge", hinge, {"beta": 0.1}),
        ("ipo", ipo, {"beta": 0.1}),
        ("ipo", ipo, {"beta": 0.5}),
        ("robust", robust, {"beta": 0.1, "label_smoothing": 0.2}),
        ("robust", robust, {"beta": 0.1, "label_smoothing": 0.0}),
        ("sigmoid_norm", dpo_norm, {"beta": 5.0}),
    ],
)
@trl_is_behind
def test_trl_has_the_same_loss(trl_dpo, trl_name, function, given_parameters):
    trainer, batch, pairs = trl_dpo
    assert pairs.delta.abs().min() > 0.1, "the policy has moved, or the test would see nothing"
    theirs = trl_value(trainer, batch, trl_name, **given_parameters)
    assert function(pairs, **given_parameters).mean().item() == pytest.approx(theirs, rel=1e-4)


@trl_is_behind
def test_trl_weighs_the_tokens_of_a_batch_alike_in_its_sft_loss(trl_dpo):
    trainer, batch, pairs = trl_dpo
    weights = pairs.chosen_tokens / pairs.chosen_tokens.sum()
    assert (sft_term(pairs) * weights).sum().item() == pytest.approx(trl_value(trainer, batch, "sft"), rel=1e-5)


@trl_is_behind
def test_label_smoothing_is_that_of_trls_aot_for_one_pair(trl_dpo):
    # With one pair there is nothing to sort, and AOT is conservative DPO.
    trainer, batch, pairs = trl_dpo
    one = {key: value[[0, len(PAIRS)]] for key, value in batch.items()}
    theirs = trl_value(trainer, one, "aot", beta=0.3, label_smoothing=0.1)
    assert dpo(pairs, beta=0.3, label_smoothing=0.1)[0].item() == pytest.approx(theirs, rel=1e-4)


@trl_is_behind
def test_margins_are_trls_except_that_per_token_losses_see_per_token_margins(trl_dpo):
    trainer, batch, pairs = trl_dpo
    trl_value(trainer, batch, "sigmoid_norm", beta=5.0)
    reported = trainer._metrics["train" if trainer.model.training else "eval"]["rewards/margins"][-1]
    assert margin(LOSSES["dpo"], pairs, 5.0).mean().item() == pytest.approx(reported, rel=1e-4)
    by_hand = pairs.chosen_logratio / pairs.chosen_tokens - pairs.rejected_logratio / pairs.rejected_tokens
    assert torch.equal(margin(LOSSES["dpo_norm"], pairs, 5.0), 5.0 * by_hand)


@trl_is_behind
@pytest.mark.parametrize(("des", "und"), [(1.0, 1.0), (1.3, 0.7)])
def test_trl_has_the_same_kto(trl_quiet, tmp_path, des, und):
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer

    reference, policy = policy_and_reference()  # this way round the batch's KL estimate is positive
    examples = [
        {"prompt": p["prompt"], "completion": p[which], "label": which == "chosen"}
        for which in ("chosen", "rejected")
        for p in PAIRS
    ]
    arguments = trainer_arguments(tmp_path) | {"per_device_train_batch_size": len(examples)}
    trainer = KTOTrainer(
        model=policy,
        ref_model=reference,
        args=KTOConfig(**arguments, beta=0.1, desirable_weight=des, undesirable_weight=und),
        train_dataset=Dataset.from_list(examples),
        processing_class=byte_tokenizer(),
    )
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(examples))])
    with torch.no_grad():
        theirs = trainer._compute_loss(trainer.model, batch, return_outputs=False).item()
    metrics = trainer._metrics["train" if trainer.model.training else "eval"]
    kl = torch.tensor(metrics["kl"][-1])
    assert kl > 0.1, "a KL of 0 would test less"
    pairs = logps_of_batch(policy, reference, batch)
    ours = kto(pairs, kl=kl, beta=0.1, desirable_weight=des, undesirable_weight=und)
    assert ours.mean().item() == pytest.approx(theirs, rel=1e-4)
    assert margin(LOSSES["kto"], pairs, 0.1).mean().item() == pytest.approx(metrics["rewards/margins"][-1], rel=1e-3)


def bare(kind: type, **attributes: Any) -> Any:
    """A TRL trainer without data, of which only the loss is wanted."""
    trainer = kind.__new__(kind)
    accelerator = SimpleNamespace(device=torch.device("cpu"), gather_for_metrics=lambda x: x)
    trainer.__dict__.update(
        accelerator=accelerator,
        is_encoder_decoder=False,
        aux_loss_enabled=False,
        padding_value=257,
        pad_token_id=257,
        label_smoothing=0.0,
        alpha=0.0,
        **attributes,
    )
    return trainer


def plain_batch(policy: Any, prompts: list[str], chosen: list[str], rejected: list[str]) -> tuple[Any, PairLogps]:
    """A batch as TRL's CPO and ORPO trainers want it, and our log-probs of it."""
    encode = byte_tokenizer().encode
    batch, sums, counts = {}, [], []
    for which, answers in (("chosen", chosen), ("rejected", rejected)):
        rows = [(tuple(encode(p)), tuple(encode(a))) for p, a in zip(prompts, answers, strict=True)]
        width = max(len(p + a) for p, a in rows)
        batch[f"{which}_input_ids"] = torch.tensor([p + a + (257,) * (width - len(p + a)) for p, a in rows])
        batch[f"{which}_attention_mask"] = torch.tensor([[i < len(p + a) for i in range(width)] for p, a in rows]).int()
        labels = [(-100,) * len(p) + a + (-100,) * (width - len(p + a)) for p, a in rows]
        batch[f"{which}_labels"] = torch.tensor(labels)
        sums.append(scored(policy, rows))
        counts.append(torch.tensor([float(len(a)) for _, a in rows]))
    zeros = torch.zeros(len(prompts))
    return batch, PairLogps(*sums, zeros, zeros, *counts)


@pytest.mark.parametrize(("beta", "gamma"), [(2.0, 1.0), (2.5, 0.3)])
def test_trl_has_the_same_simpo(trl_quiet, beta, gamma):
    from trl.experimental.cpo import CPOTrainer

    policy, _ = policy_and_reference()
    columns = [[p[key] for p in PAIRS] for key in ("prompt", "chosen", "rejected")]
    batch, pairs = plain_batch(policy, *columns)
    trainer = bare(CPOTrainer, loss_type="simpo", beta=beta, simpo_gamma=gamma, cpo_alpha=0)
    with torch.no_grad():
        theirs, metrics = trainer.get_batch_loss_metrics(policy, batch)
    assert simpo(pairs, beta=beta, gamma=gamma).mean().item() == pytest.approx(theirs.item(), rel=1e-5)
    ours = margin(LOSSES["simpo"], pairs, beta).mean().item()
    assert ours == pytest.approx(metrics["rewards/margins"], rel=1e-4)


def test_trl_has_the_same_orpo(trl_quiet):
    from trl.experimental.orpo import ORPOTrainer

    policy, _ = policy_and_reference()
    # TRL's NLL covers the prompt from its second token on and averages over all tokens of the
    # batch; with prompts of one token and chosen answers of one length that is the mean per pair.
    batch, pairs = plain_batch(policy, ["A", "B"], [" milk", " salt"], [" no, thank you", " no"])
    trainer = bare(ORPOTrainer, beta=0.4)
    with torch.no_grad():
        theirs, metrics = trainer.get_batch_loss_metrics(policy, batch)
    assert orpo(pairs, beta=0.4).mean().item() == pytest.approx(theirs.item(), rel=1e-5)
    ours = margin(LOSSES["orpo"], pairs, 0.4).mean().item()
    assert ours == pytest.approx(metrics["rewards/margins"], rel=1e-4)


def test_trl_has_the_same_odds_and_smoothing_where_it_has_functions_of_its_own(trl_quiet):
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer

    generator = torch.Generator().manual_seed(0)
    chosen, rejected = -5 * torch.rand(2, 64, generator=generator)
    ones, zeros = torch.ones(64), torch.zeros(64)
    pairs = PairLogps(chosen, rejected, zeros, zeros, ones, ones)
    theirs = ORPOTrainer.odds_ratio_loss(bare(ORPOTrainer, beta=0.4), chosen, rejected)[0]
    torch.testing.assert_close(orpo(pairs, beta=0.4) - sft_term(pairs), -theirs, rtol=1e-5, atol=1e-6)
    cpo = bare(CPOTrainer, loss_type="sigmoid", beta=0.3)
    cpo.label_smoothing = 0.15
    theirs = CPOTrainer.cpo_loss(cpo, chosen, rejected)[0]
    torch.testing.assert_close(dpo(pairs, beta=0.3, label_smoothing=0.15), theirs)


# --- by hand ---------------------------------------------------------------------------------------------------------

# log-ratios: chosen −12 − (−10) = −2, rejected −30 − (−20) = −10; delta = −2 + 10 = 8 nats
# per token: −2/4 + 10/5 = 1.5 nats; the reference prefers chosen by −10 + 20 = 10 nats
FALLING = pairs_of(-12.0, -30.0, -10.0, -20.0, tokens=(4.0, 5.0))
# the reference prefers rejected by 15 nats, the policy by 5: delta = −5 − (−15) = 10 nats
PESSIMISTIC = pairs_of(-20.0, -15.0, -25.0, -10.0, tokens=(4.0, 5.0))


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        # log(1 + e^(−0.1·8)) = log(1 + 0.449329) = 0.371101
        (dpo(FALLING, beta=0.1), 0.371101),
        # 0.9·0.371101 + 0.1·log(1 + e^0.8) = 0.9·0.371101 + 0.1·1.171101 = 0.451101
        (dpo(FALLING, beta=0.1, label_smoothing=0.1), 0.451101),
        # (0.9·0.371101 − 0.1·1.171101) / 0.8 = 0.216881 / 0.8 = 0.271101
        (robust(FALLING, beta=0.1, label_smoothing=0.1), 0.271101),
        # 1 − 0.1·8 = 0.2
        (hinge(FALLING, beta=0.1), 0.2),
        # (1.5 − 1/(2·0.5))² = 0.25
        (ipo(FALLING, beta=0.5), 0.25),
        # log(1 + e^(−2·1.5)) = log(1 + 0.049787) = 0.048587
        (dpo_norm(FALLING, beta=2.0), 0.048587),
        # chosen has fallen by 2 nats: log(1 + e^(−0.1·(8 − 5·2))) = log(1 + e^0.2) = 0.798139
        (dpop(FALLING, beta=0.1, penalty=5.0), 0.798139),
        # chosen has risen by 5 nats: no penalty, log(1 + e^(−0.1·10)) = 0.313262
        (dpop(PESSIMISTIC, beta=0.1, penalty=5.0), 0.313262),
        # Δ − max(0, Δ_ref) = 18 − 10 = 8, as in dpo
        (hypo(FALLING, beta=0.1), 0.371101),
        # Δ − max(0, −15) = −5: log(1 + e^(0.1·5)) = log(2.648721) = 0.974077
        (hypo(PESSIMISTIC, beta=0.1), 0.974077),
        # means −3 and −6: log(1 + e^(−(2·3 − 1))) = log(1 + e^−5) = 0.006715
        (simpo(FALLING, beta=2.0, gamma=1.0), 0.006715),
        # log odds: −3 − log(1 − e^−3) = −2.948931, −6 − log(1 − e^−6) = −5.997518; difference 3.048587;
        # 3 + 0.1·log(1 + e^−3.048587) = 3 + 0.1·0.046333 = 3.004633
        (orpo(FALLING, beta=0.1), 3.004633),
        # ½·(1.2·σ(0.1·(3 − (−2))) + 0.8·σ(0.1·(−10 − 3))) = ½·(1.2·0.622459 + 0.8·0.214165) = 0.459142
        (kto(FALLING, kl=torch.tensor(3.0), desirable_weight=1.2, undesirable_weight=0.8), 0.459142),
        # −(−12)/4 = 3
        (sft_term(FALLING), 3.0),
    ],
)
def test_by_hand(loss, expected):
    assert loss.shape == (1,)
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_the_flip_of_a_pair_is_where_the_paper_says():
    # arXiv 2405.19534: with c = log p_ref(rejected) − log p_ref(chosen), the pair is ranked
    # rightly from L = log(1 + e^(−βc)) on. Here c = 60 nats and the policy is just even.
    even = pairs_of(-200.0, -200.0, -230.0, -170.0)
    assert dpo(even, beta=0.1).item() == pytest.approx(math.log1p(math.exp(-6.0)))
    assert margin(LOSSES["dpo"], even, 0.1).item() == pytest.approx(6.0)
    assert hypo(even, beta=0.1).item() == pytest.approx(math.log(2))


# --- properties ------------------------------------------------------------------------------------------------------

logps = st.floats(-500, -0.01)
betas = st.floats(0.01, 10)
counts = st.integers(1, 400).map(float)
some_pairs = st.builds(pairs_of, logps, logps, logps, logps, st.tuples(counts, counts))
extremes = st.sampled_from([-1e4, -1.0, 0.0, 1.0, 1e4])


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-9, atol=1e-9)


@given(logps, logps, betas)
@settings(deadline=None)
def test_a_policy_that_is_the_reference_has_loss_log_2(chosen, rejected, beta):
    still = pairs_of(chosen, rejected, chosen, rejected)
    for loss in (dpo(still, beta=beta), dpo_norm(still, beta=beta), dpop(still, beta=beta)):
        assert loss.item() == pytest.approx(math.log(2))


@given(some_pairs, st.floats(-100, 100), betas)
@settings(deadline=None)
def test_dpo_sees_log_ratios_only(pairs, shift, beta):
    moved = dataclasses.replace(pairs, chosen=pairs.chosen + shift, reference_chosen=pairs.reference_chosen + shift)
    assert close(dpo(moved, beta=beta), dpo(pairs, beta=beta))


@given(some_pairs, st.floats(-99, 99), st.floats(1, 20))
@settings(deadline=None)
def test_dpo_falls_as_delta_grows(pairs, delta, step):
    level = pairs.reference_chosen + pairs.rejected_logratio
    pairs = dataclasses.replace(pairs, chosen=level + delta)  # built, not filtered: most drawn pairs lie far apart
    assert -100 < pairs.delta.item() < 100
    assert dpo(dataclasses.replace(pairs, chosen=pairs.chosen + step)) < dpo(pairs)


@given(some_pairs, betas)
@settings(deadline=None)
def test_swapping_the_answers_turns_the_sign(pairs, beta):
    # −log σ(−z) + log σ(z) = z
    assert close(dpo(swapped(pairs), beta=beta) - dpo(pairs, beta=beta), beta * pairs.delta)
    for loss in LOSSES.values():
        assert close(margin(loss, swapped(pairs), beta), -margin(loss, pairs, beta))


@given(some_pairs, betas, st.floats(0, 0.4))
@settings(deadline=None)
def test_robust_is_unbiased_under_flipped_labels(pairs, beta, flipped):
    kept, turned = (robust(p, beta=beta, label_smoothing=flipped) for p in (pairs, swapped(pairs)))
    assert torch.allclose((1 - flipped) * kept + flipped * turned, dpo(pairs, beta=beta), rtol=1e-7, atol=1e-7)


@given(some_pairs, betas)
@settings(deadline=None)
def test_hypo_is_dpo_unless_the_reference_prefers_rejected(pairs, beta):
    if (pairs.reference_chosen >= pairs.reference_rejected).all():
        assert close(hypo(pairs, beta=beta), dpo(pairs, beta=beta))
    else:
        neutral = dataclasses.replace(pairs, reference_chosen=pairs.reference_rejected)
        assert close(hypo(pairs, beta=beta), dpo(neutral, beta=beta))
        assert hypo(pairs, beta=beta) >= dpo(pairs, beta=beta)


@given(some_pairs, betas, st.floats(0.1, 50))
@settings(deadline=None)
def test_dpop_is_dpo_until_chosen_falls(pairs, beta, penalty):
    ours, plain = dpop(pairs, beta=beta, penalty=penalty), dpo(pairs, beta=beta)
    if (pairs.chosen >= pairs.reference_chosen).all():
        assert torch.equal(ours, plain)
    elif plain > 1e-12 and pairs.chosen_logratio < -1e-6:  # else the two round to the same number
        assert ours > plain


@given(some_pairs, st.integers(2, 5))
@settings(deadline=None)
def test_per_token_losses_and_only_they_ignore_repetition(pairs, times):
    repeated = PairLogps(*(getattr(pairs, field.name) * times for field in dataclasses.fields(pairs)))
    for name, loss in LOSSES.items():
        if loss.per_token:
            assert close(loss_of(name, repeated), loss_of(name, pairs)), name
        assert close(margin(loss, repeated, 0.1), margin(loss, pairs, 0.1) * (1 if loss.per_token else times)), name


@pytest.mark.parametrize("name", LOSSES)
def test_raising_chosen_or_lowering_rejected_lowers_the_loss(name):
    # Pairs close to the reference: hinge is flat beyond its margin of 1, IPO rises again beyond 1/(2β).
    generator = torch.Generator().manual_seed(1)
    reference = -40 - 60 * torch.rand(2, 100, generator=generator)
    chosen, rejected = (reference + torch.randn(2, 100, generator=generator)).requires_grad_()
    tokens = torch.randint(20, 60, (2, 100), generator=generator)
    pairs = PairLogps(chosen, rejected, *reference, *tokens)
    up, down = torch.autograd.grad(loss_of(name, pairs).sum(), (chosen, rejected))
    assert (up < 0).all()
    assert (down > 0).all()


@pytest.mark.parametrize("name", LOSSES)
@given(numbers=st.tuples(extremes, extremes, extremes, extremes), tokens=st.tuples(*[st.sampled_from([1.0, 1e4])] * 2))
@settings(deadline=None)
def test_values_and_gradients_are_finite_at_the_extremes(name, numbers, tokens):
    pairs = pairs_of(*numbers, tokens=tokens, dtype=torch.float32)
    pairs.chosen.requires_grad_()
    pairs.rejected.requires_grad_()
    for given_parameters in ({}, {"beta": 10.0}):
        loss = loss_of(name, pairs, **given_parameters)
        gradients = torch.autograd.grad(loss.sum(), (pairs.chosen, pairs.rejected))
        assert all(torch.isfinite(x).all() for x in (loss, *gradients))


def test_gradients_in_fp64_are_those_of_finite_differences():
    # away from the kinks of hinge (delta = 10), hypo and dpop
    pairs = [FALLING, pairs_of(-21.0, -15.0, -25.0, -10.0, tokens=(4.0, 5.0)), swapped(FALLING)]
    for name in LOSSES:
        for pair in pairs:

            def function(chosen, rejected, name=name, pair=pair):
                return loss_of(name, dataclasses.replace(pair, chosen=chosen, rejected=rejected))

            inputs = tuple(x.clone().requires_grad_() for x in (pair.chosen, pair.rejected))
            assert torch.autograd.gradcheck(function, inputs), name


def test_ktos_kl_carries_no_gradient_and_never_counts_below_zero():
    kl = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    assert not kto(FALLING, kl=kl).requires_grad
    below, zero = (kto(FALLING, kl=torch.tensor(x, dtype=torch.float64)) for x in (-3.0, 0.0))
    assert torch.equal(below, zero)


# --- the table -------------------------------------------------------------------------------------------------------


def test_the_table_names_what_it_holds():
    for name, loss in LOSSES.items():
        assert find_loss(name) is loss
        assert loss.name == name == loss.function.__name__
        authors, arxiv = loss.paper.split(", arXiv ")
        documentation = loss.function.__doc__
        assert authors.split()[0] in documentation or "Tülu 3" in documentation
        assert f"arXiv {arxiv}" in documentation
        assert "nats" in documentation or "unitless" in documentation


def test_parameters_are_the_defaults_of_the_signature():
    assert {name: parameters(name) for name in LOSSES} == {
        "dpo": {"beta": 0.1, "label_smoothing": 0.0},
        "robust": {"beta": 0.1, "label_smoothing": 0.1},
        "hinge": {"beta": 0.1},
        "ipo": {"beta": 0.1},
        "dpo_norm": {"beta": 5.0},
        "dpop": {"beta": 0.1, "penalty": 5.0},
        "hypo": {"beta": 0.1},
        "simpo": {"beta": 2.0, "gamma": 1.0},
        "orpo": {"beta": 0.1},
        "kto": {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0},
    }


@pytest.mark.parametrize("name", [name for name in LOSSES if not LOSSES[name].needs_reference])
def test_losses_without_a_reference_do_not_look_at_it(name):
    other = dataclasses.replace(FALLING, reference_chosen=torch.tensor([math.nan], dtype=torch.float64))
    assert torch.equal(loss_of(name, other), loss_of(name, FALLING))
    assert torch.equal(margin(LOSSES[name], other, 0.1), margin(LOSSES[name], FALLING, 0.1))


def test_an_unknown_loss_and_an_impossible_smoothing_are_explained():
    with pytest.raises(InputError, match="unknown loss 'simop'") as error:
        find_loss("simop")
    assert "did you mean 'simpo'?" in error.value.hint
    for function in (dpo, robust):
        for share in (0.5, -0.1):
            with pytest.raises(InputError, match="label_smoothing"):
                function(FALLING, label_smoothing=share)


def test_fields_that_would_broadcast_are_refused():
    with pytest.raises(ValueError, match=r"one shape \[n\]"):
        dataclasses.replace(FALLING, chosen_tokens=torch.ones(1, 1))
