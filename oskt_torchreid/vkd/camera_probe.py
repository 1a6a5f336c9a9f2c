"""Camera bias: how well a linear classifier reads the camera off an embedding (paper: section 4.3)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..errors import ConfigError, DataError

FOLDS = 5
PENALTY = 1.0
_STEPS = 200


@dataclass(frozen=True)
class CameraProbe:
    """Results of a probe; all are fractions of the held-out tracklets.

    Attributes:
        accuracy: whose camera was read off correctly.
        deviation: of the folds' accuracies, with one less than their number as divisor.
        majority: that are of the camera that is most frequent in the training folds: chance without looking.
        uniform: one by the number of cameras.
    """

    accuracy: float
    deviation: float
    majority: float
    uniform: float


def camera_probe(
    features: Tensor, pids: np.ndarray, camids: np.ndarray, folds: int = FOLDS, seed: int = 0, penalty: float = PENALTY
) -> CameraProbe:
    """Fits a linear classifier from embeddings to cameras on some identities, and reads others' cameras off with it.

    Identities are dealt to the folds at random; each fold is held out once. Embeddings are brought to length 1, since
    retrieval by cosine sees no length, then every channel is standardised by the mean and deviation of the training
    folds.

    Args:
        features: embeddings `[tracklets, channels]` of identities that the network was not trained on.
        pids: identities `[tracklets]`.
        camids: cameras `[tracklets]`.
        folds: at least 2, at most as many as identities.
        seed: of the deal.
        penalty: see `fit_cameras`.

    Raises:
        ConfigError: a number of folds that is not allowed.
        DataError: fewer than two cameras.
    """
    identities, owners = np.unique(pids, return_inverse=True)
    cameras, camera_of = np.unique(camids, return_inverse=True)
    if len(cameras) < 2:
        raise DataError(
            f"all {len(camids)} tracklets are of camera {camids[0]}, so there is no camera to predict; give data of "
            "several cameras"
        )
    if not 2 <= folds <= len(identities):
        raise ConfigError(f"folds is {folds}; allowed: 2 to the {len(identities)} identities")
    deal = np.random.default_rng(seed).permutation(len(identities)) % folds
    fold_of = deal[owners]
    features = functional.normalize(features.double(), dim=1)
    labels = torch.from_numpy(camera_of)
    hits, chance = np.zeros(len(labels), bool), np.zeros(len(labels), bool)
    for fold in range(folds):
        held_out = torch.from_numpy(fold_of == fold)
        known, unknown = _standardised(features[~held_out], features[held_out])
        weight, bias = fit_cameras(known, labels[~held_out], len(cameras), penalty)
        most_frequent = labels[~held_out].bincount().argmax()
        hits[fold_of == fold] = ((unknown @ weight + bias).argmax(dim=1) == labels[held_out]).numpy()
        chance[fold_of == fold] = (labels[held_out] == most_frequent).numpy()
    accuracies = [hits[fold_of == fold].mean() for fold in range(folds)]
    return CameraProbe(float(hits.mean()), float(np.std(accuracies, ddof=1)), float(chance.mean()), 1 / len(cameras))


def fit_cameras(features: Tensor, labels: Tensor, classes: int, penalty: float = PENALTY) -> tuple[Tensor, Tensor]:
    """Multinomial logistic regression: minimises `sum of cross-entropies + penalty / 2 * |weight|^2` by L-BFGS.

    Args:
        features: `[tracklets, channels]`, in double precision.
        labels: classes from 0 `[tracklets]`.
        classes: how many there are.
        penalty: of the squared weights; the bias is not penalised. 1 is what such classifiers usually have.

    Returns:
        Weight `[channels, classes]` and bias `[classes]`.
    """
    weight = torch.zeros(features.shape[1], classes, dtype=features.dtype, requires_grad=True)
    bias = torch.zeros(classes, dtype=features.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=_STEPS, tolerance_grad=1e-8, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        # Divided by the number of tracklets, so that the tolerances mean the same for every data set.
        entropy = functional.cross_entropy(features @ weight + bias, labels)
        value = entropy + penalty / (2 * len(features)) * weight.pow(2).sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    return weight.detach(), bias.detach()


def _standardised(known: Tensor, unknown: Tensor) -> tuple[Tensor, Tensor]:
    """Both by the mean and deviation of the first; channels that never vary become 0."""
    deviation, mean = torch.std_mean(known, dim=0, correction=0)
    scale = torch.where(deviation > 1e-12, 1 / deviation.clamp(min=1e-12), 0)
    return (known - mean) * scale, (unknown - mean) * scale
