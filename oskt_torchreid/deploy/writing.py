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

from ..errors import DataError, ExportError
from .deployment import Deployment
from .eight_bits import ALL_LAYERS, EightBits, LayerError, layer_errors, least_kept
from .equalization import equalized
from .onnx_format import OPSET, describe, to_half, to_onnx
from .packages import openvino_core, package, silence
from .parity import pictures
from .quantization import Quantizer
from .runtimes import METADATA_FILE, SECTION, openvino_takes, run_onnx, run_openvino

_CHECKED = 8  # of the images that calibrate
_COMPARED = 32  # about as many, for what layers lose


class Conversion:
    """A deployment for writing into files; what formats share is made once.

    Args:
        deployment: the network and its facts.
        batches: normalised images that calibrate eight-bit networks.
        opset: version of ONNX's operators.
        eight_bits: how these are made.
        format: that they are for.
    """

    def __init__(
        self,
        deployment: Deployment,
        batches: Sequence[Tensor] = (),
        opset: int = OPSET,
        eight_bits: EightBits = ALL_LAYERS,
        format: str = "onnx",
    ) -> None:
        self.deployment, self.batches, self._opset, self.eight_bits = deployment, batches, opset, eight_bits
        self._format = format

    def onnx_model(self, precision: str) -> Any:
        """A new ONNX model in a precision, without metadata."""
        if precision == "int8":
            return self.quantizer.quantised(self.kept)
        model = copy.deepcopy(self._onnx_model)
        if precision == "fp16":
            return to_half(model)
        return model

    @property
    def plain_size(self) -> int:
        """Bytes of the network's ONNX file in single precision, which those of other precisions come from."""
        return self._onnx_model.ByteSize()

    @cached_property
    def fed_batches(self) -> list[Tensor]:
        """The images that calibrate, in the form that the file takes.

        Raises:
            DataError: fewer than a batch.
        """
        feeding = self.deployment.feeding
        found = feeding.batches(self.batches)
        if not found:
            raise DataError(
                f"{sum(map(len, self.batches))} images cannot calibrate a file that always takes {feeding.batch}; give "
                "at least as many"
            )
        return found

    @cached_property
    def check_images(self) -> list[Tensor]:
        """Batches, in the form that the file takes, to compare file and network: a few that calibrate, or made up."""
        feeding, images = self.deployment.feeding, torch.cat(list(self.batches)) if self.batches else torch.empty(0)
        few = images[torch.linspace(0, max(len(images) - 1, 0), min(len(images), _CHECKED)).long()]
        parts = [part for part in (few[:1], few[1:4], few[4:]) if len(part)]  # batches of different sizes
        return feeding.batches(parts) or pictures(feeding)

    @cached_property
    def quantizer(self) -> Quantizer:
        """Makes the network in eight bits."""
        network = self.deployment.network
        if self.eight_bits.equalize:
            network = copy.deepcopy(network)
            network.network = equalized(network.network, self.batches)
        return Quantizer(self._to_onnx(network), self.fed_batches, self.eight_bits.ranges)

    @cached_property
    def kept(self) -> tuple[str, ...]:
        """Names of the layers that stay out of eight bits."""
        how = self.eight_bits
        spared, runtime = (self._spared, run_openvino) if self._format == "openvino" else ((), run_onnx)
        if how.max_drop is None:
            return tuple(dict.fromkeys((*spared, *how.kept)))
        feeding = self.deployment.feeding
        return least_kept(self.quantizer, feeding, lambda: self.layer_errors, how, spared, runtime)

    @cached_property
    def _spared(self) -> tuple[str, ...]:
        """Names of the layers that OpenVINO must not have in eight bits, whatever they lose.

        Those that read the image: without dot products of bytes, a processor adds pairs of products in sixteen bits,
        which the image's large values overflow. And those that OpenVINO refuses, such as a product of tokens that
        were quantised one by one.
        """
        quantizer = self.quantizer
        spared = quantizer.first
        if openvino_takes(quantizer.quantised(spared).SerializeToString()):
            return spared
        others = (name for name in quantizer.layers if name not in spared)
        return (*spared, *(name for name in others if not openvino_takes(quantizer.alone(name).SerializeToString())))

    @cached_property
    def layer_errors(self) -> list[LayerError]:
        """What each layer loses in eight bits by itself, on some of the images that calibrate, the worst first."""
        images = self.fed_batches
        return layer_errors(self.quantizer, images[: -(-_COMPARED // max(len(images[0]), 1))])

    @cached_property
    def _onnx_model(self) -> Any:
        return self._to_onnx(self.deployment.network)

    def _to_onnx(self, network: nn.Module) -> Any:
        feeding = self.deployment.feeding
        return to_onnx(network, feeding.example(), self._opset, free=feeding.batch is None)


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
    images = deployment.feeding.example()
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
