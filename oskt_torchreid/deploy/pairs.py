"""Pairs of pictures of different cameras and their cosine similarities: those of one identity, and the highest others.

Impostors are many, and thresholds concern the most similar of them alone, so that only these are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..errors import DataError

_ROWS = 512  # pictures that are compared with all others at once
_SAMPLE = 1_000_000  # similarities that say roughly where the highest ones begin
_SPARE = 8.0  # how many times the highest rate is kept of the impostors, for thresholds of unlucky draws


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of pictures of different cameras, by one network or by two.

    Attributes:
        genuine: similarities of pairs of one identity, `[pairs]`.
        genuine_of: the identity of each.
        high: the highest similarities of impostors, in falling order.
        high_of: both identities of each, `[pairs, 2]`.
        counts: impostors of each two identities, `[identities, identities]`, symmetric, 0 along the diagonal.
    """

    genuine: np.ndarray
    genuine_of: np.ndarray
    high: np.ndarray
    high_of: np.ndarray
    counts: np.ndarray

    @property
    def identities(self) -> int:
        """How many identities there are."""
        return len(self.counts)

    @property
    def impostors(self) -> int:
        """How many impostors there are."""
        return int(self.counts.sum()) // 2

    def possible(self, rates: Sequence[float]) -> list[float]:
        """The rates that so many impostors can tell, in falling order."""
        return [rate for rate in sorted(rates, reverse=True) if rate * self.impostors >= 1]

    def bootstrap(self, rates: Sequence[float], repeats: int, seed: int) -> np.ndarray:
        """Thresholds and TAR of all pairs, then of identities that are drawn, `[1 + repeats, rates, 2]`."""
        share = np.full(self.identities, 1 / self.identities)
        drawn = np.random.default_rng(seed).multinomial(self.identities, share, repeats)
        return np.stack([self.thresholds(each, rates) for each in (np.ones(self.identities), *drawn)])

    def rates_at(self, similarity: float) -> tuple[float, float]:
        """FAR and TAR of a threshold; the FAR only of thresholds that let no more pass than are known."""
        passed = float((self.high >= similarity).sum()) / self.impostors
        return passed, float((self.genuine >= similarity).mean())

    def thresholds(self, drawn: np.ndarray, rates: Sequence[float]) -> np.ndarray:
        """Threshold and TAR per rate, `[rates, 2]`, where every identity counts as often as it was drawn.

        NaN where the draw leaves no pairs, or lets more impostors pass than are known.
        """
        found = np.full((len(rates), 2), np.nan)
        genuine = drawn[self.genuine_of]
        if not genuine.any():
            return found
        accepted = np.cumsum(drawn[self.high_of].prod(1))
        total = float(drawn @ self.counts @ drawn) / 2
        for place, rate in enumerate(rates):
            passed = np.searchsorted(accepted, rate * total * (1 + 1e-12), side="right")
            if passed < len(self.high):  # the first that must not pass
                similarity = np.nextafter(self.high[passed], np.float32(2))
                found[place] = similarity, genuine[self.genuine >= similarity].sum() / genuine.sum()
        return found


def pairs_of(features: Any, pids: Any, camids: Any, rate: float, others: Any = None) -> Pairs:
    """All genuine pairs, and the impostors that may matter for a false accept rate; errors as of `calibrate`.

    Args:
        features: `[pictures, length]`.
        pids: identity of each picture.
        camids: camera of each picture, or `None`.
        rate: the highest that will be asked for.
        others: features of the same pictures by another network, which these are compared with; `None`: by themselves.
    """
    vectors, (_, labels) = torch.as_tensor(features).float(), np.unique(np.asarray(pids), return_inverse=True)
    against = vectors if others is None else torch.as_tensor(others).float()
    cameras = np.arange(len(labels)) if camids is None else np.unique(np.asarray(camids), return_inverse=True)[1]
    if vectors.dim() != 2 or vectors.shape != against.shape or not len(vectors) == len(labels) == len(cameras):
        raise DataError(
            f"features have the shape {tuple(vectors.shape)}{_shape_of(others)}, and there are {len(labels)} "
            f"identities and {len(cameras)} cameras; give one of each per picture"
        )
    if not (torch.isfinite(vectors).all() and torch.isfinite(against).all()):
        raise DataError("features are NaN or infinite; give those of a network whose training succeeded")
    vectors, against = functional.normalize(vectors), functional.normalize(against)
    cut = _rough_cut(vectors, against, labels, rate)
    places = np.arange(len(labels))
    kept = []
    for rows, alike in _blocks(vectors, against):
        # Of one network each pair is there twice; of two, a picture by one against another by the other is a pair.
        counted = places[None] > places[rows][:, None] if others is None else places[None] != places[rows][:, None]
        kept.append(_of_rows(rows, alike, labels, counted & (cameras[rows][:, None] != cameras[None]), cut))
    genuine, genuine_of, high, high_of = (np.concatenate(parts) for parts in zip(*kept, strict=True))
    order = np.argsort(-high, kind="stable")
    counts = _impostors(labels, cameras) * (1 if others is None else 2)
    pairs = Pairs(genuine, genuine_of, high[order], high_of[order], counts)
    if not len(pairs.genuine) or not pairs.impostors:
        raise DataError(
            f"{len(vectors)} pictures of {pairs.identities} identities have {len(pairs.genuine)} pairs of one identity "
            f"and {pairs.impostors} of two, by different cameras; give a set with both"
        )
    return pairs


def _shape_of(others: Any) -> str:
    return "" if others is None else f", the others have {tuple(np.shape(others))}"


def _of_rows(
    rows: slice, alike: np.ndarray, labels: np.ndarray, counted: np.ndarray, cut: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Genuine pairs of some pictures, and impostors above a cut: similarities and identities."""
    same = labels[rows][:, None] == labels[None]
    first, second = np.nonzero(counted & same)
    one, other = np.nonzero(counted & ~same & (alike >= cut))
    of_both = np.stack([labels[rows][one], labels[other]], 1)
    return alike[first, second], labels[second], alike[one, other], of_both


def _impostors(labels: np.ndarray, cameras: np.ndarray) -> np.ndarray:
    """Pairs by different cameras of each two identities: all pairs but those of one camera."""
    seen = np.zeros((labels.max() + 1, cameras.max() + 1))
    np.add.at(seen, (labels, cameras), 1)
    counts = np.outer(seen.sum(1), seen.sum(1)) - seen @ seen.T
    np.fill_diagonal(counts, 0)
    return counts


def _blocks(vectors: Tensor, against: Tensor) -> Iterator[tuple[slice, np.ndarray]]:
    """Cosine similarities of some pictures with all, `[rows, pictures]`."""
    for start in range(0, len(vectors), _ROWS):
        rows = slice(start, min(start + _ROWS, len(vectors)))
        yield rows, (vectors[rows] @ against.T).numpy()


def _rough_cut(vectors: Tensor, against: Tensor, labels: np.ndarray, rate: float) -> float:
    """A similarity that several times as many impostors reach as a rate lets pass, by a sample of pairs."""
    first, second = np.random.default_rng(0).integers(0, len(vectors), (2, _SAMPLE))
    other = labels[first] != labels[second]
    if len(vectors) ** 2 < _SAMPLE or not other.any():
        return -2.0  # all of them
    alike = (vectors[first[other]] * against[second[other]]).sum(1).numpy()
    return float(np.quantile(alike, max(0.0, 1 - _SPARE * rate)))
