"""One function per format that puts a network into a file, at a path that `files.atomic` gave."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ExportError
from .deployment import Deployment
from .onnx_format import OPSET, describe, to_half, to_onnx
from .packages import openvino_core, package, silence
from .quantization import to_int8
from .runtimes import METADATA_FILE, SECTION


class Conversion:
    """A deployment for writing into files; what formats share is made once.

    Args:
        deployment: the network and its facts.
        batches: images that calibrate eight-bit networks.
        opset: version of ONNX's operators.
    """

    def __init__(self, deployment: Deployment, batches: Sequence[Tensor] = (), opset: int = OPSET) -> None:
        self.deployment, self.batches, self._opset = deployment, batches, opset

    def onnx_model(self, precision: str) -> Any:
        """A new ONNX model in a precision, without metadata."""
        model = copy.deepcopy(self._onnx_model)
        if precision == "fp16":
            return to_half(model)
        return to_int8(model, self.batches) if precision == "int8" else model

    @property
    def plain_size(self) -> int:
        """Bytes of the network's ONNX file in single precision, which those of other precisions come from."""
        return self._onnx_model.ByteSize()

    @cached_property
    def _onnx_model(self) -> Any:
        return to_onnx(self.deployment.network, self.deployment.input_size, self._opset)


def write_onnx(path: Path, conversion: Conversion, precision: str) -> None:
    """Writes ONNX, weights inside of the file, metadata as its `metadata_props`."""
    metadata = conversion.deployment.metadata(precision)
    path.write_bytes(describe(conversion.onnx_model(precision), metadata).SerializeToString())


def write_openvino(path: Path, conversion: Conversion, precision: str) -> None:
    """Writes OpenVINO's IR: the network at `path`, its weights next to it as `.bin`, metadata as `rt_info`.

    The way leads over ONNX. In half precision the weights are; OpenVINO picks that of its operators by the device.
    """
    openvino = package("openvino", "format 'openvino'")
    model = conversion.onnx_model("fp32" if precision == "fp16" else precision)
    try:
        converted = openvino_core().read_model(model.SerializeToString())
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ExportError(f"OpenVINO cannot read the network ({reason}); export it to onnx or torchscript") from error
    for name, text in conversion.deployment.metadata(precision).items():
        converted.set_rt_info(text, [SECTION, name])
    try:
        openvino.save_model(converted, str(path), compress_to_fp16=precision == "fp16")
    except RuntimeError as error:  # a full disk, for example
        raise OSError(" ".join(str(error).split())[:300]) from error


def write_torchscript(path: Path, conversion: Conversion, precision: str) -> None:
    """Writes a traced and frozen TorchScript archive, metadata as the extra file `metadata.json`."""
    deployment = conversion.deployment
    network: nn.Module = HalfInside(deployment.network) if precision == "fp16" else deployment.network
    images = torch.rand(2, *deployment.input_size, generator=torch.Generator().manual_seed(0))
    try:
        with silence(), torch.no_grad():  # warnings of values that a trace takes for constants; parity sees them
            script = torch.jit.freeze(torch.jit.trace(network, images, check_trace=False))
    except Exception as error:  # torch.jit raises many types
        reason = str(error).strip().partition("\n")[0]
        raise ExportError(f"the network cannot be traced for TorchScript ({reason}); export it to onnx") from error
    extra = {METADATA_FILE: json.dumps(deployment.metadata(precision))}
    with open(path, "wb") as stream, silence():
        torch.jit.save(script, stream, _extra_files=extra)


class HalfInside(nn.Module):
    """A network that computes in half precision and takes and gives single precision."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).half()
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """As the network's own."""
        return self.network(images.half()).float()
