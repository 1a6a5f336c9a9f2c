"""Students read from files: everything is checked before anything is returned.

Names of tensors do not determine their shapes, and any widths are legal, so a file is checked by running the network
once.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import files
from ..deploy.lifting import lifted
from ..errors import CheckpointError, ConfigError, GraphError, expect
from ..files import weights
from ..graph import rebuild
from ..graph.randomness import own_random_state
from ..graph.surgery.rebuild import restore_code
from ..graph.tracer import tracing_mode
from ..graph.tracing import twin_of
from ..networks import compare, number_type, resolver, unwrapped, watched
from . import network
from .student_record import StudentRecord


def load_student(path: str | Path, model: nn.Module | None = None) -> nn.Module:
    """Reads a student that `save_student` wrote; everything is checked before anything is returned.

    Args:
        path: checkpoint.
        model: the teacher's network, needed only if its builder is not registered; not changed.

    Returns:
        The student in evaluation mode.

    Raises:
        CheckpointError: a missing, damaged or unrelated file, or tensors that do not make the network it names.
    """
    if model is not None:
        model = unwrapped(model)
        expect(nn.Module, model, "model", "give the teacher's network", CheckpointError)
    content = files.load_checkpoint(path)
    record = StudentRecord.from_dict(content.get("oskt") if isinstance(content, dict) else None, path)
    state = weights.state_dict_of(content, path)
    original = _skeleton(record, path) if model is None else model
    try:
        student = restore_code(original, record.code, {name: tensor.shape for name, tensor in state.items()})
    except GraphError as error:
        raise CheckpointError(f"'{path}' does not make a student of {type(original).__name__}: {error}") from error
    expected = student.state_dict()
    _check_tensors(state, expected, f"'{path}'", record.name or type(original).__name__)
    full = {name: tensor.to(expected[name].dtype) for name, tensor in state.items()}
    student = rebuild(student, full).eval()
    _check_tensors_fit(student, record.input_size, str(path))
    if model is not None:
        _check_blocks(student, record, path)
    if record.feature_dim and record.feature_dim not in {
        t.shape[1] for t in state.values() if t.dim() > 1 and t[0, 0].numel() == 1
    }:
        raise CheckpointError(
            f"'{path}' says that its features are {record.feature_dim} long, which no layer of it takes; give a file "
            "that save_student wrote"
        )
    modules = dict(student.named_modules())
    if lost := next((name for name in record.keep if name not in modules), ""):
        raise CheckpointError(f"'{path}' keeps '{lost}' whole, which {type(student).__name__} does not have")
    record.attach(student)
    return lifted(student) if record.feature == "teacher" else student


def _check_blocks(student: nn.Module, record: StudentRecord, path: str | Path) -> None:
    try:
        network.check_blocks(student, record.blocks, record.input_size, record.keep)
    except (ConfigError, GraphError) as error:
        raise CheckpointError(f"'{path}' was made of another network: {error}") from error


def _skeleton(record: StudentRecord, path: str | Path) -> nn.Module:
    if not record.name:
        raise CheckpointError(
            f"the teacher of '{path}' is not a registered model; pass its network: model=..., oskt export --model NAME"
        )
    try:
        return resolver().skeleton(record.name, record.num_classes, record.loss)
    except ConfigError as error:
        raise CheckpointError(f"'{path}' cannot be loaded: {error}") from error


def _check_tensors(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str, target: str) -> None:
    """Raises `CheckpointError` unless tensors have the names, kinds of numbers and dimensions of a network.

    Args:
        state: of a file.
        expected: of the network, in any widths.
        source: where they come from, for the message.
        target: the network they are loaded into, for the message.
    """
    found = compare(state, expected, shape=Tensor.dim)
    if found.missing or found.unexpected:
        raise CheckpointError(
            f"{source} does not make a student of {target}: {len(found.missing)} tensors are missing "
            f"{sorted(found.missing)[:3]}, {len(found.unexpected)} unexpected {sorted(found.unexpected)[:3]}"
        )
    for name in found.misshaped:
        raise CheckpointError(
            f"tensor '{name}' of {source} has {state[name].dim()} dimensions, it must have {expected[name].dim()}. "
            "Nothing was loaded; give a file that save_student wrote"
        )
    for name, fault in found.unusable.items():
        raise CheckpointError(
            f"tensor '{name}' of {source} {fault}: the file is damaged, or the training that made it diverged. "
            "Nothing was loaded; give a file that save_student wrote"
        )


def _check_tensors_fit(student: nn.Module, input_size: tuple[int, ...], source: str) -> None:
    """Raises `CheckpointError`, naming the first module at which the tensors do not fit, and its tensors' shapes.

    Names of tensors do not determine their shapes, and any widths are legal, so the network has to be run, in the
    mode of a trace, which computes class scores.

    Args:
        student: not changed.
        input_size: `(channels, height, width)` of an image that it runs on.
        source: where the tensors come from, for the message.
    """
    entered: list[str] = [""]
    twin = twin_of(student)
    following = watched(twin.named_modules(), lambda name, *_: entered.append(name))
    try:
        with torch.inference_mode(), tracing_mode(twin), own_random_state(twin), following:
            twin(torch.zeros(1, *input_size, dtype=number_type(twin)))
    except Exception as error:  # a user's network may raise anything
        raise CheckpointError(_message(student, entered[-1], source, error)) from error


def _message(student: nn.Module, name: str, source: str, error: Exception) -> str:
    module = student.get_submodule(name)
    shapes = [f"'{name}.{key}' {tuple(tensor.shape)}".replace("'.", "'") for key, tensor in module.state_dict().items()]
    what = ", ".join(shapes[:4]) if shapes else f"what module '{name}' is given"
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return (
        f"tensors of '{source}' do not fit each other: {what} ({reason}). Nothing was loaded; give a file that "
        "save_student wrote"
    )
