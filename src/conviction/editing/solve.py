"""The linear algebra of edits: from keys and wanted changes to an update of the matrix between them. Pure."""

from __future__ import annotations

import torch
from torch import Tensor

from conviction.models.delta import LowRank

__all__ = ["memit_update", "null_space", "null_space_update", "rome_update"]


def rome_update(key: Tensor, change: Tensor, moment: Tensor) -> LowRank:
    """Rank one: the matrix puts out ``change`` [hidden] more for ``key`` [width], and least else.

    W + (v* - W k) uᵀ / (uᵀ k) with u = C⁻¹ k: Meng et al. 2202.05262 eq. 2, with the same
    averaged key everywhere (Gupta et al. 2403.07175; with two different ones the
    denominator can vanish, and with it the model).
    """
    u: Tensor = torch.linalg.solve(moment.double(), key.double())
    return LowRank((change.double() / (u @ key.double()))[:, None].float(), u[:, None].float())


def memit_update(keys: Tensor, residuals: Tensor, moment: Tensor, weight: float) -> LowRank:
    """Least squares over many facts: keys [facts, width], residuals [facts, hidden].

    R Kᵀ (λC + K Kᵀ)⁻¹, Meng et al. 2210.07229 eq. 14; ``weight`` is λ, how many
    keys of ordinary text the old memories count for.
    """
    k = keys.double().T
    system = weight * moment.double() + k @ k.T
    right: Tensor = torch.linalg.solve(system, k)
    return LowRank(residuals.T.float(), right.float())


def null_space(moment: Tensor, share: float) -> Tensor:
    """[width, width] projection on the directions of keys that hold least of the energy of ordinary text.

    share  of the energy that may lie in them. AlphaEdit's own threshold is an eigenvalue, which depends
           on the scale of the activations (Fang et al. 2410.02355).
    """
    values, vectors = torch.linalg.eigh(moment.double())
    quiet = vectors[:, values.clamp(min=0).cumsum(0) <= share * values.clamp(min=0).sum()]
    projection: Tensor = quiet @ quiet.T
    return projection


def null_space_update(keys: Tensor, residuals: Tensor, projection: Tensor, ridge: float) -> LowRank:
    """AlphaEdit: the update acts on the null space of old keys only. R ((P K Kᵀ + ridge·I)⁻¹ P K)ᵀ."""
    k = keys.double().T
    projected = projection @ k
    system = projected @ k.T + ridge * torch.eye(len(k), dtype=torch.float64)
    right: Tensor = torch.linalg.solve(system, projected)
    return LowRank(residuals.T.float(), right.float())
