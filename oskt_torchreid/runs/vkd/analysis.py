"""Analyses of a finished run of VKD: cameras, views against time, frames per tracklet.

All of them only take the run's folder: its resolved configuration describes the data and the networks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...chain.student_reading import load_student
from ...config import Config, load_resolved, merged
from ...config.loading import RESOLVED_NAME
from ...errors import ConfigError
from ...files import load_checkpoint
from ...graph.tracer import tracing_mode
from ...host.compat import device
from ...host.interfaces import DataManager
from ...report.analysis import Curves, curve_plot, curve_table, probe_plot, probe_table
from ...vkd.analysis import COUNTS, DRAWS, FrameFeatures, extract_frames, gallery_curve, views_curves
from ...vkd.camera_probe import FOLDS, camera_probe
from ...vkd.model import SET_PREFIX, as_set_model, load_set_model
from .learners import TEACHER, UNDISTILLED, control_folder, student_name
from .trainer import NETWORK_NAME, SetTrainer


@dataclass(frozen=True)
class SetRun:
    """A finished run, opened.

    Attributes:
        config: whole tree, as it was resolved.
        trainer: of the run's data.
        networks: teacher, then every student, by name, each followed by the one without distillation if the run has
            controls; in evaluation mode.
        title: title of plots: network and data.
    """

    config: Config
    trainer: SetTrainer
    networks: dict[str, nn.Module]
    title: str

    @property
    def manager(self) -> DataManager:
        """The data manager of sets."""
        return self.trainer.datamanager(self.config.vkd.teacher_stage.batch_size)

    @property
    def target(self) -> str:
        """The analysed data set: the first target."""
        return next(iter(self.manager.test_loader))

    def embed(self, network: nn.Module, frames: Tensor) -> Tensor:
        """Features `[frames, channels]` of frames or sets, on the CPU."""
        with tracing_mode(network, training=False), torch.no_grad():
            return network(frames.to(device(self.config.use_gpu), non_blocking=True)).float().cpu()

    def features(self) -> Iterator[tuple[str, FrameFeatures, FrameFeatures]]:
        """Name of a network, and its features of queries and gallery; each network sees every frame once."""
        loaders = self.manager.test_loader[self.target]
        for name, network in self.networks.items():
            embed = functools.partial(self.embed, network)
            query = extract_frames(embed, loaders["query"], side=f"{name}: query")
            yield name, query, extract_frames(embed, loaders["gallery"], side=f"{name}: gallery")


def open_run(folder: str | Path, options: Sequence[str] = (), **changes: Any) -> SetRun:
    """Reads a run's configuration and networks.

    Args:
        folder: that `oskt run` wrote with `engine: vkd`.
        options: KEY VALUE or KEY=VALUE words that change the configuration, such as `data.root`.
        **changes: further keys of the node `vkd`.

    Raises:
        ConfigError: no configuration, of another engine, or a run that is not finished.
        CheckpointError: a damaged network.
    """
    folder = Path(folder)
    config = load_resolved(folder, options)
    if config.engine != "vkd":
        raise ConfigError(
            f"'{folder}' is a run of engine '{config.engine or config.loss.name}'; this looks into runs of engine 'vkd'"
        )
    config = merged(config, {f"vkd.{key}": value for key, value in changes.items()})
    places = _places(config)
    missing = [place for place in places.values() if not (folder / place / NETWORK_NAME).is_file()]
    if missing:
        raise ConfigError(
            f"the run in '{folder}' is not finished: there is no '{missing[0]}/{NETWORK_NAME}'; run oskt run "
            f"--config-file {folder / RESOLVED_NAME} first"
        )
    trainer = SetTrainer(config)
    networks = {name: _network(config, trainer, name, folder / place / NETWORK_NAME) for name, place in places.items()}
    return SetRun(config, trainer, networks, f"{config.model.name} on {', '.join(config.data.targets)}")


def _places(config: Config) -> dict[str, str]:
    """The folder of every network that is looked into, by its name.

    A student is compared with the one without distillation, which has been trained for as long: the teacher has not.
    """
    places = {TEACHER: TEACHER}
    for number in range(1, config.vkd.generations + 1):
        name = student_name(number)
        places[name] = name
        if config.vkd.controls:
            places[f"{name} {UNDISTILLED}"] = control_folder(UNDISTILLED, number)
    return places


def _network(config: Config, trainer: SetTrainer, name: str, path: Path) -> nn.Module:
    if "oskt" in load_checkpoint(path):  # a student that was expanded from a chain
        size = (3, config.data.height, config.data.width)
        network: nn.Module = as_set_model(load_student(path), trainer.num_classes, size)
    else:
        backbone = config.model.name if name == TEACHER else config.vkd.student or config.model.name
        network = load_set_model(SET_PREFIX + backbone.removeprefix(SET_PREFIX), path)
    return network.eval().to(device(config.use_gpu))


# ---- numbers ---------------------------------------------------------------------------------------------------------


def probe_cameras(
    folder: str | Path, picture: str | Path = "", folds: int = FOLDS, seed: int = 0, options: Sequence[str] = ()
) -> str:
    """How well cameras can be predicted from the embeddings of each network, see `vkd.camera_probe`.

    Args:
        folder: of the run.
        picture: PNG file to draw; empty: none.
        folds: of the identities of queries and gallery.
        seed: of the assignment of identities to folds.
        options: see `open_run`.

    Returns:
        A Markdown table.
    """
    check_picture(picture)
    run = open_run(folder, options)
    if run.config.vkd.no_camera:
        raise ConfigError("vkd.no_camera says that cameras are unknown, so there is nothing to predict from embeddings")
    probes = {}
    for name, query, gallery in run.features():
        both = query.followed_by(gallery)
        side = both.side(run.config.vkd.test_frames)
        kinds = {"tracklets": side.sets, "images": side.images}
        probes[name] = {kind: camera_probe(each, side.pids, side.camids, folds, seed) for kind, each in kinds.items()}
    if picture:
        probe_plot(probes, picture, run.title)
    return probe_table(probes)


def compare_views(
    folder: str | Path,
    picture: str | Path = "",
    counts: Sequence[int] = COUNTS,
    draws: int = DRAWS,
    seed: int = 0,
    options: Sequence[str] = (),
) -> str:
    """mAP from images to sets of N views and to N moments of one tracklet, see `vkd.analysis.views_curves`.

    Args:
        folder: of the run.
        picture: PNG file to draw; empty: none.
        counts: numbers N; the largest is the number of evenly spaced frames that are taken of every tracklet.
        draws: random draws that are averaged.
        seed: of the draws.
        options: see `open_run`.

    Returns:
        A Markdown table.
    """

    def curves(run: SetRun, query: FrameFeatures, gallery: FrameFeatures) -> dict[str, Any]:
        return views_curves(query, gallery, counts, draws, seed, run.config.vkd.no_camera)

    return _curves(folder, picture, counts, options, curves, "frames in a gallery set")


def compare_gallery_sizes(
    folder: str | Path,
    picture: str | Path = "",
    counts: Sequence[int] = COUNTS,
    protocol: str = "I2V",
    options: Sequence[str] = (),
) -> str:
    """mAP against frames per gallery tracklet, see `vkd.analysis.gallery_curve`; arguments as `compare_views`."""

    def curves(run: SetRun, query: FrameFeatures, gallery: FrameFeatures) -> dict[str, Any]:
        node = run.config.vkd
        rules = {"query_in_gallery": node.query_in_gallery, "no_camera": node.no_camera}
        return {"": gallery_curve(query, gallery, counts, protocol, **rules)}

    return _curves(folder, picture, counts, options, curves, f"frames per gallery tracklet ({protocol})")


def _curves(
    folder: str | Path,
    picture: str | Path,
    counts: Sequence[int],
    options: Sequence[str],
    curves_of: Callable[[SetRun, FrameFeatures, FrameFeatures], dict[str, Any]],
    frames_of: str,
) -> str:
    check_picture(picture)
    if not counts or min(counts) < 1:
        raise ConfigError(f"numbers of frames are {list(counts)}; give one or more, each 1 or more")
    run = open_run(folder, options, test_frames=max(counts))
    curves: Curves = {name: curves_of(run, *sides) for name, *sides in run.features()}
    if picture:
        curve_plot(curves, picture, frames_of, run.title)
    return curve_table(curves)


def check_picture(path: str | Path) -> None:
    """Raises `ConfigError`, before anything is computed, for a picture that is not a PNG; empty: none is drawn."""
    if path and Path(path).suffix.lower() != ".png":
        raise ConfigError(f"the picture '{path}' ends in '{Path(path).suffix}'; give a path that ends in .png")
