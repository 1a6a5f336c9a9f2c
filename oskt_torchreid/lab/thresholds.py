"""Thresholds of a run's networks: of each by itself, and one for the whole fleet, whatever the widths that meet."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tabulate import tabulate
from torch import Tensor
from tqdm.auto import tqdm

from ..chain.student_file import save_student
from ..deploy.gallery import lift, origin_of
from ..deploy.lifting import bare
from ..deploy.pairs import Pairs, pairs_of
from ..deploy.threshold import RATES, REPEATS, Calibration, Threshold, keep_thresholds, summarized
from ..errors import ConfigError
from ..files import atomic, write_json
from ..report.threshold_plot import threshold_curves
from .fleet import FINETUNED, Member, members_of_run

FORMAT_VERSION = 1
JSON_NAME, MARKDOWN_NAME, PICTURE_NAME = "thresholds.json", "thresholds.md", "thresholds.png"
FLEET_HEADERS = (
    "network",
    "its own threshold",
    "FAR",
    "TAR (%)",
    "TAR at its own (%)",
    "FAR of pairs",
    "TAR of pairs (%)",
)
ROC_RATES = tuple(np.logspace(-5, -2, 61))


@dataclass(frozen=True, eq=False)
class FleetThresholds:
    """Thresholds of networks of one chain.

    Attributes:
        data: name of the data set.
        names: of the networks; the first is the refined teacher where the run has one.
        own: of each network's features as they are.
        lifted: of its lifted features.
        rates: false accept rates, in falling order.
        fleet: thresholds at which no two networks accept more impostors: the highest of all pairs'.
        similarity: threshold of queries of each network against a gallery of each, lifted,
            `[rates, networks, networks]`.
        far: what each of these pairs accepts at the fleet's threshold, of the same shape.
        tar: true accept rate there, of the same shape.
        curves: false and true accept rate along a ROC curve of each network's lifted features, `[networks, 2, points]`.
    """

    data: str
    names: tuple[str, ...]
    own: tuple[Calibration, ...]
    lifted: tuple[Calibration, ...]
    rates: tuple[float, ...]
    fleet: Calibration
    similarity: np.ndarray
    far: np.ndarray
    tar: np.ndarray
    curves: np.ndarray


def measure_thresholds(
    folder: str | Path, rates: Sequence[float] = RATES, repeats: int = REPEATS, seed: int = 0, keep: bool = False
) -> FleetThresholds:
    """Cosine thresholds of a run's networks on its first target, whose identities none of them was trained on.

    Args:
        folder: of a finished run of engine `oskt`, with its chain.
        rates: false accept rates.
        repeats: draws of the bootstrap over identities.
        seed: of these draws.
        keep: write the thresholds into the students' files, each whole or not at all.

    Raises:
        ConfigError: no students of the run's chain, or a data set too small for all of the rates.
        CheckpointError: a file of the run that is missing or damaged.
        DataError: rates outside of (0, 1), or a data set without pairs of different cameras.
        FeatureError: networks whose features cannot be lifted.
    """
    trainer, members = members_of_run(folder)
    widest = [member for member in members if not member.state][-1]  # the refined teacher, where there is one
    wanted = [widest, *(member for member in members if member.state == FINETUNED)]
    seen, pids, camids = {}, np.empty(0), np.empty(0)
    for member in tqdm(wanted, disable=None, unit="network", leave=False):
        queries, gallery, labels = trainer.features(bare(member.network))
        seen[member.name] = torch.cat([queries, gallery])
        pids, camids = np.concatenate(labels[:2]), np.concatenate(labels[2:])
    in_place = {each.name: _lifted(seen[each.name], each) for each in wanted}
    data = trainer.config.data.targets[0]
    highest = max(rates)
    plain = {name: pairs_of(features, pids, camids, highest) for name, features in seen.items()}
    possible = next(iter(plain.values())).possible(rates)
    if not possible:
        raise ConfigError(
            f"'{data}' has too few pairs of two people for a false accept rate of {highest:g}; ask for a higher one"
        )
    pairs = {
        (one, other): pairs_of(in_place[one], pids, camids, highest, None if one == other else in_place[other])
        for one, other in itertools.product(in_place, repeat=2)
    }
    found = _fleet_of(data, pairs, plain, possible, repeats, seed)
    if keep:
        _keep(found, wanted)
    return found


def _lifted(features: Tensor, member: Member) -> Tensor:
    network = bare(member.network)
    return lift(features, network) if origin_of(network).chain else features


def _fleet_of(
    data: str,
    pairs: dict[tuple[str, str], Pairs],
    plain: dict[str, Pairs],
    rates: list[float],
    repeats: int,
    seed: int,
) -> FleetThresholds:
    names = tuple(plain)
    shape = len(rates), len(names), len(names)
    found = {both: each.bootstrap(rates, repeats, seed) for both, each in pairs.items()}
    drawn = np.stack(list(found.values()))  # [pairs, 1 + repeats, rates, similarity and TAR]; people drawn are the same
    strictest = drawn[..., 0].max(0)
    places = [[each.rates_at(threshold) for each in pairs.values()] for threshold in strictest[0]]
    far, tar = np.moveaxis(np.array(places), 2, 0).reshape(2, *shape)
    least = drawn[..., 1].min(0)
    least[0] = tar.min((1, 2))
    whole = next(iter(pairs.values()))
    fleet = summarized(whole, data, rates, np.stack([strictest, least], 2))
    known = [rate for rate in ROC_RATES if rate * whole.impostors >= 1]
    roc = [pairs[name, name].thresholds(np.ones(whole.identities), known)[:, 1] for name in names]
    curves = np.stack([np.stack([np.array(known), each]) for each in roc])
    return FleetThresholds(
        data,
        names,
        tuple(summarized(each, data, rates, each.bootstrap(rates, repeats, seed)) for each in plain.values()),
        tuple(summarized(pairs[name, name], data, rates, found[name, name]) for name in names),
        tuple(rates),
        fleet,
        np.moveaxis(drawn[:, 0, :, 0], 1, 0).reshape(shape),
        far,
        tar,
        curves,
    )


def _keep(found: FleetThresholds, members: Sequence[Member]) -> None:
    for member, own, whole in zip(members, found.own, found.lifted, strict=True):
        if member.path is not None:
            keep_thresholds(member.network, {"own": own, "teacher": whole, "fleet": found.fleet})
            save_student(member.network, member.path)


# ---- report ----------------------------------------------------------------------------------------------------------


def write_thresholds(folder: str | Path, found: FleetThresholds, title: str) -> None:
    """Writes `thresholds.json`, `thresholds.md` and `thresholds.png` into a folder, each whole or not at all."""
    folder = Path(folder)
    write_json(folder / JSON_NAME, _content(found))
    threshold_curves(dict(zip(found.names, found.curves, strict=True)), folder / PICTURE_NAME, title)
    parts = [f"# Thresholds on {found.data}: {title}", *_paragraphs(found)]
    with atomic(folder / MARKDOWN_NAME) as temporary:
        temporary.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _content(found: FleetThresholds) -> dict:
    alone = {
        name: {"own": own.to_dict(), "lifted": whole.to_dict()}
        for name, own, whole in zip(found.names, found.own, found.lifted, strict=True)
    }
    arrays = {name: getattr(found, name).tolist() for name in ("similarity", "far", "tar", "curves")}
    return {
        "format_version": FORMAT_VERSION,
        "data": found.data,
        "names": list(found.names),
        "rates": list(found.rates),
        "networks": alone,
        "fleet": found.fleet.to_dict(),
        **arrays,
    }


def _paragraphs(found: FleetThresholds) -> Iterator[str]:
    first = found.own[0]
    yield (
        f"{first.identities} people that no network was trained on, {first.genuine:,} pairs of pictures of one and "
        f"{first.impostors:,} of two, by different cameras. Cosine similarity; intervals of 95 % by the bootstrap over "
        "identities."
    )
    for title, calibrations in (("its own features", found.own), ("lifted features", found.lifted)):
        yield f"## Each network by {title}"
        rows = [
            (name, *(cell for each in calibration.thresholds for cell in _cells(each)))
            for name, calibration in zip(found.names, calibrations, strict=True)
        ]
        headers = ("network", *(f"{word} at FAR {rate:g}" for rate in found.rates for word in ("threshold", "TAR (%)")))
        yield _table(headers, rows)
    yield "## One threshold for the fleet"
    yield (
        "The highest that any two of the networks need, lifted: whatever meets, no more impostors pass than are asked "
        "for. FAR and TAR are those of a network by itself, and the range over all pairs that it is in."
    )
    for place, threshold in enumerate(found.fleet.thresholds):
        value, interval = threshold.similarity, f"[{threshold.low:.3f}, {threshold.high:.3f}]"
        yield f"FAR {threshold.far:g}: **{value:.3f}** {interval}"
        yield _table(FLEET_HEADERS, [_fleet_row(found, place, number) for number in range(len(found.names))])


def _fleet_row(found: FleetThresholds, place: int, number: int) -> tuple[str, ...]:
    own = found.lifted[number].thresholds[place]
    far, tar = found.far[place], 100 * found.tar[place]
    both = [np.concatenate([values[number], values[:, number]]) for values in (far, tar)]
    return (
        found.names[number],
        f"{own.similarity:.3f}",
        f"{far[number, number]:.1e}",
        f"{tar[number, number]:.1f}",
        f"{100 * own.tar:.1f}",
        f"{both[0].min():.1e} to {both[0].max():.1e}",
        f"{both[1].min():.1f} to {both[1].max():.1f}",
    )


def _cells(threshold: Threshold) -> tuple[str, str]:
    similarity = f"{threshold.similarity:.3f} [{threshold.low:.3f}, {threshold.high:.3f}]"
    return similarity, f"{100 * threshold.tar:.1f} [{100 * threshold.tar_low:.1f}, {100 * threshold.tar_high:.1f}]"


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    align = ("left", *["right"] * (len(headers) - 1))
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True, colalign=align)
