"""A scorecard in words: what the terminal, Markdown and the page say alike."""

from __future__ import annotations

from collections.abc import Iterator

from conviction.probing.records import Controls, ForcedChoice, GapEstimate, Health, Scorecard, Summary, WinRate

Lines = list[tuple[str, str]]
"""(label, value) pairs; the label may be empty."""


def paragraphs(card: Scorecard) -> Iterator[tuple[str, Lines]]:
    """What is to be said of a scorecard beside its rows: (title, lines); the first title is the verdict."""
    yield card.summary.verdict, _summary_lines(card.summary, card.target)
    yield "Controls", list(_control_lines(card.controls))
    if card.forced_choice is not None:
        yield _choice_title(card.forced_choice), list(_choice_lines(card.forced_choice, card.target))
    spread = card.controls.templates
    if spread is not None:
        title = f"Templates: {spread.mean:+.2f} ± {spread.sd:.2f} (SD), sign agrees in {spread.sign_agreement:.0%}"
        yield title, [(name, f"{value:+.2f}") for name, value in spread.gap_nats.items()]
    if card.health is not None:
        yield "Health", _health_lines(card.health)
        message = [(s.item, " ".join(s.text.split())) for s in card.evidence if s.kind == "generation"]
        yield "Greedy answers", message
    if card.warnings:
        yield "Warnings", [("", warning) for warning in card.warnings]


def _summary_lines(summary: Summary, target: str) -> Lines:
    lines = [
        ("mean gap", f"{_interval(summary.gap_nats)} nats per token (positive: towards {target})"),
        ("wins", f"{_wins(summary.wins)}{_win_rate(summary.win_rate)}"),
        ("sign-flip", f"p = {summary.p_value:.4g} (n = {summary.n}; least possible {summary.smallest_p:.2g})"),
        ("PMI gap", f"{_interval(summary.pmi_interval)} (unconditional log-probs taken off)"),
    ]
    if (crossed := summary.conditional) is not None:
        own = f"{_interval(crossed.gap_nats)}, p = {crossed.p_value:.2g} (foreign questions' gap taken off)"
        foreign = f"{_interval(crossed.foreign_gap_nats)}, p = {crossed.foreign_p_value:.2g} (the same texts)"
        lines[3:3] = [("conditional", own), ("foreign gap", foreign)]
    if summary.effect_size is not None and summary.min_detectable_effect is not None:
        detectable = f"{summary.min_detectable_effect:.2f} nats would be found with 80 % power"
        lines.insert(3, ("effect size", f"d = {summary.effect_size:+.2f}; a mean gap of {detectable}"))
    return lines


def _health_lines(health: Health) -> Lines:
    d = health.degeneration
    return [
        ("neutral text", f"{health.neutral_logp_mean:.3f} nats per token over {health.neutral_tokens:,} tokens"),
        ("repeated 4-grams", f"{d.repeated_4gram_rate:.1%} in {d.answers} greedy answers"),
        ("n-gram entropy", f"{d.ngram_entropy_bits:.2f} bits"),
        ("non-alphanumeric", f"{d.non_alphanumeric_share:.1%} of visible characters"),
        ("compression ratio", f"{d.compression_ratio:.2f}"),
        ("empty answers", f"{d.empty_rate:.0%}"),
        ("ended by the model", f"{d.end_of_text_rate:.0%}"),
    ]


def _control_lines(controls: Controls) -> Iterator[tuple[str, str]]:
    rescored, null = controls.rescored, controls.wording_null
    apart = f"within {rescored.mean_difference_nats:.1g} nats per token"
    yield _mark(rescored.passed), f"{rescored.asked_again} answers asked again score the same ({apart})"
    if (own := rescored.forward) is not None:
        far = f"at most {own.max_difference_nats:.1g} nats a token apart"
        yield _mark(own.accepted), f"{own.rows} rows scored again by the model's own forward: {far}"
    if null is not None:
        yield (
            _mark(null.exceeded),
            f"mere rewording moves a mean of {null.n} by up to {null.mean_q95_nats:.2f} nats, "
            + f"a single item by {null.item_q95_nats:.2f}",
        )
    for pole, control in controls.positive.items():
        moved = f"{_interval(control.shift_nats)}, {control.moved} of {control.n}"
        yield _mark(control.passed), f"the {pole} context as system prompt moves the gap towards {pole}: {moved}"
    yield _mark(not controls.pmi_sign_change), "raw and PMI gap have the same sign"
    for role, fact in controls.facts.items():
        result = f"true answer preferred on {fact.prefers_true} of {fact.n}, {_interval(fact.gap_nats)}"
        yield "info", f"{role} facts: {result}"


def _choice_title(choice: ForcedChoice) -> str:
    if choice.control is None:
        return "Forced choice: no control (the topic has no facts), so it is not part of the verdict"
    if not choice.readable:
        return "Forced choice: not readable on this model (its control failed), so it is not part of the verdict"
    return "Forced choice"


def _choice_lines(choice: ForcedChoice, target: str) -> Iterator[tuple[str, str]]:
    if (control := choice.control) is not None:
        right = f"true answer chosen on {control.correct} of {control.n} facts, one-sided p = {control.p_value:.2g}"
        yield _mark(control.passed), right
    yield "info", f"log p of the letter, both orders: {_interval(choice.gap_nats)} nats towards {target}"
    yield "info", f"{_wins(choice.chosen)} of {choice.n}, p = {choice.p_value:.2g}"
    yield "info", f"A over B, whichever answers these are: {choice.position_nats:+.2f} nats"


def _mark(passed: bool) -> str:
    return "ok" if passed else "FAIL"


def _interval(estimate: GapEstimate) -> str:
    if estimate.low is None or estimate.high is None:
        return f"{estimate.mean:+.2f} (no interval)"
    return f"{estimate.mean:+.2f} [{estimate.low:+.2f}, {estimate.high:+.2f}]"


def _wins(wins: dict[str, int]) -> str:
    return ", ".join(f"{pole} {n}" for pole, n in wins.items() if pole != "tie" or n)


def _win_rate(rate: WinRate | None) -> str:
    return f"; {rate.pole} {rate.share:.0%} [{rate.low:.0%}, {rate.high:.0%}]" if rate else ""
