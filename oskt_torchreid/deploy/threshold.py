"""A threshold that means something: the similarity above which two pictures are said to show one person.

Of all pairs of pictures of different cameras, those of one identity are *genuine*, the others *impostors*. The false
accept rate (FAR) of a threshold is the share of impostors that are at least as similar, the true accept rate (TAR) that
of genuine pairs. A threshold is the least similarity whose FAR is not above a rate that is asked for.

Pairs of one identity are not independent, so intervals are of the bootstrap over identities: as many are drawn, with
repetition, as there are, a pair counts as often as both of its identities were drawn, and thresholds are found again.

Example: impostors of the similarities 0.9, 0.5, 0.3 and 0.1, and genuine pairs of 0.8 and 0.4. At a FAR of 1/4 one
impostor may be accepted: the threshold lies above 0.5, and accepts one genuine pair of two, so the TAR is 1/2.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..batches import batches_of, check_items
from ..errors import DataError
from ..graph.tracer import tracing_mode
from ..networks import parse_outputs, unwrapped

RATES = (1e-2, 1e-3, 1e-4)
REPEATS = 200
_ROWS = 512  # pictures that are compared with all others at once
_SAMPLE = 1_000_000  # similarities that say roughly where the highest ones begin
_SPARE = 8.0  # how many times the highest rate is kept of the impostors, for thresholds of unlucky draws
_INTERVAL = (2.5, 97.5)  # percentiles


@dataclass(frozen=True)
class Threshold:
    """A cosine similarity for one false accept rate.

    Attributes:
        far: the rate that was asked for.
        similarity: the threshold; pairs at least as similar are accepted.
        low: lower end of its interval of 95 %.
        high: upper end.
        tar: true accept rate.
        tar_low: lower end of its interval of 95 %.
        tar_high: upper end.
    """

    far: float
    similarity: float
    low: float
    high: float
    tar: float
    tar_low: float
    tar_high: float


@dataclass(frozen=True)
class Calibration:
    """Thresholds, and what they come from.

    Attributes:
        data: name of the data set.
        identities: how many.
        genuine: pairs of one identity.
        impostors: pairs of two identities.
        thresholds: one per rate that so many impostors can tell.
    """

    data: str
    identities: int
    genuine: int
    impostors: int
    thresholds: tuple[Threshold, ...]

    def at(self, far: float) -> Threshold:
        """The threshold of a false accept rate.

        Raises:
            DataError: it was not measured.
        """
        for threshold in self.thresholds:
            if np.isclose(threshold.far, far):
                return threshold
        known = ", ".join(f"{threshold.far:g}" for threshold in self.thresholds)
        raise DataError(f"no threshold was measured for a false accept rate of {far:g}; known: {known or 'none'}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a file."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Calibration:
        """Inverse of `to_dict`; raises `KeyError`, `TypeError` or `ValueError` for anything else."""
        rows = [{name: float(value) for name, value in row.items()} for row in content["thresholds"]]
        identities, genuine, impostors = (int(content[name]) for name in ("identities", "genuine", "impostors"))
        return cls(str(content["data"]), identities, genuine, impostors, tuple(Threshold(**row) for row in rows))


def calibrate(
    features: Tensor | np.ndarray,
    pids: Sequence[int] | np.ndarray,
    camids: Sequence[int] | np.ndarray | None = None,
    data: str = "",
    rates: Sequence[float] = RATES,
    repeats: int = REPEATS,
    seed: int = 0,
) -> Calibration:
    """Thresholds of features by cosine similarity, over pairs of pictures of different cameras.

    Args:
        features: `[pictures, length]`; of identities that the network was not trained on.
        pids: identity of each picture.
        camids: camera of each picture; `None`: all pairs count.
        data: name of the data set, which is kept with the thresholds.
        rates: false accept rates; those of less than one of the impostors are left out.
        repeats: draws of the bootstrap over identities.
        seed: of these draws.

    Raises:
        DataError: lengths that do not match, features that are not finite, rates outside of (0, 1), no genuine pair or
            no impostor.
    """
    if not rates or not all(0 < rate < 1 for rate in rates):
        raise DataError(f"false accept rates are {list(rates)}; give some between 0 and 1")
    pairs = pairs_of(features, pids, camids, max(rates))
    possible = [rate for rate in sorted(rates, reverse=True) if rate * pairs.impostors >= 1]
    found = pairs.thresholds(np.ones(pairs.identities), possible)
    generator = np.random.default_rng(seed)
    share = np.full(pairs.identities, 1 / pairs.identities)
    drawn = [pairs.thresholds(each, possible) for each in generator.multinomial(pairs.identities, share, repeats)]
    low, high = np.nanpercentile([found, *drawn], _INTERVAL, axis=0) if possible else (found, found)
    numbers = np.stack([found, low, high], 2).reshape(-1, 6)  # similarity and TAR, each with both ends
    thresholds = tuple(Threshold(rate, *map(float, row)) for rate, row in zip(possible, numbers, strict=True))
    return Calibration(data, pairs.identities, len(pairs.genuine), pairs.impostors, thresholds)


def calibrate_threshold(
    network: nn.Module, loader: Iterable[Any], data: str = "", rates: Sequence[float] = RATES, **how: Any
) -> Calibration:
    """Thresholds of a network on the pictures of a loader, kept with it: in its file, and in exports of it.

    Args:
        network: a student, whose record has the thresholds afterwards, or any network; otherwise not changed. What is
            trained later has other thresholds.
        loader: batches of torchreid's form, dicts with `img`, `pid` and `camid`, of identities that the network was not
            trained on.
        data: name of the data set.
        rates: false accept rates, see `calibrate`.
        **how: `repeats` and `seed` of `calibrate`.

    Raises:
        DataError: see `calibrate`, or a loader of something else.
    """
    network = unwrapped(network)
    device = next((tensor.device for tensor in network.parameters()), torch.device("cpu"))
    features, pids, camids = [], [], []
    with tracing_mode(network, training=False), torch.inference_mode():
        for batch in batches_of(loader):
            check_items(batch)
            branches = parse_outputs(network(batch["img"].to(device)), training=False).features
            features.append(torch.cat([branch.float().cpu() for branch in branches], 1))
            pids += batch["pid"].tolist()
            camids += torch.as_tensor(batch["camid"]).tolist()
    if not features:
        raise DataError("the loader gave no batch; give pictures of identities that the network was not trained on")
    found = calibrate(torch.cat(features), pids, camids, data, rates, **how)
    if (record := vars(network).get("student_record")) is not None:
        vars(network)["student_record"] = replace(record, thresholds=found.to_dict())
    return found


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of pictures of different cameras.

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


def pairs_of(features: Any, pids: Any, camids: Any, rate: float) -> Pairs:
    """All genuine pairs, and the impostors that may matter for a false accept rate; errors as of `calibrate`."""
    vectors, (_, labels) = torch.as_tensor(features).float(), np.unique(np.asarray(pids), return_inverse=True)
    cameras = np.arange(len(labels)) if camids is None else np.unique(np.asarray(camids), return_inverse=True)[1]
    if vectors.dim() != 2 or not len(vectors) == len(labels) == len(cameras):
        raise DataError(
            f"features have the shape {tuple(vectors.shape)}, and there are {len(labels)} identities and "
            f"{len(cameras)} cameras; give one of each per picture"
        )
    if not torch.isfinite(vectors).all():
        raise DataError("features are NaN or infinite; give those of a network whose training succeeded")
    vectors = functional.normalize(vectors)
    cut = _rough_cut(vectors, labels, rate)
    kept = [_of_rows(rows, alike, labels, cameras, cut) for rows, alike in _blocks(vectors)]
    genuine, genuine_of, high, high_of = (np.concatenate(parts) for parts in zip(*kept, strict=True))
    order = np.argsort(-high, kind="stable")
    pairs = Pairs(genuine, genuine_of, high[order], high_of[order], _impostors(labels, cameras))
    if not len(pairs.genuine) or not pairs.impostors:
        raise DataError(
            f"{len(vectors)} pictures of {pairs.identities} identities have {len(pairs.genuine)} pairs of one identity "
            f"and {pairs.impostors} of two, by different cameras; give a set with both"
        )
    return pairs


def _of_rows(
    rows: slice, alike: np.ndarray, labels: np.ndarray, cameras: np.ndarray, cut: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Genuine pairs of some pictures with later ones, and impostors above a cut: similarities and identities."""
    later = np.arange(len(labels))[None] > np.arange(rows.start, rows.stop)[:, None]
    counted = later & (cameras[rows][:, None] != cameras[None])
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


def _blocks(vectors: Tensor) -> Iterator[tuple[slice, np.ndarray]]:
    """Cosine similarities of some pictures with all, `[rows, pictures]`."""
    for start in range(0, len(vectors), _ROWS):
        rows = slice(start, min(start + _ROWS, len(vectors)))
        yield rows, (vectors[rows] @ vectors.T).numpy()


def _rough_cut(vectors: Tensor, labels: np.ndarray, rate: float) -> float:
    """A similarity that several times as many impostors reach as a rate lets pass, by a sample of pairs."""
    first, second = np.random.default_rng(0).integers(0, len(vectors), (2, _SAMPLE))
    other = labels[first] != labels[second]
    if len(vectors) ** 2 < _SAMPLE or not other.any():
        return -2.0  # all of them
    alike = (vectors[first[other]] * vectors[second[other]]).sum(1).numpy()
    return float(np.quantile(alike, max(0.0, 1 - _SPARE * rate)))
