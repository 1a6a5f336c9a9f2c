"""Exports: a network in a file that runs without this package, and without torch."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..batches import IMAGENET_MEAN, IMAGENET_STD
from ..errors import ConfigError, ExportError
from ..files import atomic
from .deployment import Deployment
from .eight_bits import ALL_LAYERS, EightBits, LayerError
from .feeding import INPUTS
from .onnx_format import OPSET
from .packages import require
from .parity import Parity, check_parity
from .quantization import CALIBRATION_IMAGES, calibration_batches
from .runtimes import open_exported
from .writing import Conversion, write_onnx, write_openvino, write_torchscript

logger = logging.getLogger(__name__)

WRITERS = {"onnx": write_onnx, "openvino": write_openvino, "torchscript": write_torchscript}
FORMATS = tuple(WRITERS)
PRECISIONS = ("fp32", "fp16", "int8")
SUFFIXES = {".onnx": "onnx", ".xml": "openvino", ".torchscript": "torchscript", ".ts": "torchscript"}
COMPANIONS = {"openvino": ".bin"}
OPSETS = (18, 23)  # the opset that torch's exporter writes


@dataclass(frozen=True)
class Exported:
    """A file that was written and checked.

    Attributes:
        path: of the file; an OpenVINO network has its weights next to it, as `.bin`.
        format: `onnx`, `openvino` or `torchscript`.
        precision: `fp32`, `fp16` or `int8`.
        size: bytes, of both files if there are two.
        feature_dim: length of a feature, or the number of class scores.
        output: which tensor of the network the file gives, in words.
        parity: how far its features are from the network's.
        plain_size: bytes of the same network in an ONNX file of single precision, if the precision is different.
        kept: in eight bits, names of the layers whose weights are in half precision.
        layers: in eight bits, what each layer loses by itself, the worst first, if asked for.
    """

    path: Path
    format: str
    precision: str
    size: int
    feature_dim: int
    output: str
    parity: Parity
    plain_size: int | None = None
    kept: tuple[str, ...] = ()
    layers: tuple[LayerError, ...] = ()

    def __str__(self) -> str:
        text = (
            f"{self.path}: {self.format}, {self.precision}, {self.size / 1e6:.3g} MB; output: {self.output} "
            f"({self.feature_dim}); parity: {self.parity}"
        )
        if self.kept:
            text += f"; kept in fp16: {', '.join(self.kept)}"
        if self.plain_size is None or self.size <= self.plain_size:
            return text
        return (
            f"{text}; it is larger than in fp32 ({self.plain_size / 1e6:.3g} MB), for what {self.precision} adds to so "
            "small a network is more than it saves: write fp32 or fp16 where size matters"
        )


def export(
    model: nn.Module,
    path: str | Path,
    format: str = "",
    *,
    precision: str = "fp32",
    output: str = "feature",
    feature: str = "own",
    normalize: bool = False,
    input_size: Sequence[int] | None = None,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    calibration: Iterable[Any] | None = None,
    calibration_images: int = CALIBRATION_IMAGES,
    eight_bits: EightBits = ALL_LAYERS,
    input: str = INPUTS[0],
    batch: int | None = None,
    opset: int = OPSET,
) -> Exported:
    """Writes a network into a file for ONNX Runtime, OpenVINO or TorchScript, and checks the file's features.

    It runs on several batches, of different sizes unless one is given, before it takes its place; one whose features
    differ from the network's, or do not distinguish images, is deleted.

    Args:
        model: a student, a teacher or any torchreid model; not changed.
        path: file to write, whole or not at all.
        format: `onnx`, `openvino` or `torchscript`; by default that of the suffix: `.onnx`, `.xml`, `.torchscript`.
        precision: `fp32`; `fp16`, half the bytes; or `int8` (onnx, openvino), a quarter of them. It is inside alone.
        output: `feature`: what the network returns in evaluation, or, where that is class scores, the tensor before its
            classifier; `scores`: these.
        feature: of a student, `own`, or `teacher`: lifted, so that files of all widths of one chain share one gallery.
        normalize: divide each feature by its L2 norm.
        input_size: `(channels, height, width)`; by default what the student or the registered model is made for.
        mean: of pixels in `[0, 1]`, for clients to subtract; kept in the file, and applied by one that takes pixels.
        std: for clients to divide by afterwards; likewise.
        calibration: loader of normalised images, as for evaluation; needed for `int8`, and used for the check.
        calibration_images: how many of them to use at most.
        eight_bits: how `int8` is made.
        input: `float`, normalised images; `unit` or `uint8` for files that normalise themselves, see `Feeding`.
        batch: images at a time, for importers that want fixed shapes (onnx, openvino); `None`: any number.
        opset: version of ONNX's operators.

    Returns:
        The written file, which says how to feed it (`Deployment.metadata`: in ONNX as `metadata_props`, in OpenVINO as
        `rt_info` under `oskt`, in TorchScript as the extra file `metadata.json`), and how far off its features are.

    Raises:
        ConfigError: a choice that does not exist, scores of a network without, a missing package, int8 without images.
        FeatureError: a network whose features cannot be lifted.
        ExportError: several outputs, a path that cannot be written, an operator that is missing, features that differ.
    """
    path = Path(path)
    format = check_request(path, format, precision, opset, batch, eight_bits)
    deployment = Deployment.of(model, input_size, mean, std, normalize, output, feature, input, batch)
    wanted = precision == "int8" or calibration is not None
    size = deployment.feeding.input_size
    batches = calibration_batches(calibration, size, calibration_images) if wanted else []
    conversion = Conversion(deployment, batches, opset, eight_bits, format)
    return write_checked(conversion, path, format, precision, conversion.check_images)


def write_checked(
    conversion: Conversion, path: Path, format: str, precision: str, images: Iterable[Tensor]
) -> Exported:
    """The second half of `export`: arguments are checked and prepared.

    Args:
        conversion: of the network.
        path: file to write.
        format: of `FORMATS`.
        precision: of `PRECISIONS`.
        images: batches, in the form that the file takes, on which it must agree with the network.
    """
    companion = COMPANIONS.get(format, "")
    network = conversion.deployment.network
    try:
        with atomic(path, companion) as temporary:
            WRITERS[format](temporary, conversion, precision)
            parity = check_parity(network, open_exported(temporary, format, shown=path), images, precision, path)
    except OSError as error:
        raise ExportError(
            f"'{path}' cannot be written ({error.strerror or error}); nothing was left behind: free the disk or give "
            "another path"
        ) from error
    written = [path, *([path.with_suffix(companion)] if companion else [])]
    size = sum(file.stat().st_size for file in written)
    plain_size = conversion.plain_size if precision != "fp32" and format != "torchscript" else None
    deployment = conversion.deployment
    facts = (size, deployment.feature_dim, deployment.output, parity, plain_size)
    eight = precision == "int8"
    layers = tuple(conversion.layer_errors) if eight and conversion.eight_bits.report else ()
    exported = Exported(path, format, precision, *facts, conversion.kept if eight else (), layers)
    logger.info("%s", exported)
    return exported


def format_of(path: str | Path, format: str = "") -> str:
    """The requested format, or the one of a path's suffix.

    Raises:
        ConfigError: no such format, or a suffix without one.
    """
    if format:
        if format not in WRITERS:
            raise ConfigError(f"format of an export is '{format}'; allowed: {', '.join(FORMATS)}")
        if (usual := SUFFIXES.get(Path(path).suffix.lower(), format)) != format:
            raise ConfigError(f"the suffix of '{path}' stands for {usual}, and the format is '{format}'; change one")
        return format
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        known = ", ".join(f"{name} ({kind})" for name, kind in SUFFIXES.items())
        raise ConfigError(f"the suffix '{suffix}' of '{path}' stands for no format; known: {known}; or name the format")
    return SUFFIXES[suffix]


def check_writable(path: Path) -> None:
    """Raises `ExportError` if a file cannot be written, before anything is computed for it."""
    if path.is_dir():
        raise ExportError(f"'{path}' is a folder; give the path of a file in it")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        what = "is not writable" if folder.is_dir() else "is a file, not a folder"
        raise ExportError(f"'{path}' cannot be written: '{folder}' {what}; give another path")


def check_request(
    path: Path, format: str, precision: str, opset: int, batch: int | None = None, eight_bits: EightBits = ALL_LAYERS
) -> str:
    """The format of an export that is possible here; arguments and errors as of `export`, before anything is done."""
    format = format_of(path, format)
    if precision not in PRECISIONS:
        raise ConfigError(f"precision of an export is '{precision}'; allowed: {', '.join(PRECISIONS)}")
    if precision == "int8" and format == "torchscript":
        raise ConfigError("TorchScript is not written in int8; choose the format onnx or openvino, or fp16")
    if precision != "int8" and eight_bits != ALL_LAYERS:
        raise ConfigError(f"eight_bits is about int8, and the precision is '{precision}'; leave it out, or export int8")
    if batch is not None and format == "torchscript":
        raise ConfigError("TorchScript has no fixed batch; choose the format onnx or openvino, or leave batch out")
    if opset != OPSET and format == "torchscript":
        raise ConfigError("opset is about ONNX's operators, and TorchScript has others; leave it out")
    if not (isinstance(opset, int) and OPSETS[0] <= opset <= OPSETS[1]):
        raise ConfigError(f"opset of an export is {opset}; allowed: {OPSETS[0]} to {OPSETS[1]}")
    if format == "openvino" and path.suffix != ".xml":
        raise ConfigError(f"OpenVINO finds the weights by the suffix; give '{path.stem}.xml', not '{path.name}'")
    require(format, f"format '{format}'", *(["onnxruntime"] if precision == "int8" else []))
    check_writable(path)
    return format
