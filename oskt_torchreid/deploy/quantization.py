"""Eight-bit networks: ONNX Runtime's static quantisation, calibrated with real images."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from torch import Tensor

from ..batches import batches_of, images_of
from ..errors import ConfigError, DataError, ExportError
from .deployment import INPUT
from .packages import package, silence

CALIBRATION_IMAGES = 128
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
            "precision 'int8' needs real images to find the range of every activation; give a loader of them "
            "(calibration=...), or a data set to tools/export.py"
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


def to_int8(model: Any, batches: Iterable[Tensor]) -> Any:
    """The ONNX model with eight-bit weights (per channel) and activations around convolutions and matrix products.

    Args:
        model: `onnx.ModelProto` in single precision.
        batches: images `[batch, channels, height, width]` that show the range of every activation.

    Raises:
        ExportError: the quantiser fails.
    """
    purpose = "precision 'int8'"
    onnx = package("onnx", purpose)
    package("onnxruntime", purpose)
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._batches = iter(batches)

        def get_next(self) -> dict[str, np.ndarray] | None:
            images = next(self._batches, None)
            return None if images is None else {INPUT: images.numpy()}

    with TemporaryDirectory() as folder, silence():
        plain, prepared, quantised = (str(Path(folder) / f"{name}.onnx") for name in ("plain", "prepared", "int8"))
        try:
            onnx.save(model, plain)
            quant_pre_process(plain, prepared, skip_symbolic_shape=True)
            quantize_static(
                prepared,
                quantised,
                Reader(),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=OPERATORS,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
            return onnx.load(quantised)
        except OSError:
            raise
        except Exception as error:  # the quantiser raises many types
            reason = str(error).strip().partition("\n")[0]
            raise ExportError(f"the network cannot be quantised ({reason}); export it in fp16") from error
