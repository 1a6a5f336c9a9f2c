"""What a recording of a forward pass consists of, in provisional ids."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from .channel_graph import Role
from .keeping import Kept


@dataclass(frozen=True, eq=False)
class RecordedTie:
    """A tie in provisional ids, before united channels have become one; `ids` is `[blocks, length]`."""

    tensor: str
    dimension: int
    role: Role
    ids: np.ndarray


Makers = frozenset[str] | None
"""Names of the tensors whose rows can multiply an activation by a factor per channel; `None` if there are none."""


@dataclass(frozen=True, eq=False)
class RecordedAttention:
    """Queries and keys that a module multiplies.

    Attributes:
        module: its name.
        queries: provisional ids `[heads, head size]`.
        keys: the same of the keys.
        scale_follows: whether the scale is the head's own.
        makers: of the queries and of the keys.
    """

    module: str
    queries: np.ndarray
    keys: np.ndarray
    scale_follows: bool
    makers: tuple[Makers, Makers]


@dataclass(eq=False)
class Frame:
    """A module call that is running.

    Attributes:
        name: name of the module.
        given: its input, if that is a single tensor and nothing else.
        sources: ids along axis 1 of its input, then of the output of each module called by its own code; `None` for
            anything but a single tensor whose channels lie along axis 1.
        inputs: channels of the tensors among its arguments whose channels lie along one axis, `[length]` each.
        calls: names of the modules that its own code called, in order.
        reads: how many operators read its input, those of the modules that it calls included.
        reductions: operator, ids of the input, and file and line, for each time that its own code reduces its input
            over channels by a mean or a sum.
    """

    name: str
    given: Tensor | None
    sources: list[Tensor | None]
    inputs: list[Tensor] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    reads: int = 0
    reductions: list[tuple[str, Tensor, str]] = field(default_factory=list)


class Notes:
    """All that is noted while a network runs, in provisional ids.

    Attributes:
        num_ids: how many provisional ids there are.
        ties: recorded ties by `(tensor, axis, role)`, in order.
        elementwise: provisional ids, in the tensor's own shape, of every bare parameter that is combined directly with
            activations.
        unions: pairs of id arrays that must be one channel.
        gates: pairs `(gate ids, finer ids)`: a coarser factor that is shared by several channels.
        fixed: pairs `(ids, reason)` of channels that must keep their width.
        matrices: weights of convolutions and linear layers.
        image_inputs: the matrices whose columns are the image's own channels.
        movements: module name -> operator, where channels were split or reordered at positions chosen by code.
        moved: module name -> the part of it that does so, and the ids of such channels.
        splits: `(module, attribute, ids of each part)` where a module's own integer says where channels are split.
        parts: `(module, ids [parts, length])` that are equally long in every student, see `sizes.py`.
        perhaps: parts that are equally long unless attributes, which are as long, say how long they are.
        named_lengths: `(module, attribute, ids [length])` of what is as long as the attribute says.
        norms: `(module, ids [blocks, length])` that it normalises over.
        attentions: the queries and keys that modules multiply.
        makers: by the `id` of an activation, see `makers.py`.
        reads: `(makers, ids)` of activations that anything but a product over channels reads.
        mixed: `(ids, reason)` of the inputs of modules with a rule's own parts that stay whole: see `sizes.Reading`.
        copied: ids of channels of which a depthwise layer makes several rows.
        stands_for: `(ids of bare parameters, ids of the rows that they are added to)`.
        numbers: module name -> the numbers that its own code multiplies by or divides by (then their inverse).
        running: the module calls that are running, outermost first; the network itself is not among them.
        reductions: module -> operator and ids of its input, if its own code reduces that and does nothing else with it.
        touched: names of all state-dict tensors that reached an operator.
        untied: names of those whose numbers belong to positions, or to the image; they keep their shape.
        outputs: ids of the network's outputs.
        results: the network's output tensors of the last pass.
        scores: matrices whose output for an image is one of the network's outputs, as it is.
        lengths: ids of channels of which only evaluation takes the length, as in a feature that is normalised, and of
            how many values each length is.
        measured: `(ids, module)` of all channels of which a module takes the length in training.
        training: whether the pass is in training mode.
    """

    def __init__(self) -> None:
        self.num_ids = 0
        self.ties: dict[tuple[str, int, Role], RecordedTie] = {}
        self.elementwise: dict[str, Tensor] = {}
        self.unions: list[tuple[np.ndarray, np.ndarray]] = []
        self.gates: list[tuple[np.ndarray, np.ndarray]] = []
        self.fixed: list[tuple[np.ndarray, str]] = []
        self.matrices: set[str] = set()
        self.image_inputs: set[str] = set()
        self.movements: dict[str, str] = {}
        self.moved: dict[str, tuple[Kept, list[Tensor]]] = {}
        self.splits: list[tuple[str, str, list[np.ndarray]]] = []
        self.parts: list[tuple[str, np.ndarray]] = []
        self.perhaps: list[tuple[str, np.ndarray]] = []
        self.named_lengths: list[tuple[str, str, np.ndarray]] = []
        self.norms: list[tuple[str, np.ndarray]] = []
        self.attentions: list[RecordedAttention] = []
        self.makers: dict[int, Makers] = {}
        self.reads: list[tuple[frozenset[str], np.ndarray]] = []
        self.mixed: list[tuple[np.ndarray, str]] = []
        self.copied: list[Tensor] = []
        self.stands_for: list[tuple[np.ndarray, np.ndarray]] = []
        self.numbers: dict[str, list[float]] = {}
        self.running: list[Frame] = []
        self.reductions: dict[str, tuple[str, Tensor]] = {}
        self.touched: set[str] = set()
        self.untied: set[str] = set()
        self.outputs: list[np.ndarray] = []
        self.results: list[Tensor] = []
        self.scores: set[str] = set()
        self.lengths: list[tuple[np.ndarray, int]] = []
        self.measured: list[tuple[np.ndarray, str]] = []
        self.training = True

    @property
    def module(self) -> str:
        """Name of the module whose forward is running, for messages."""
        return self.owner or "the network itself"

    @property
    def owner(self) -> str:
        """Name of the module whose own code is running; empty for the network itself."""
        return self.running[-1].name if self.running else ""

    def lengths_now(self) -> list[int]:
        """How much is recorded; what a rule adds before it gives up is taken back by `take_back`."""
        return [len(part) for part in self._additions]

    def take_back(self, lengths: list[int]) -> None:
        """Forgets what was recorded since `lengths_now`, but for marks."""
        for part, length in zip(self._additions, lengths, strict=True):
            while len(part) > length:
                part.popitem() if isinstance(part, dict) else part.pop()

    @property
    def _additions(self) -> tuple[dict | list, ...]:
        ties = self.ties, self.unions, self.gates, self.fixed, self.splits, self.lengths, self.attentions, self.norms
        noted = self.reads, self.mixed, self.copied, self.stands_for, self.measured
        return *ties, self.parts, self.perhaps, self.named_lengths, *noted
