"""Exported networks inside the programs that run them: ONNX Runtime, OpenVINO, torch's own script interpreter."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import ConfigError, ExportError
from .deployment import INPUT
from .feeding import Feeding
from .packages import openvino_core, package, silence
from .parity import Run

METADATA_FILE = "metadata.json"  # inside of a TorchScript archive
SECTION = "oskt"  # of an OpenVINO network's rt_info
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def open_exported(path: str | Path, format: str, threads: int = 0, shown: str | Path = "") -> Run:
    """A function of NumPy arrays that runs an exported file on the CPU.

    Args:
        path: file that `export` wrote.
        format: `onnx`, `openvino` or `torchscript`.
        threads: of one operator; 0: the runtime's choice. TorchScript runs with torch's own number.
        shown: the file's name in messages, if it has a temporary one.

    Returns:
        Maps images, in the form that the file takes (see `Feeding`), to features `[batch, feature_dim]` of single
        precision.

    Raises:
        ExportError: a file that the runtime cannot read.
        ConfigError: the runtime is not installed.
    """
    openers: dict[str, Callable[[str, int], Run]]
    openers = {"onnx": run_onnx, "openvino": run_openvino, "torchscript": _run_torchscript}
    try:
        return openers[format](str(path), threads)
    except ConfigError:
        raise
    except Exception as error:  # each runtime has its own errors
        lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith("Exception from ")]
        reason = (lines or [type(error).__name__])[0].strip()[:300]
        raise ExportError(f"'{shown or path}' cannot be opened ({reason}); export it again") from error


def run_onnx(model: str | bytes, threads: int = 0, device: str = "cpu") -> Run:
    """A function that runs a network in ONNX's format, a file or its content, in ONNX Runtime."""
    provider = onnx_provider(device)
    onnxruntime = package("onnxruntime", "backend 'onnxruntime'")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors alone
    session = onnxruntime.InferenceSession(model, options, providers=[provider])
    return lambda images: session.run(None, {INPUT: images})[0]


def onnx_provider(device: str) -> str:
    """The part of ONNX Runtime that computes on a device, `cpu` or `cuda`; raises `ConfigError` where it is missing."""
    provider = _PROVIDERS[device]
    if provider not in package("onnxruntime", "backend 'onnxruntime'").get_available_providers():
        raise ConfigError(f"this onnxruntime has no {provider}; install onnxruntime-gpu, or measure on 'cpu'")
    return provider


def run_openvino(model: str | bytes, threads: int = 0) -> Run:
    """A function that runs a network, a file of IR or the content of one in ONNX's format, in OpenVINO on the CPU.

    Operators compute in single precision: otherwise OpenVINO would use bfloat16 if the processor supports it.
    """
    settings = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1", "INFERENCE_PRECISION_HINT": "f32"}
    if threads:
        settings["INFERENCE_NUM_THREADS"] = str(threads)
    core = openvino_core()
    compiled = core.compile_model(core.read_model(model), "CPU", settings)
    request = compiled.create_infer_request()
    return lambda images: request.infer({0: images})[0].copy()


def openvino_takes(model: bytes) -> bool:
    """Whether OpenVINO can read a network in ONNX's format and prepare it for the CPU."""
    try:
        run_openvino(model)
    except RuntimeError:
        return False
    return True


def _run_torchscript(path: str, threads: int) -> Run:
    with silence():
        module = torch.jit.load(path, map_location="cpu").eval()

    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return module(torch.from_numpy(images)).numpy()

    return run


def read_metadata(path: str | Path, format: str) -> dict[str, Any]:
    """The metadata of an exported file: input size, mean, std and more, see `Deployment.metadata`."""
    if format == "onnx":
        properties = package("onnx", "format 'onnx'").load(str(path), load_external_data=False).metadata_props
        texts = {entry.key: entry.value for entry in properties}
    elif format == "openvino":
        model = openvino_core().read_model(str(path))
        entries = model.get_rt_info([SECTION]).value.items()
        texts = {name: entry if isinstance(entry, str) else entry.value for name, entry in entries}
    else:
        files = {METADATA_FILE: ""}
        with silence():
            torch.jit.load(str(path), map_location="cpu", _extra_files=files)
        texts = json.loads(files[METADATA_FILE])
    return {name: json.loads(text) for name, text in texts.items()}


class ExportedNetwork(nn.Module):
    """An exported file as a network, so that torchreid's engines can evaluate it.

    Args:
        run: the result of `open_exported`.
        feeding: of the file; `None`: any number of normalised images.
    """

    def __init__(self, run: Run, feeding: Feeding | None = None) -> None:
        super().__init__()
        self.run, self.feeding = run, feeding

    def forward(self, images: Tensor) -> Tensor:
        """Features `[batch, feature_dim]` of normalised images `[batch, channels, height, width]`, on their device."""
        given = images.float().contiguous().cpu()
        size = (self.feeding and self.feeding.batch) or len(given)
        parts = [self._features(part, size) for part in given.split(size)]
        return torch.cat(parts).to(images.device)

    def _features(self, images: Tensor, size: int) -> Tensor:
        """Features of at most as many images as the file takes; what is missing is filled up with the last."""
        filled = torch.cat([images, images[-1:].expand(size - len(images), -1, -1, -1)])
        fed = filled if self.feeding is None else self.feeding.fed(filled)
        return torch.from_numpy(self.run(fed.contiguous().numpy()))[: len(images)]
