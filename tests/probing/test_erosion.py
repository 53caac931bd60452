"""What further training takes of a shift: a reference that erodes, one that does not, and the dose that halves it."""

from __future__ import annotations

import numpy as np
import pytest

from conviction.probing.depth_records import Measurement, Measurements
from conviction.probing.erosion import eroded, halving_dose, relabelled, together
from conviction.probing.metrics.durability import METRIC
from conviction.probing.paired import Comparison

N = 12
NOISE = np.random.default_rng(0).normal(0, 0.02, size=(8, N))


def measured(**levels: float) -> Measurements:
    """Gaps of twelve propositions; ``__`` stands for a colon, ``_`` for a hyphen."""
    return Measurements(
        model="m",
        topic="t",
        target="a",
        measurements=tuple(
            Measurement(
                metric=name.replace("__", ":").replace("_", "-"),
                item=f"p{i}",
                value=level + NOISE[k, i],
                samples=("r",),
            )
            for k, (name, level) in enumerate(levels.items())
            for i in range(N)
        ),
        provenance={},
    )


def control(reference: float, worn: float):
    result, *curve = METRIC.control.judge(measured(shift=-0.5, reference=reference, reference_benign=worn))
    assert [c.outcome for c in curve] in ([], ["no control"])  # benign training says nothing of the reversal curve
    return result


def test_a_reference_that_erodes_makes_durability_readable():
    result = control(0.5, 0.1)
    assert result.outcome == "readable"
    assert result.value == pytest.approx(0.4, abs=0.02)
    assert "a reference adapter's shift of +0.995" in result.text


@pytest.mark.parametrize("worn", [0.5, 0.4, 0.9], ids=["keeps it", "loses a tenth", "gains"])
def test_a_reference_that_keeps_its_shift_discriminates_nothing(worn):
    result = control(0.5, worn)
    assert result.outcome == "not readable"
    assert result.text.startswith("not discriminating: ")


def test_a_reference_that_did_not_move_is_no_control():
    assert control(-0.6, -0.6).outcome == "no control"
    assert METRIC.control.judge(measured(shift=-0.5))[0].outcome == "no control"


def test_eroded_asks_for_a_fifth_of_the_shift_beyond_chance():
    untouched, reference = measured(shift=-0.5), measured(shift=0.5)
    assert eroded(untouched, reference, measured(shift=0.2))
    assert not eroded(untouched, reference, measured(shift=0.4))
    assert not eroded(untouched, measured(shift=-0.6), measured(shift=-0.9))


def reversal(*levels: float):
    doses = {f"reversal__{512 * 2**k}": level for k, level in enumerate(levels)}
    change = Comparison(before=measured(shift=-0.5), after=measured(shift=0.5), reversal=measured(**doses))
    return next(p for p in METRIC.judge(change) if p.metric == "durability:reversal")


def test_the_dose_that_halves_a_shift_is_interpolated_between_points():
    result = reversal(0.3, -0.1)
    assert result.value == pytest.approx(512 + 512 * 0.3 / 0.4, rel=0.05)
    assert "of the other side's documents halve the shift (left: 80% after 512, 39% after 1,024)" in result.text
    assert result.measured_by == ("shift", "reversal:512", "reversal:1024")


def test_a_dose_that_is_not_reached_is_a_bound():
    result = reversal(0.5, 0.4)
    assert (result.value, result.low) == (None, 1024.0)
    assert result.text.startswith("more than 1,024 tokens of the other side's documents halve the shift")


def test_the_first_dose_is_interpolated_from_the_shift_itself():
    assert halving_dose([(0, 1.0), (512, 0.0)]) == 256
    assert halving_dose([(0, 1.0), (512, 0.6)]) is None


def test_gaps_of_several_trainings_fit_into_one_record_and_name_their_own_rows():
    one, two = relabelled(measured(shift=0.1, context=0.3), "reversal:1"), relabelled(measured(shift=0.2), "reversal:2")
    both = together([one, two])
    assert both.names("") == ["reversal:1", "reversal:2"]
    assert {m.samples for m in both.measurements} == {("reversal:1/r",), ("reversal:2/r",)}
