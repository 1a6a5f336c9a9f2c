"""Eight-bit networks: ONNX Runtime's static quantisation, calibrated with real images."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from torch import Tensor

from ..batches import batches_of, images_of
from ..errors import ConfigError, DataError, ExportError
from ..registry import nearest
from .deployment import INPUT
from .packages import package, silence

CALIBRATION_IMAGES = 128
RANGES = ("largest", "percentile", "entropy")
# By default ONNX Runtime has percentiles of absolute values, and as many bins as levels, so that entropy cuts nothing.
_HISTOGRAMS = {
    "percentile": {"percentile": 99.99, "num_bins": 2048, "symmetric": False},
    "entropy": {"num_bins": 2048, "num_quantized_bins": 128},
}
PURPOSE = "precision 'int8'"
# Nearly all weights and operations. Gates and sums between them stay in single precision: they cost little,
# and a gate in eight bits scales whole channels wrongly.
OPERATORS = ["Conv", "MatMul", "Gemm"]


def calibration_batches(loader: Iterable[Any] | None, input_size: tuple[int, int, int], most: int) -> list[Tensor]:
    """The first images of a loader, normalised as for evaluation.

    Args:
        loader: gives batches as `batches.images_of` takes them.
        input_size: `(channels, height, width)` that they must have.
        most: images to take at most.

    Raises:
        ConfigError: no loader.
        DataError: no images, or images of another size.
    """
    if loader is None:
        raise ConfigError(
            "precision 'int8' needs real images to find the range of every activation; give a loader of "
            "them as calibration=..."
        )
    batches: list[Tensor] = []
    for number, batch in enumerate(batches_of(loader), 1):
        images = images_of(batch, number)
        if tuple(images.shape[1:]) != input_size:
            raise DataError(
                f"calibration images are {tuple(images.shape[1:])}, and the export is for {input_size}; load them in "
                "that size"
            )
        batches.append(images[: most - sum(map(len, batches))].float().cpu())
        if sum(map(len, batches)) >= most:
            break
    if not sum(map(len, batches)):
        raise DataError("there are no images to calibrate with; give a loader that has some")
    return batches


class Quantizer:
    """One network, calibrated once, in eight bits: weights per channel, activations of any least and largest value.

    Args:
        model: `onnx.ModelProto` in single precision.
        batches: images, in the form that it takes, that show the range of every activation.
        ranges: how it is read from them, one of `RANGES`.
    """

    def __init__(self, model: Any, batches: Sequence[Tensor], ranges: str = RANGES[0]) -> None:
        self._onnx = package("onnx", PURPOSE)
        package("onnxruntime", PURPOSE)
        from onnxruntime.quantization.shape_inference import quant_pre_process

        self.batches, self._ranges = batches, ranges
        self._folder = TemporaryDirectory()
        plain, self._prepared = (str(Path(self._folder.name) / f"{name}.onnx") for name in ("plain", "prepared"))
        with silence(), _refusals():
            self._onnx.save(model, plain)
            quant_pre_process(plain, self._prepared, skip_symbolic_shape=True)
        graph = self.plain.graph
        weights = {initializer.name for initializer in graph.initializer}
        self._nodes: dict[str, str] = {}
        for node in graph.node:
            if node.op_type in OPERATORS:
                name = _layer_name(node, weights)
                # Layers that share a weight are told apart by their operators.
                self._nodes[name if name not in self._nodes else f"{name} ({node.name})"] = node.name

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of what is quantised, in order: of convolutions and matrix products, by their weights."""
        return tuple(self._nodes)

    @cached_property
    def first(self) -> tuple[str, ...]:
        """Names of the layers that read the image itself, whatever normalises it before."""
        graph = self.plain.graph
        weights, names = {each.name for each in graph.initializer}, {node: name for name, node in self._nodes.items()}
        reached, found = {each.name for each in graph.input} - weights, []
        for node in graph.node:  # in an order in which they can be computed
            if reached & set(node.input):
                if node.name in names:
                    found.append(names[node.name])
                elif node.op_type != "Shape":  # of which lengths are computed, not what layers read
                    reached |= set(node.output)
        return tuple(found)

    @property
    def plain(self) -> Any:
        """The model in single precision, as it is quantised."""
        return self._onnx.load(self._prepared)

    def quantised(self, kept: Iterable[str] = ()) -> Any:
        """The model in eight bits; layers that are kept have weights in half precision, and compute in single.

        Raises:
            ConfigError: no such layer.
            ExportError: the quantiser fails.
        """
        kept = list(kept)
        for name in kept:
            if name not in self._nodes:
                raise ConfigError(f"there is no layer '{name}'{nearest(name, self._nodes)} that could stay in fp16")
        if len(kept) == len(self._nodes):
            return halve_weights(self.plain, self._nodes.values())
        return halve_weights(self._made(nodes_to_exclude=self._nodes_of(kept)), self._nodes_of(kept))

    def alone(self, name: str) -> Any:
        """The model with one layer in eight bits."""
        return self._made(nodes_to_quantize=self._nodes_of([name]))

    def _nodes_of(self, names: Iterable[str]) -> list[str]:
        return [self._nodes[name] for name in names]

    @cached_property
    def _cache(self) -> Path:
        """A file with the range of every activation, part of the images at a time."""
        from onnxruntime.quantization import create_calibrator
        from onnxruntime.quantization.calibrate import save_tensors_data

        folder, path = Path(self._folder.name), Path(self._folder.name) / "ranges.json"
        with silence(), _refusals():
            calibrator = create_calibrator(
                Path(self._prepared),
                OPERATORS,
                str(folder / "augmented.onnx"),
                self._method,
                extra_options=_HISTOGRAMS.get(self._ranges, {}),
            )
            for images in self.batches:
                calibrator.collect_data(_reader([images]))
            save_tensors_data(calibrator.compute_data(), path)
        return path

    @property
    def _method(self) -> Any:
        from onnxruntime.quantization import CalibrationMethod

        names = {"largest": "MinMax", "percentile": "Percentile", "entropy": "Entropy"}
        return getattr(CalibrationMethod, names[self._ranges])

    def _made(self, **which: list[str]) -> Any:
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

        target, ranges = str(Path(self._folder.name) / "int8.onnx"), self._cache
        with silence(), _refusals():
            quantize_static(
                self._prepared,
                target,
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=OPERATORS,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=self._method,
                calibration_cache_path=ranges,
                **which,
            )
            return self._onnx.load(target)


