"""Heat maps of a finished run of VKD: teacher and students on the same frames."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...errors import ConfigError, DataError
from ...report.heat_maps import HeatMapRow, heat_map_sheet
from ...vkd.gradcam import heat_maps
from ...vkd.index import Tracklet
from ...vkd.sets import TestSets
from .analysis import SetRun, check_picture, open_run

SIMILARITY, CLASS = "similarity", "class"


def draw_heat_maps(
    folder: str | Path,
    picture: str | Path,
    identities: int = 4,
    frames: int = 2,
    score: str = SIMILARITY,
    options: Sequence[str] = (),
) -> None:
    """Draws Grad-CAM of teacher and students on the same frames, see `vkd.gradcam`.

    Args:
        folder: of the run.
        picture: PNG file to draw.
        identities: rows; the first ones of the queries, or of the training data.
        frames: evenly spaced frames of each one's first tracklet.
        score: `similarity` with the gallery's set of the identity from other cameras, for identities that no network
            was trained on; or `class`, the logit of a training identity.
        options: see `open_run`.

    Raises:
        ConfigError: as `open_run`; an unknown score, or fewer than one row or frame.
        DataError: too few identities with a match.
    """
    check_picture(picture)
    if score not in (SIMILARITY, CLASS):
        raise ConfigError(f"the score of a heat map is '{score}'; allowed: {SIMILARITY}, {CLASS}")
    if min(identities, frames) < 1:
        raise ConfigError(f"{identities} identities with {frames} frames each leave nothing to draw; give 1 or more")
    run = open_run(folder, options)
    if score == CLASS:
        rows = [_class_row(run, tracklet, frames) for tracklet in _training_tracklets(run, identities)]
        what = "logit of the training identity"
    else:
        rows = [_similarity_row(run, *chosen, frames) for chosen in _matched_tracklets(run, identities)]
        what = "similarity with the identity's gallery at other cameras"
    heat_map_sheet(rows, picture, f"{run.title}: {what}")


def _matched_tracklets(run: SetRun, count: int) -> list[tuple[Tracklet, list[Tracklet]]]:
    """First query tracklets of the first identities with a match, each with its gallery tracklets."""
    parts = run.manager.test_dataset[run.target]
    known: dict[int, tuple[Tracklet, list[Tracklet]]] = {}
    for query in parts["query"]:
        if query[1] not in known and len(known) < count:
            own = [item for item in parts["gallery"] if item[1] == query[1]]
            matches = own if run.config.vkd.no_camera else [item for item in own if item[2] != query[2]]
            if matches:
                known[query[1]] = query, matches
    if len(known) < count:
        raise DataError(
            f"{count} identities were requested, and {len(known)} of '{run.target}' have a query and a gallery "
            "tracklet at another camera; ask for fewer"
        )
    return list(known.values())


def _training_tracklets(run: SetRun, count: int) -> list[Tracklet]:
    first = {item[1]: item for item in reversed(run.manager.train_loader.dataset.train)}
    if len(first) < count:
        raise DataError(f"{count} identities were requested, and there are {len(first)} to train on; ask for fewer")
    return [first[label] for label in sorted(first)[:count]]


def _similarity_row(run: SetRun, query: Tracklet, matches: Sequence[Tracklet], count: int) -> HeatMapRow:
    images = _frames(run, [query], count)[0]
    gallery = _frames(run, matches, run.config.vkd.test_frames)
    maps = {}
    for name, network in run.networks.items():
        goal = torch.stack([run.embed(network, frames).mean(dim=0) for frames in gallery]).mean(dim=0)
        maps[name] = heat_maps(network, images, goals=goal.expand(len(images), -1))
    return HeatMapRow(_caption(run, query), _pictures(run, images), maps)


def _class_row(run: SetRun, tracklet: Tracklet, count: int) -> HeatMapRow:
    images = _frames(run, [tracklet], count)[0]
    labels = [tracklet[1]] * len(images)
    maps = {name: heat_maps(network, images, labels=labels) for name, network in run.networks.items()}
    return HeatMapRow(_caption(run, tracklet), _pictures(run, images), maps)


def _frames(run: SetRun, tracklets: Sequence[Tracklet], count: int) -> list[Tensor]:
    """Transformed frames `[frames, 3, height, width]` of each tracklet."""
    sets = TestSets(tracklets, run.manager.transform_te, count)
    return [sets[place]["img"] for place in range(len(sets))]


def _pictures(run: SetRun, images: Tensor) -> np.ndarray:
    """Images as they were before they were normalised, `[frames, height, width, 3]`."""
    mean, deviation = (torch.tensor(run.config.data[key])[:, None, None] for key in ("norm_mean", "norm_std"))
    return (images * deviation + mean).clamp(0, 1).permute(0, 2, 3, 1).numpy()


def _caption(run: SetRun, tracklet: Tracklet) -> str:
    camera = "" if run.config.vkd.no_camera else f"\ncamera {tracklet[2] + 1}"
    return f"identity {tracklet[1]}{camera}"
