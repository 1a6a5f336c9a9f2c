"""The record of a student: what its file says besides its tensors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from ..deploy.lifting import FEATURES
from ..deploy.threshold import KINDS, Calibration
from ..errors import CheckpointError
from ..files.checks import is_possible_image, is_possible_model
from ..graph import ChannelGraph
from ..graph.surgery.rebuild import describe_code
from ..networks import DEFAULT_INPUT_SIZE, ModelSpec, set_feature_dim
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
        chain: fingerprint of the chain that it was expanded from; empty: of none.
        lifting: the entry of its feature that stands for each of its teacher's, see `deploy/lifting.py`; empty where
            it has several features.
        feature: `own`, or `teacher` where its features are lifted.
        thresholds: see `deploy/threshold.py`, by what they are for: `own` features, those of the `teacher`'s length, or
            a whole `fleet`, whatever the widths that are compared; empty: not measured.
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
    chain: str = ""
    lifting: tuple[int, ...] = ()
    feature: str = "own"
    thresholds: dict = field(default_factory=dict)

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
        entries = set(self.lifting)
        lifted = entries == set(range(len(entries))) and (self.feature == "own" or bool(entries and self.chain))
        names = self.distance in DISTANCES and self.feature in FEATURES
        return sizes and names and lifted and self.feature_dim >= 0

    def to_dict(self) -> dict:
        """Plain values, for a file."""
        return {"format": "oskt-student", **asdict(self), "keep": list(self.keep), "lifting": list(self.lifting)}

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
                record = cls(
                    str(content["name"]),
                    *numbers,
                    content["code"],
                    distance,
                    size,
                    blocks,
                    keep,
                    str(content.get("chain", "")),
                    tuple(int(entry) for entry in content.get("lifting", ())),
                    str(content.get("feature", cls.feature)),
                    {kind: _thresholds(kind, known) for kind, known in content.get("thresholds", {}).items()},
                )
                if record.is_possible():
                    return record
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
            pass
        raise CheckpointError(f"'{path}' is no student of this package (no valid 'oskt' entry); see save_student")


def _thresholds(kind: str, content: dict) -> dict:
    if kind not in KINDS:
        raise ValueError(kind)
    return Calibration.from_dict(content).to_dict()


def _moved(entry: str | list, parent: str) -> str | list:
    """A module's name, or an entry of `describe_code` that begins with one, below a parent."""
    return _below(parent, entry) if isinstance(entry, str) else [_below(parent, entry[0]), *entry[1:]]


def _below(parent: str, module: str) -> str:
    return f"{parent}.{module}" if module else parent


def attach_record(
    student: nn.Module,
    graph: ChannelGraph,
    spec: ModelSpec | None,
    distance: str = "none",
    chain: str = "",
    lifting: Iterable[int] = (),
) -> nn.Module:
    """Gives a narrowed network, in place, the record that `save_student` needs, and returns it.

    Args:
        student: of the teacher's class.
        graph: the teacher's channel graph.
        spec: how the teacher is built by its registered name; `None` where it has none.
        distance: whose distances its features were scaled to.
        chain: see `StudentRecord`.
        lifting: see `StudentRecord`.
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
        chain=chain,
        lifting=tuple(map(int, lifting)),
    )
    return record.attach(student)