def _layer_name(node: Any, initializers: set[str]) -> str:
    """The name of a layer's weight without what it has inside of a deployed network, or that of its node."""
    weight = next((name for name in node.input[1:] if name in initializers), node.name)
    return weight.removeprefix("network.").removesuffix(".weight")


def halve_weights(model: Any, nodes: Iterable[str]) -> Any:
    """Stores the weights that some nodes read in half precision, in place, where that has their range.

    They compute in single precision.
    """
    onnx = package("onnx", PURPOSE)
    wanted = set(nodes)
    read = {name for node in model.graph.node if node.name in wanted for name in node.input[1:2]}
    for initializer in [each for each in model.graph.initializer if each.name in read]:
        if initializer.data_type != onnx.TensorProto.FLOAT:
            continue
        whole = onnx.numpy_helper.to_array(initializer)
        if np.abs(whole).max(initial=0) > np.finfo(np.float16).max:
            continue
        numbers = whole.astype(np.float16)
        half = onnx.numpy_helper.from_array(numbers, f"{initializer.name}_fp16")
        cast = onnx.helper.make_node("Cast", [half.name], [initializer.name], to=onnx.TensorProto.FLOAT)
        model.graph.initializer.remove(initializer)
        model.graph.initializer.append(half)
        model.graph.node.insert(0, cast)
    return model


def _reader(batches: Iterable[Tensor]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._batches = iter(batches)

        def get_next(self) -> dict[str, np.ndarray] | None:
            images = next(self._batches, None)
            return None if images is None else {INPUT: images.numpy()}

    return Reader()


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Makes what the quantiser raises, of many types, an `ExportError`."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise ExportError(f"the network cannot be quantised ({reason}); export it in fp16") from error
