"""Expansion: chain and widths to a student, without training (paper: weight chain expansion)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, ConfigError
from ..files.checks import is_possible_image, is_possible_model
from ..graph import ChannelGraph, adapt_code, rebuild
from ..graph.surgery.routing import describe_code
from ..networks import ModelSpec, set_feature_dim
from .chain import WeightChain
from .distance import DISTANCES, scale_features
from .layout import Layout
from .narrowing import Narrowing

STATISTICS = ("own", "merged", "initial")


def expand_to_plan(
    chain: WeightChain,
    widths: Mapping[str, int],
    attention: str | None = None,
    distance: str = "none",
    statistics: str = "own",
) -> nn.Module:
    """A student of exactly these widths.

    Args:
        chain: not changed; the student shares no memory with it.
        widths: width per group name, each between the chain's and the teacher's.
        attention: ``folded`` or ``paper`` (see ``folding.py``); by default as the chain's S-student has it.
        distance: ``none``, ``chain`` or ``teacher``, see ``distance.py``.
        statistics: running statistics. ``own``: the S-student's where the chain was refined, else merged; ``merged``:
            the teacher's, averaged over members; ``initial``: 0 and 1, as the authors have it, of no use before
            fine-tuning or ``recalibrate``.

    Returns:
        A module of the teacher's class, on the CPU, in evaluation mode.

    Raises:
        ConfigError: other statistics.
        WidthError: a width out of range.
    """
    if statistics not in STATISTICS:
        raise ConfigError(f"statistics is '{statistics}'; allowed: {', '.join(STATISTICS)}")
    chain = chain if statistics == "own" else replace(chain, statistics={})
    layout = Layout(chain.graph, chain.teacher_to_chain, widths)
    narrowing = Narrowing(chain.graph, chain.layout, layout, attention or chain.attention)
    vectors = {name: vector for name, vector in chain.vectors.items() if name not in chain.statistics}
    made = narrowing(chain.rows, vectors) | _statistics(chain, narrowing) | chain.fixed
    tensors = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in made.items()}
    scale_features(tensors, chain, layout, distance)
    student = rebuild(chain.model, tensors, training=False)
    adapt_code(student, chain.graph, layout.members)
    for module in student.modules() if statistics == "initial" else ():
        if hasattr(module, "reset_running_stats"):
            module.reset_running_stats()
    return attach_record(student, chain.graph, chain.spec, distance)


def attach_record(student: nn.Module, graph: ChannelGraph, spec: ModelSpec | None, distance: str = "none") -> nn.Module:
    """Gives a narrowed network, in place, what ``save_student`` needs to know of it, and returns it.

    Args:
        student: of the teacher's class.
        graph: the teacher's channel graph.
        spec: how the teacher is built by its registered name; ``None`` where it has none.
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
    )
    return record.attach(student)


def _moved(entry: str | list, parent: str) -> str | list:
    """A module's name, or an entry of ``describe_code`` that begins with one, below a parent."""
    if isinstance(entry, str):
        return f"{parent}.{entry}" if entry else parent
    return [_moved(entry[0], parent), *entry[1:]]


@dataclass(frozen=True)
class StudentRecord:
    """What a student's file says besides its tensors.

    Attributes:
        name: registered name of the teacher's model; empty where it has none.
        num_classes: class count of the teacher.
        loss: loss that the teacher's model was built for.
        feature_dim: length of the feature; 0 where the network has several classifiers.
        code: how the student's own code was adapted, see ``graph.routing.describe_code``.
        distance: whose distances its features were scaled to, see ``distance.py``.
        input_size: ``(channels, height, width)`` of the image that the teacher was traced with.
        blocks: heads of each attention and blocks of each norm over channels, see ``ChannelGraph.module_blocks``.
    """

    name: str = ""
    num_classes: int = 1
    loss: str = "softmax"
    feature_dim: int = 0
    code: dict = field(default_factory=dict)
    distance: str = "none"
    input_size: tuple[int, ...] = (3, 256, 128)
    blocks: dict[str, int] = field(default_factory=dict)

    def attach(self, student: nn.Module) -> nn.Module:
        """Gives a student, in place, its record and the attribute that holds its feature's length."""
        if self.feature_dim:
            set_feature_dim(student, self.feature_dim)
        student.student_record = self
        return student

    def inside(self, name: str) -> StudentRecord:
        """The record of a network that has the student as a child of this name, and names of modules accordingly."""
        code = {kind: [_moved(entry, name) for entry in entries] for kind, entries in self.code.items()}
        return replace(self, code=code, blocks={_moved(module, name): count for module, count in self.blocks.items()})

    def is_possible(self) -> bool:
        """Whether the numbers are those of any network."""
        sizes = is_possible_image(self.input_size) and is_possible_model(self.num_classes, (self.name, self.loss))
        return sizes and self.feature_dim >= 0 and self.distance in DISTANCES

    def to_dict(self) -> dict:
        """Plain values, for a file."""
        return {"format": "oskt-student", **asdict(self)}

    @classmethod
    def from_dict(cls, content: object, path: str | Path) -> StudentRecord:
        """Inverse of ``to_dict``; raises ``CheckpointError`` for anything else."""
        try:
            if content["format"] == "oskt-student" and isinstance(content["code"], dict):
                numbers = int(content["num_classes"]), str(content["loss"]), int(content["feature_dim"])
                distance = str(content.get("distance", "none"))
                size = tuple(int(length) for length in content.get("input_size", cls.input_size))
                blocks = {str(name): int(count) for name, count in content.get("blocks", {}).items()}
                record = cls(str(content["name"]), *numbers, content["code"], distance, size, blocks)
                if record.is_possible():
                    return record
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
            pass
        raise CheckpointError(f"'{path}' is no student of this package (no valid 'oskt' entry); see save_student")


def _statistics(chain: WeightChain, narrowing: Narrowing) -> dict[str, Tensor]:
    """A slot's refined running statistics are its cluster's."""
    return {name: narrowing.gathered(name, statistic) for name, statistic in chain.statistics.items()}
