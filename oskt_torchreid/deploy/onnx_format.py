"""Networks in ONNX's format: torch's own exporter over a traced program, half precision, metadata."""

from __future__ import annotations

import ast
import contextlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch._decomp import decomposition_table
from torch.export import Dim, ExportedProgram

from ..errors import ExportError
from .deployment import INPUT, OUTPUT
from .folding import fold_norms
from .packages import package, silence

OPSET = 18
PRODUCER = "oskt_torchreid"


def to_onnx(network: nn.Module, images: torch.Tensor, opset: int = OPSET, free: bool = True) -> Any:
    """The network as an ONNX model.

    Args:
        network: in evaluation, on the CPU, with one input and one output.
        images: an example of its input; if the batch size is free, of two at least.
        opset: version of ONNX's operators.
        free: whether it takes any number of images; else as many as the example.

    Returns:
        `onnx.ModelProto`, weights inside; input `images`, output `features`.

    Raises:
        ExportError: code that depends on the values of tensors, or an operator that ONNX does not have; the message
            names it and the module that uses it.
    """
    with silence(), torch.no_grad():
        program = _traced(network, images, free)
        fold_norms(program)
        try:
            # An ONNXProgram: only torch's older exporter, which has `dynamo=False`, gives None.
            converted: Any = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=opset,
                input_names=[INPUT],
                output_names=[OUTPUT],
                optimize=False,
            )
            # One round instead of two: the second finds nothing in these networks and takes seconds.
            package("onnxscript.optimizer", "format 'onnx'").optimize(converted.model, num_iterations=1)
        except Exception as error:  # the exporter's own error types are private
            raise ExportError(_refusal(program, error, f"ONNX's operators of version {opset}")) from error
    model = converted.model_proto
    written = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if written != opset:  # the exporter converts from its own version, and keeps that version if it fails
        raise ExportError(f"the network cannot be written with opset {opset}, only with {written}; use that")
    if free:
        _name_batch(model)
    _name_products(model)
    _strip(model)
    return model


def describe(model: Any, metadata: Mapping[str, str]) -> Any:
    """Writes metadata into an ONNX model, in place, as its `metadata_props`; returns it."""
    model.producer_name = PRODUCER
    package("onnx", "format 'onnx'").helper.set_model_props(model, dict(metadata))
    return model


def to_half(model: Any) -> Any:
    """The ONNX model with weights and operators in half precision; images and features stay in single precision."""
    package("onnxruntime", "precision 'fp16'")
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with silence():
        return convert_float_to_float16(model, keep_io_types=True)


def _traced(network: nn.Module, images: torch.Tensor, free: bool) -> ExportedProgram:
    try:
        return torch.export.export(network, (images,), dynamic_shapes=({0: Dim.DYNAMIC},) if free else None)
    except Exception as error:  # torch.export raises many types
        raise ExportError(
            f"{type(network.network).__name__} cannot be traced for an export ({_first_line(error)}{_place(error)}); "
            "code must not depend on the values of tensors, nor take the batch size for a plain number "
            "(images.shape[0], not len(images))"
        ) from error


def _refusal(program: ExportedProgram, error: Exception, what: str) -> str:
    """A message that names the operator and the module that an exporter stopped at."""
    text = "\n".join(str(reason) for reason in _causes(error))
    stopped = re.findall(r"translating node %(\w+)", text)[:1]
    for node in _decomposed_nodes(program) if stopped else ():
        if node.name in stopped:
            operator = node.meta.get("original_aten") or node.target
            return f"operator '{operator}' of {_owner(node)} is none of {what}; use others there"
    missing = re.search(r"op='([\w.:]+)'", text)
    return f"the network cannot be written with {what} ({f'operator {missing[1]}' if missing else _first_line(error)})"


def _decomposed_nodes(program: ExportedProgram) -> Iterator[Any]:
    """Operators of a program, and of its decomposition by torch, whose nodes have exporters' names."""
    yield from program.graph.nodes
    with contextlib.suppress(Exception):  # there is an error to report anyway
        yield from program.run_decompositions().graph.nodes
        yield from program.run_decompositions(dict(decomposition_table)).graph.nodes


def _owner(node: Any) -> str:
    """The module whose own code calls an operator, by its name inside of the network that the user knows."""
    name, kind = next(reversed((node.meta.get("nn_module_stack") or {"": ("", "")}).values()))
    name = name.removeprefix("network").removeprefix(".")
    kind = kind if isinstance(kind, str) else kind.__qualname__
    return f"module '{name}' ({kind.rpartition('.')[2]})" if name else "the network's own code"


def _place(error: Exception) -> str:
    """The line of code at which tracing stopped, if the error names it."""
    lines = re.findall(r'File "([^"]+)", line (\d+), in .*\n\s+(.+)', str(error))
    return "".join(f"; at {path.rpartition('/')[2]}:{line}: {code}" for path, line, code in lines[-1:])


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _first_line(error: Exception) -> str:
    """The first informative line; torch's own reports of a violated batch size begin with a headline."""
    lines = [line.strip(" -") for line in str(error).strip().splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return next((line for line in lines if "specialized it to be a constant" in line), lines[0])


def _name_products(model: Any) -> None:
    """Names matrix products after their modules, in place: what layers lose in eight bits is told by these names.

    A linear layer's weight, which the exporter transposed and named anew, is called as in the network; other weights
    keep their names. A product of two activations, which has no weight, gets its module's name before its own.
    """
    weights = {each.name: each for each in model.graph.initializer}
    readers = Counter(name for node in model.graph.node for name in node.input)
    for node in [each for each in model.graph.node if each.op_type == "MatMul" and _module_of(each)]:
        name, weight = f"{_module_of(node)}.weight", weights.get(node.input[1])
        if weight is None:
            node.name = f"{_module_of(node)}.{node.name}"
        elif "." not in weight.name and readers[weight.name] == 1 and name not in weights:
            weight.name = node.input[1] = name
            weights[name] = weight


def _module_of(node: Any) -> str:
    """The module whose code calls an operator; empty: the exporter does not say."""
    scopes = next((entry.value for entry in node.metadata_props if entry.key.endswith("name_scopes")), "[]")
    names: list[str] = ast.literal_eval(scopes)  # of the modules, then of the operator
    return names[-2] if len(names) > 1 else ""


def _strip(model: Any) -> None:
    """Takes out, in place, where in whose code each operator came from: more bytes than a small student's weights."""
    graph = model.graph
    for part in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


def _name_batch(model: Any) -> None:
    """Calls the free length of the batch `batch` instead of a symbol that torch made up."""
    symbol = model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for length in value.type.tensor_type.shape.dim:
            if symbol and length.dim_param == symbol:
                length.dim_param = "batch"
