"""Students as files: plain checkpoints, `{"state_dict": ..., "oskt": ...}`, which torchreid's own loaders take too."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import files
from ..errors import CheckpointError, ConfigError, expect
from ..graph import rebuild
from ..networks import resolver, unwrapped
from .student_reading import load_student
from .student_record import StudentRecord


def save_student(student: nn.Module, path: str | Path, half: bool = False) -> None:
    """Writes a student as a checkpoint that torchreid's own loaders take: `{"state_dict": ..., "oskt": ...}`.

    The file is read back before it takes its place, so that what is saved can be loaded.

    Args:
        student: made by `expand`; may have been fine-tuned.
        path: written whole or not at all.
        half: numbers in half precision, for half the bytes; every loader converts them back.

    Raises:
        CheckpointError: a network that `expand` did not make, values beyond the range of half precision, or a student
            that its file does not give back.
    """
    student = unwrapped(student)
    content = file_content(student, half)
    files.save_checkpoint(path, content, lambda written: _check_written(written, Path(path), student, content))


def _check_written(written: Path, path: Path, student: nn.Module, content: dict) -> None:
    """Raises `CheckpointError` unless a written file gives a student back."""
    try:
        model = None if _is_registered(content["oskt"]["name"]) else rebuild(_inner(student), {}).cpu()
        state = _inner(load_student(written, model)).state_dict()
        different = [
            name
            for name, tensor in content["state_dict"].items()
            if not torch.equal(state[name], tensor.to(state[name]))
        ]
        if different:
            raise CheckpointError(f"'{different[0]}' is not read as it was written")
    except CheckpointError as error:
        reason = str(error).replace(str(written), str(path))
        raise CheckpointError(f"this student cannot be loaded again, so nothing was written: {reason}") from error


def _is_registered(name: str) -> bool:
    """Whether a network of this name can be built here."""
    try:
        return bool(name and resolver().builder_of(name))
    except ConfigError:
        return False


def save_plain(model: nn.Module, path: str | Path, half: bool = False) -> None:
    """Writes a state dict alone, `{"state_dict": ...}`, for programs that know the network by its name.

    Args:
        model: any; of one with a neck, `without_neck` makes the stock form first.
        path: written whole or not at all.
        half: numbers in half precision, for half the bytes.

    Raises:
        CheckpointError: values beyond the range of half precision.
    """
    model = unwrapped(model)
    expect(nn.Module, model, "what is saved", "give a network", CheckpointError)
    files.save_checkpoint(path, {"state_dict": _file_state(model, half)})


def file_content(student: nn.Module, half: bool = False) -> dict:
    """What `save_student` writes: `{"state_dict": ..., "oskt": ...}`.

    Args:
        student: made by `expand`.
        half: floating-point tensors in half precision; they are converted back when they are loaded.

    Raises:
        CheckpointError: a network that `expand` did not make, or values beyond the range of half precision.
    """
    student = unwrapped(student)
    record = getattr(student, "student_record", None)
    if not isinstance(record, StudentRecord):
        raise CheckpointError(f"this {type(student).__name__} was not made by expand; save it with torch.save instead")
    return {"state_dict": _file_state(_inner(student), half), "oskt": record.to_dict()}


def _inner(student: nn.Module) -> nn.Module:
    """The student that a lifted one has inside (`deploy/lifting.py`), whose tensors a file holds; any other itself."""
    record: StudentRecord = vars(student)["student_record"]
    return student.get_submodule("student") if record.feature == "teacher" else student


def _file_state(network: nn.Module, half: bool = False) -> dict[str, Tensor]:
    """The state dict of a network as it is written: in one order in memory, however the network was trained.

    Raises:
        CheckpointError: values beyond the range of half precision.
    """
    state = network.state_dict()
    for name, tensor in state.items():
        state[name] = (_halved(name, tensor) if half and tensor.is_floating_point() else tensor).contiguous()
    return state


def _halved(name: str, tensor: Tensor) -> Tensor:
    result = tensor.half()
    if torch.isfinite(tensor).all() and not torch.isfinite(result).all():
        raise CheckpointError(
            f"'{name}' has values up to {tensor.abs().max():.3g}, beyond the 65504 of half precision; save this "
            "student in full precision"
        )
    return result


def file_size(student: nn.Module, half: bool = False) -> int:
    """Bytes of the file that `save_student` writes, found by writing it to memory; same arguments and errors."""
    stream = io.BytesIO()
    torch.save(file_content(student, half), stream)
    return stream.getbuffer().nbytes
