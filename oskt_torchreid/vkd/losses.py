"""The losses by which a student of few views learns from a teacher of many (paper: section 3.3), on plain tensors.

`kd_loss` and `soft_margin_triplet_loss`, which others use too, are in `host/losses.py`; they are imported here for the
sum `L = L_CE + L_TR + alpha * L_KD + beta * L_DP`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ConfigError
from ..host.losses import kd_loss, soft_margin_triplet_loss

__all__ = ["distance_preservation_loss", "kd_loss", "soft_margin_triplet_loss", "squared_distances"]


def squared_distances(embeddings: Tensor) -> Tensor:
    """`D[i, j] = |e_i - e_j|^2`, `[sets, sets]`, of embeddings `[sets, channels]`."""
    squared = embeddings.pow(2).sum(dim=1)
    return torch.addmm(squared[:, None] + squared[None, :], embeddings, embeddings.t(), alpha=-2)


def distance_preservation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """`L_DP = 1/2 * mean over all pairs of (D_T[i, j] - D_S[i, j])^2` with squared Euclidean distances `D`.

    Only the student gets a gradient. The two may differ in their numbers of channels.

    Args:
        student: set embeddings `[sets, channels]`.
        teacher: set embeddings of the same sets `[sets, channels]`.

    Returns:
        Scalar, over all `sets^2` pairs.

    Raises:
        ConfigError: shapes that are no embeddings of the same sets.

    Example with 4 sets of one channel: a student `(0, 1, 2, 3)` and a teacher `(0, 1, 2, 5)` differ in the pairs of the
    last set alone, whose squared distances are `(9, 4, 1)` and `(25, 16, 9)`: the differences `(16, 12, 8)`, each
    counted twice, give `1/2 * 2 * (256 + 144 + 64) / 16 = 29`.
    """
    if student.dim() != 2 or teacher.dim() != 2 or len(student) != len(teacher):
        raise ConfigError(
            f"distance_preservation_loss compares embeddings of the same sets, [sets, channels] each; got "
            f"{tuple(student.shape)} of the student and {tuple(teacher.shape)} of the teacher"
        )
    return (squared_distances(teacher.detach()) - squared_distances(student)).pow(2).mean() / 2
