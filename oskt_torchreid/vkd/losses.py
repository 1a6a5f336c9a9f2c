"""The losses by which a student of few views learns from a teacher of many (paper: section 3.3), on plain tensors.

`kd_loss` and `soft_margin_triplet_loss`, which others use too, are in `host/losses.py`; they are imported here for the
sum `L = L_CE + L_TR + alpha * L_KD + beta * L_DP`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import ConfigError
from ..host.losses import kd_loss, soft_margin_triplet_loss
from ..registry import nearest

__all__ = ["distance_preservation_loss", "kd_loss", "soft_margin_triplet_loss", "squared_distances"]

SQUARED, UNIT, MEAN = "squared", "unit", "mean"
SCALES = (SQUARED, UNIT, MEAN)
"""What distances are compared: squared Euclidean ones, as in the paper; those of embeddings of unit length; or squared
ones as multiples of their mean over the pairs of a batch. Squared ones have the scale of a network's embeddings, which
a student that is trained on other sets need not share with its teacher."""


def squared_distances(embeddings: Tensor) -> Tensor:
    """`D[i, j] = |e_i - e_j|^2`, `[sets, sets]`, of embeddings `[sets, channels]`."""
    squared = embeddings.pow(2).sum(dim=1)
    return torch.addmm(squared[:, None] + squared[None, :], embeddings, embeddings.t(), alpha=-2)


def check_scale(scale: str) -> None:
    """Raises `ConfigError` unless a scale is one of `SCALES`."""
    if scale not in SCALES:
        hint = nearest(str(scale), SCALES)
        raise ConfigError(f"the scale of distances is {scale!r}{hint}; allowed: {', '.join(SCALES)}")


def scaled_distances(embeddings: Tensor, scale: str = SQUARED) -> Tensor:
    """Distances `[sets, sets]` of embeddings `[sets, channels]`; see `SCALES`.

    Example: embeddings `(0, 1, 3)` of one channel have the squared distances 1, 4 and 9. Their mean over the six pairs
    of different sets is `28 / 6`, and `mean` gives 0.21, 0.86 and 1.93.
    """
    check_scale(scale)
    if scale == UNIT:
        embeddings = functional.normalize(embeddings)
    distances = squared_distances(embeddings)
    if scale == MEAN:
        pairs = max(1, len(embeddings) * (len(embeddings) - 1))
        distances = distances / (distances.sum() / pairs).clamp_min(torch.finfo(distances.dtype).tiny)
    return distances


def distance_preservation_loss(student: Tensor, teacher: Tensor, scale: str = SQUARED) -> Tensor:
    """`L_DP = 1/2 * mean over all pairs of (D_T[i, j] - D_S[i, j])^2` with distances `D`, the paper's squared ones.

    Only the student gets a gradient. The two may differ in their numbers of channels.

    Args:
        student: set embeddings `[sets, channels]`.
        teacher: set embeddings of the same sets `[sets, channels]`.
        scale: of the distances, see `SCALES`.

    Returns:
        Scalar, over all `sets^2` pairs.

    Raises:
        ConfigError: shapes that are no embeddings of the same sets, or an unknown scale.

    Example with 4 sets of one channel: a student `(0, 1, 2, 3)` and a teacher `(0, 1, 2, 5)` differ in the pairs of the
    last set alone, whose squared distances are `(9, 4, 1)` and `(25, 16, 9)`: the differences `(16, 12, 8)`, each
    counted twice, give `1/2 * 2 * (256 + 144 + 64) / 16 = 29`.
    """
    if student.dim() != 2 or teacher.dim() != 2 or len(student) != len(teacher):
        raise ConfigError(
            f"distance_preservation_loss compares embeddings of the same sets, [sets, channels] each; got "
            f"{tuple(student.shape)} of the student and {tuple(teacher.shape)} of the teacher"
        )
    return (scaled_distances(teacher.detach(), scale) - scaled_distances(student, scale)).pow(2).mean() / 2
