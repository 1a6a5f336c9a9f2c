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

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..batches import batches_of, check_items
from ..errors import DataError
from ..graph.tracer import tracing_mode
from ..networks import parse_outputs, unwrapped
from .lifting import FEATURES, bare
from .pairs import Pairs, pairs_of

RATES = (1e-2, 1e-3, 1e-4)
KINDS = (*FEATURES, "fleet")
"""What thresholds of a student are for: its own features, lifted ones, or lifted ones of all widths."""
REPEATS = 200
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
    possible = pairs.possible(rates)
    return summarized(pairs, data, possible, pairs.bootstrap(possible, repeats, seed))


def summarized(pairs: Pairs, data: str, rates: Sequence[float], found: np.ndarray) -> Calibration:
    """Thresholds with their intervals.

    Args:
        pairs: which they are of.
        data: name of the data set.
        rates: false accept rates.
        found: similarity and TAR, `[1 + repeats, rates, 2]`: those of all pairs, then those of the bootstrap.
    """
    low, high = np.nanpercentile(found, _INTERVAL, axis=0) if rates else (found[0], found[0])
    numbers = np.stack([found[0], low, high], 2).reshape(-1, 6)  # similarity and TAR, each with both ends
    thresholds = tuple(Threshold(rate, *map(float, row)) for rate, row in zip(rates, numbers, strict=True))
    return Calibration(data, pairs.identities, len(pairs.genuine), pairs.impostors, thresholds)


def calibrate_threshold(
    network: nn.Module, loader: Iterable[Any], data: str = "", rates: Sequence[float] = RATES, **how: Any
) -> Calibration:
    """Thresholds of a network on the pictures of a loader, kept with it: in its file, and in exports of it.

    A student keeps those of its own features and, calibrated as `lifted(student)`, those of lifted ones.

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
        keep_thresholds(network, {record.feature: found})
    return found


def keep_thresholds(student: nn.Module, found: Mapping[str, Calibration]) -> None:
    """Puts thresholds into a student's record, in place; a lifted one shares them with the student inside of it.

    Args:
        student: with a record.
        found: by what they are for: `own` or `teacher` features, or `fleet`.
    """
    plain = {kind: calibration.to_dict() for kind, calibration in found.items()}
    for network in {id(each): each for each in (student, bare(student))}.values():
        record = vars(network)["student_record"]
        vars(network)["student_record"] = replace(record, thresholds={**record.thresholds, **plain})
