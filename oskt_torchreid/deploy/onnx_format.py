"""Networks in ONNX's format: torch's own exporter over a traced program, half precision, metadata."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from ..errors import ExportError
from .deployment import INPUT, OUTPUT
from .packages import package

OPSET = 18
PRODUCER = "oskt_torchreid"
_EXAMPLES = 2  # images of the traced batch; one would be taken for a length that never changes


def to_onnx(network: nn.Module, input_size: tuple[int, int, int], opset: int = OPSET) -> Any:
    """The network as an ONNX model whose batch size is free.

    Args:
        network: in evaluation, on the CPU, with one input and one output.
        input_size: ``(channels, height, width)``.
        opset: version of ONNX's operators.

    Returns:
        ``onnx.ModelProto``, weights inside; input ``images``, output ``features``.

    Raises:
        ExportError: code that depends on the values of tensors, or an operator that ONNX has not; names the operator
            and the module that uses it.
    """
    images = torch.rand(_EXAMPLES, *input_size, generator=torch.Generator().manual_seed(0))
    with silence():
        program = _traced(network, images)
        try:
            converted = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=opset,
                input_names=[INPUT],
                output_names=[OUTPUT],
                external_data=False,
            )
        except Exception as error:  # the exporter's own error types are private
            raise ExportError(_refusal(program, error, f"ONNX's operators of version {opset}")) from error
    model = converted.model_proto
    _name_batch(model)
    return model


def describe(model: Any, metadata: Mapping[str, str]) -> Any:
    """Writes metadata into an ONNX model, in place, as its ``metadata_props``; returns it."""
    model.producer_name = PRODUCER
    package("onnx", "format 'onnx'").helper.set_model_props(model, dict(metadata))
    return model


def to_half(model: Any) -> Any:
    """The ONNX model with weights and operators in half precision; images and features stay in single precision."""
    package("onnxruntime", "precision 'fp16'")
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with silence():
        return convert_float_to_float16(model, keep_io_types=True)


def _traced(network: nn.Module, images: torch.Tensor) -> ExportedProgram:
    try:
        with torch.no_grad():
            return torch.export.export(network, (images,), dynamic_shapes=({0: Dim.DYNAMIC},))
    except Exception as error:  # torch.export raises many types
        reason = _first_line(error)
        raise ExportError(
            f"{type(network.network).__name__} cannot be traced for an export ({reason}); its code may depend on the "
            "values of tensors or on the batch size: mend it, or export to torchscript"
        ) from error


def _refusal(program: ExportedProgram, error: Exception, what: str) -> str:
    """A message that names the operator and the module that an exporter stopped at."""
    text = "\n".join(str(reason) for reason in _causes(error))
    for node in program.graph.nodes:
        if node.op == "call_function" and re.search(rf"%{re.escape(node.name)}\b", text):
            stack = list((node.meta.get("nn_module_stack") or {}).values())
            module, kind = stack[-1] if stack else ("", "")
            place = f"module '{_plain(module)}' ({str(kind).rpartition('.')[2]})" if _plain(module) else "the network"
            return f"operator '{node.target}' of {place} is none of {what}; use another one there"
    return f"the network cannot be written with {what} ({_first_line(error)})"


def _plain(module: str) -> str:
    """A module's name inside the network that the user knows."""
    return module.removeprefix("network").removeprefix(".")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _name_batch(model: Any) -> None:
    """Calls the free length of the batch ``batch`` instead of a symbol that torch made up."""
    symbol = model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for length in value.type.tensor_type.shape.dim:
            if symbol and length.dim_param == symbol:
                length.dim_param = "batch"


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keeps what exporters report of their progress, to stdout and otherwise, from the user."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "onnxruntime")]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)
