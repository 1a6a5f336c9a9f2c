"""Students as files: the record of a student besides its tensors, written and read as a plain checkpoint.

A file is `{"state_dict": ..., "oskt": ...}`, which torchreid's own loaders take as well. Names of tensors do not
determine their shapes, and any widths are legal, so a file is checked by running the network once.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import files
from ..errors import CheckpointError, ConfigError, GraphError, expect
from ..files import weights
from ..files.checks import is_possible_image, is_possible_model
from ..graph import ChannelGraph, rebuild
from ..graph.building import twin_of
from ..graph.randomness import own_random_state
from ..graph.surgery.rebuild import describe_code, restore_code
from ..graph.tracer import tracing_mode
from ..networks import (
    DEFAULT_INPUT_SIZE,
    ModelSpec,
    compare,
    number_type,
    resolver,
    set_feature_dim,
    unwrapped,
    watched,
)
from . import network
from .distance import DISTANCES


@dataclass(frozen=True)
class StudentRecord:
    """The record in a student's file, besides its tensors.

    Attributes:
        name: registered name of the teacher's model; empty if it has none.
        num_classes: class count of the teacher.
        loss: loss that the teacher's model was built for.
        feature_dim: length of the feature; 0 where the network has several classifiers.
        code: how the student's own code was adapted, see `graph.surgery.rebuild.describe_code`.
        distance: the distances that its features were scaled to, see `distance.py`.
        input_size: `(channels, height, width)` of the image that the teacher was traced with.
        blocks: heads of each attention and blocks of each norm over channels, see `ChannelGraph.module_blocks`.
        keep: names of the modules that were asked to stay whole.
    """

    name: str = ""
    num_classes: int = 1
    loss: str = "softmax"
    feature_dim: int = 0
    code: dict = field(default_factory=dict)
    distance: str = "none"
    input_size: tuple[int, ...] = DEFAULT_INPUT_SIZE
    blocks: dict[str, int] = field(default_factory=dict)
    keep: tuple[str, ...] = ()

    def attach(self, student: nn.Module) -> nn.Module:
        """Gives a student, in place, its record and the attribute that holds its feature's length."""
        if self.feature_dim:
            set_feature_dim(student, self.feature_dim)
        vars(student)["student_record"] = self
        return student

    def inside(self, name: str) -> StudentRecord:
        """The record of a network that has the student as a child of this name, and names of modules accordingly."""
        code = {kind: [_moved(entry, name) for entry in entries] for kind, entries in self.code.items()}
        blocks = {_below(name, module): count for module, count in self.blocks.items()}
        return replace(self, code=code, blocks=blocks, keep=tuple(_below(name, module) for module in self.keep))

    def is_possible(self) -> bool:
        """Whether the numbers are possible for a network."""
        sizes = is_possible_image(self.input_size) and is_possible_model(self.num_classes, (self.name, self.loss))
        return sizes and self.feature_dim >= 0 and self.distance in DISTANCES

    def to_dict(self) -> dict:
        """Plain values, for a file."""
        return {"format": "oskt-student", **asdict(self), "keep": list(self.keep)}

    @classmethod
    def from_dict(cls, content: Any, path: str | Path) -> StudentRecord:
        """Inverse of `to_dict`; raises `CheckpointError` for anything else."""
        try:
            if content["format"] == "oskt-student" and isinstance(content["code"], dict):
                numbers = int(content["num_classes"]), str(content["loss"]), int(content["feature_dim"])
                distance = str(content.get("distance", "none"))
                size = tuple(int(length) for length in content.get("input_size", cls.input_size))
                blocks = {str(name): int(count) for name, count in content.get("blocks", {}).items()}
                keep = tuple(str(name) for name in content.get("keep", ()))
                record = cls(str(content["name"]), *numbers, content["code"], distance, size, blocks, keep)
                if record.is_possible():
                    return record
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
            pass
        raise CheckpointError(f"'{path}' is no student of this package (no valid 'oskt' entry); see save_student")


def _moved(entry: str | list, parent: str) -> str | list:
    """A module's name, or an entry of `describe_code` that begins with one, below a parent."""
    return _below(parent, entry) if isinstance(entry, str) else [_below(parent, entry[0]), *entry[1:]]


def _below(parent: str, module: str) -> str:
    return f"{parent}.{module}" if module else parent


def attach_record(student: nn.Module, graph: ChannelGraph, spec: ModelSpec | None, distance: str = "none") -> nn.Module:
    """Gives a narrowed network, in place, the record that `save_student` needs, and returns it.

    Args:
        student: of the teacher's class.
        graph: the teacher's channel graph.
        spec: how the teacher is built by its registered name; `None` where it has none.
        distance: whose distances its features were scaled to.
    """
    lengths = {student.get_parameter(name).shape[1] for name in graph.heads}
    feature_dim = lengths.pop() if len(graph.heads) == 1 else 0
    known = asdict(spec) if spec else {}
    record = StudentRecord(
        **known,
        feature_dim=feature_dim,
        code=describe_code(student, graph),
        distance=distance,
        input_size=graph.input_size,
        blocks=graph.module_blocks,
        keep=graph.keep,
    )
    return record.attach(student)


# ---- writing ---------------------------------------------------------------------------------------------------------


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
        loaded = load_student(written, None if _is_registered(content["oskt"]["name"]) else rebuild(student, {}).cpu())
        state = loaded.state_dict()
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
    return {"state_dict": _file_state(student, half), "oskt": record.to_dict()}


def _file_state(network: nn.Module, half: bool = False) -> dict[str, Tensor]:
    """The state dict of a network as it is written.

    Raises:
        CheckpointError: values beyond the range of half precision.
    """
    state = network.state_dict()
    if half:
        for name, tensor in state.items():
            state[name] = _halved(name, tensor) if tensor.is_floating_point() else tensor
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


# ---- reading ---------------------------------------------------------------------------------------------------------


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
    return record.attach(student)


def _check_blocks(student: nn.Module, record: StudentRecord, path: str | Path) -> None:
    try:
        network.check_blocks(student, record.blocks, record.input_size, record.keep)
    except (ConfigError, GraphError) as error:
        raise CheckpointError(f"'{path}' was made of another network: {error}") from error


def _skeleton(record: StudentRecord, path: str | Path) -> nn.Module:
    if not record.name:
        raise CheckpointError(
            f"the teacher of '{path}' is not a registered model; pass its network: model=..., "
            "tools/export.py --model NAME"
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
