"""Files in the form that other programs take: trackers, pipelines, and a library of Roboflow's.

What each of them does to a crop before a network sees it, and where it reads about the network, is written here from
its documentation. docs/clients.md has a command for each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from torch import nn

from ..deploy import Exported, export
from ..deploy.deployment import Deployment
from ..errors import ConfigError
from ..files import atomic, save_tensors, write_json
from ..host import models
from ..models import NeckModel, without_neck
from ..networks import is_classifier

OSNETS = ("osnet_x0_25", "osnet_x0_5", "osnet_x0_75", "osnet_x1_0")
"""Architectures that Roboflow's `reid` builds by name and torchreid has too."""
BOTSORT: Mapping[str, Any] = {
    "tracker_type": "botsort",
    "track_high_thresh": 0.25,
    "track_low_thresh": 0.1,
    "new_track_thresh": 0.25,
    "track_buffer": 30,
    "match_thresh": 0.8,
    "fuse_score": True,
    "gmc_method": "sparseOptFlow",
    "proximity_thresh": 0.5,
    "appearance_thresh": 0.8,
}
"""Ultralytics' keys of a BoT-SORT tracker, with its defaults."""
DEEPSTREAM_BATCH, DEEPSTREAM_HISTORY, DEEPSTREAM_WORKSPACE = 100, 100, 1000  # objects, features of one, megabytes


class ForClient(NamedTuple):
    """What was written: the file of the network if there is one, and the file or folder that the client is given."""

    exported: Exported | None
    given: Path


def export_for_client(model: nn.Module, client: str, path: str | Path, **options: Any) -> ForClient:
    """Writes a network for another program.

    Args:
        model: not changed.
        client: one of `CLIENTS`.
        path: `.onnx` file, or for `roboflow` a folder.
        **options: of `deploy.export`; how the file is fed is the client's choice.

    Raises:
        ConfigError: an unknown client, or a path that it cannot be given.
        ExportError: see `deploy.export`.
    """
    if client not in CLIENTS:
        raise ConfigError(f"client is {client!r:.100}; allowed: {', '.join(CLIENTS)}")
    return CLIENTS[client](model, Path(path), options)


def _for_ultralytics(model: nn.Module, path: Path, options: dict[str, Any]) -> ForClient:
    """ONNX with colours of 0 to 1, and a BoT-SORT tracker that names it."""
    exported = _onnx(model, path, options, "ultralytics")
    given = path.with_name(f"{path.stem}-botsort.yaml")
    _write_yaml(given, {**BOTSORT, "with_reid": True, "model": str(path)})
    return ForClient(exported, given)


def _for_deepstream(model: nn.Module, path: Path, options: dict[str, Any]) -> ForClient:
    """ONNX with colours of 0 to 1, and the section `ReID` of an NvDCF tracker's configuration."""
    exported = _onnx(model, path, options, "deepstream")
    deployment = Deployment.of(model, options.get("input_size"), normalized=options.get("normalize", False))
    batch = options.get("batch") or DEEPSTREAM_BATCH
    section = {
        "reidType": 2,
        "batchSize": batch,
        "workspaceSize": DEEPSTREAM_WORKSPACE,
        "reidFeatureSize": exported.feature_dim,
        "reidHistorySize": DEEPSTREAM_HISTORY,
        "inferDims": list(deployment.feeding.input_size),
        "networkMode": 1,
        "inputOrder": 0,
        "colorFormat": 0,
        "offsets": [0.0, 0.0, 0.0],
        "netScaleFactor": 1 / 255,
        "keepAspc": 0,
        "addFeatureNormalization": int(not options.get("normalize", False)),
        "onnxFile": str(path.absolute()),
        "modelEngineFile": str(path.absolute().with_name(f"{path.stem}_b{batch}_gpu0_fp16.engine")),
    }
    given = path.with_name(f"{path.stem}-nvdcf.yml")
    _write_yaml(given, {"ReID": section})
    return ForClient(exported, given)


def _for_roboflow(model: nn.Module, folder: Path, options: dict[str, Any]) -> ForClient:
    """A folder of `weights.safetensors` and `reid_config.json`, of a student with the shapes of a stock OSNet."""
    if folder.suffix or folder.is_file():
        raise ConfigError(f"-o is '{folder}'; client 'roboflow' takes a folder, such as -o student")
    plain = without_neck(model) if isinstance(model, NeckModel) else model
    weights = {name: tensor for name, tensor in plain.state_dict().items() if not is_classifier(name)}
    architecture = _osnet_of({name: tuple(tensor.shape) for name, tensor in weights.items()})
    feeding = Deployment.of(model, options.get("input_size")).feeding
    mean, std = options.get("mean", feeding.mean), options.get("std", feeding.std)
    save_tensors(folder / "weights.safetensors", weights, {"architecture": architecture})
    preprocessing = {
        "input_size": list(feeding.input_size[1:]),
        "mean": list(mean),
        "std": list(std),
        "interpolation": "bilinear",
        "to_rgb": True,
        "resize_mode": "stretch",
    }
    write_json(folder / "reid_config.json", {"architecture": architecture, "preprocessing": preprocessing})
    return ForClient(None, folder)


CLIENTS: Mapping[str, Callable[[nn.Module, Path, dict[str, Any]], ForClient]] = {
    "ultralytics": _for_ultralytics,
    "deepstream": _for_deepstream,
    "roboflow": _for_roboflow,
}
"""Programs with a form of their own. BoxMOT and torchreid take what `export` and `save_student` write."""


def _onnx(model: nn.Module, path: Path, options: dict[str, Any], client: str) -> Exported:
    if path.suffix != ".onnx":
        raise ConfigError(f"-o is '{path}'; client '{client}' takes a file that ends in .onnx")
    return export(model, path, **{**options, "input": "unit"})


def _osnet_of(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The stock OSNet whose backbone has these shapes."""
    for name in OSNETS:
        stock = models.build(name, 1).state_dict()
        if shapes == {key: tuple(tensor.shape) for key, tensor in stock.items() if not is_classifier(key)}:
            return name
    raise ConfigError(
        f"client 'roboflow' builds networks by name, and this one has the shapes of none of {', '.join(OSNETS)}; make "
        "the student like one of them: oskt expand chain.safetensors --like osnet_x0_25"
    )


def _write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    with atomic(path) as temporary:
        temporary.write_text(yaml.safe_dump(dict(content), sort_keys=False, default_flow_style=None), encoding="utf-8")
