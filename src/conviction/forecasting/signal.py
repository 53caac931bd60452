"""Is there a common direction to learn? What the pairs' gradients have in common, against what chance would give."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from conviction.forecasting.kernel import Kernel
from conviction.forecasting.records import Signal

__all__ = ["read_signal", "signal_of"]

DRAWS = 999


def read_signal(kernel: Kernel, pairs: Tensor) -> Signal | None:
    """The signal in the differences (chosen less rejected) of pairs, given by their rows [n, 2]; None for under two."""
    if len(pairs) < 2:
        return None
    g, point = kernel.gradients, kernel.point
    gram = torch.zeros(len(pairs), len(pairs), dtype=torch.float64)
    for parts, weight in (((g.b0, g.b1), point.weight_b), ((g.a1,), point.weight_a)):
        difference = sum(part[pairs[:, 0]].float() - part[pairs[:, 1]].float() for part in parts)
        gram += ((difference * weight) @ difference.T).double()  # type: ignore[union-attr]
    return signal_of(gram.numpy())


def signal_of(gram: NDArray[np.float64], *, seed: int = 0) -> Signal:
    """From the inner products [n, n] of n ≥ 2 pairs' gradients.

    p: a pair whose labels were drawn by a coin has its gradient's sign drawn by a coin.
    """
    n = len(gram)
    lengths = np.sqrt(np.diag(gram).clip(min=1e-30))
    cosines = gram / np.outer(lengths, lengths)
    mean_cosine = float((cosines.sum() - np.trace(cosines)) / (n * (n - 1)))
    # of gradients of length 1, so that no pair drowns the others
    observed = float(cosines.sum())
    spread = max(float(np.trace(cosines)) / n - observed / n**2, 1e-12) / (n - 1)  # variance of the mean
    signs = np.random.default_rng(seed).integers(0, 2, size=(DRAWS, n)) * 2.0 - 1
    chance = np.einsum("dn,nm,dm->d", signs, cosines, signs)
    p = (1 + int((chance >= observed - 1e-9).sum())) / (DRAWS + 1)
    return Signal(
        pairs=n, mean_cosine=mean_cosine, snr=math.sqrt(max(observed, 0.0)) / n / math.sqrt(spread), p_value=p
    )
