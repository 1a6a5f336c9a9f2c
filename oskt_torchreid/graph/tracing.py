"""One forward pass of the real network, with a channel id carried beside every element of every activation.

The pass runs under a ``TorchDispatchMode`` inside ``torch.inference_mode()``, where composite operators (convolution,
linear, batch norm, ...) arrive whole. Beside an activation of shape ``S`` the tracer keeps a *shadow*: an integer
tensor of shape ``S`` with the channel of each element, expanded with stride 0 wherever it does not vary and therefore
nearly free. Data movement acts on the shadow as it acts on the data; layers issue fresh channels; sums and products
unite the channels that meet. What each operator does is written in ``rules.py``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import GraphError
from .calls import Call, rule_for
from .failures import check_input_size, forward_error
from .frames import Frames
from .shadows import compact
from .types import Role


@dataclass(frozen=True, eq=False)
class RecordedTie:
    """A tie in provisional ids, before united channels have become one; ``ids`` is ``[blocks, length]``."""

    tensor: str
    axis: int
    role: Role
    ids: np.ndarray


@dataclass(frozen=True, eq=False)
class RecordedAttention:
    """Provisional ids ``[heads, head size]`` of queries and keys, and whether the scale is the head's own."""

    queries: np.ndarray
    keys: np.ndarray
    scale_follows: bool


class Tracer(TorchDispatchMode):
    """Collects ties, unions, gates and fixed channels while a network runs.

    Attributes:
        ties: recorded ties by ``(tensor, axis, role)``, in order.
        elementwise: provisional ids, in the tensor's own shape, of every bare parameter that met activations directly.
        unions: pairs of id arrays that must be one channel.
        gates: pairs ``(gate ids, finer ids)``: a coarser factor that is shared by several channels.
        fixed: pairs ``(ids, reason)`` of channels that must keep their width.
        matrices: weights of convolutions and linear layers.
        image_inputs: the matrices whose columns are the image's own channels.
        movements: module name -> operator, where channels were taken apart or reordered at places chosen by code.
        splits: ``(module, attribute, ids of each part)`` where a module's own integer says where channels part.
        norms: module name -> ids ``[blocks, length]`` that it normalises over.
        attentions: module name -> the queries and keys that it multiplies.
        frames: the running modules, and what is kept of their calls.
        touched: names of all state-dict tensors that reached an operator.
        outputs: ids of the network's outputs.
        results: the network's output tensors.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._names: dict[int, str] = {}
        for name, tensor in model.state_dict(keep_vars=True).items():
            self._names.setdefault(id(tensor), name)
        self._shadows: dict[int, Tensor] = {}
        self._alive: list[Tensor] = []  # an id() is only unique while its tensor lives
        self._model = model
        self._adrift: dict[int, str] = {}
        self.num_ids = 0
        self.ties: dict[tuple[str, int, Role], RecordedTie] = {}
        self.elementwise: dict[str, Tensor] = {}
        self.unions: list[tuple[np.ndarray, np.ndarray]] = []
        self.gates: list[tuple[np.ndarray, np.ndarray]] = []
        self.fixed: list[tuple[np.ndarray, str]] = []
        self.matrices: set[str] = set()
        self.image_inputs: set[str] = set()
        self.movements: dict[str, str] = {}
        self.splits: list[tuple[str, str, list[np.ndarray]]] = []
        self.norms: dict[str, np.ndarray] = {}
        self.attentions: dict[str, RecordedAttention] = {}
        self.frames = Frames(self)
        self.touched: set[str] = set()
        self.outputs: list[np.ndarray] = []
        self.results: list[Tensor] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # spares the import of torch's compiler, which takes longer than any trace

    # ---- what rules use ------------------------------------------------------------------------------------------

    @property
    def module(self) -> str:
        """Name of the module whose forward is running, for messages."""
        return self.frames.name or "the network itself"

    def fresh(self, count: int) -> Tensor:
        """``count`` new channel ids, shape ``[count]``."""
        start, self.num_ids = self.num_ids, self.num_ids + count
        return torch.arange(start, self.num_ids)

    def name_of(self, tensor: Tensor | None) -> str | None:
        """State-dict name of a parameter or buffer; ``None`` for an activation."""
        return None if tensor is None else self._names.get(id(tensor))

    def shadow(self, tensor: Any) -> Tensor | None:
        """Channel ids of a tensor's elements, in its shape; ``None`` where it carries no channels (images, constants).

        A parameter that meets activations directly receives one id per element the first time.
        """
        if not isinstance(tensor, Tensor):
            return None
        if id(tensor) in self._shadows:
            return self._shadows[id(tensor)]
        name = self.name_of(tensor)
        if name is None or tensor.numel() < 2 or not tensor.is_floating_point():
            return None
        if name not in self.elementwise:
            self.elementwise[name] = self.fresh(tensor.numel()).reshape(tensor.shape)
        return self.elementwise[name]

    def mark(self, tensor: Tensor, shadow: Tensor | None) -> None:
        """Says that ``tensor`` carries ``shadow`` (or nothing) from now on."""
        self._alive.append(tensor)
        if shadow is None:
            self._shadows.pop(id(tensor), None)
            return
        if shadow.shape != tensor.shape:
            shapes = f"{tuple(shadow.shape)} to a tensor of {tuple(tensor.shape)}"
            raise GraphError(f"a rule gave channels of shape {shapes}; it must give one channel per element")
        self._shadows[id(tensor)] = shadow

    def set_adrift(self, tensor: Tensor, module: str) -> None:
        """Says that channels went into this memory, by code of ``module``, that are followed no further."""
        self._alive.append(tensor)  # memory that is in use is not given to others
        self._adrift[tensor.untyped_storage().data_ptr()] = module

    def adrift(self, tensor: Tensor) -> str | None:
        """The module that wrote channels into this memory, or what it was computed from, and lost sight of them."""
        return self._adrift.get(tensor.untyped_storage().data_ptr()) if self._adrift else None

    def unite(self, left: Tensor, right: Tensor) -> None:
        """The channels that meet, position by position after broadcasting, become one."""
        left, right = torch.broadcast_tensors(compact(left), compact(right))
        if left is not right:
            self.unions.append((left.reshape(-1).numpy(), right.reshape(-1).numpy()))

    def fix(self, ids: Tensor, reason: str) -> None:
        """These channels keep their width, and ``reason`` says why."""
        self.fixed.append((torch.unique(compact(ids)).numpy(), reason))

    def axis_channels(self, shadow: Tensor, axis: int) -> Tensor:
        """Channels along one axis, shape ``[length]``; channels that share a position there are united."""
        along = compact(shadow).movedim(axis, 0)
        along = along.reshape(along.shape[0], -1)
        if along.shape[1] > 1:
            self.unite(along, along[:, :1])
        return along[:, 0].expand(shadow.shape[axis])

    def plain_channels(self, value: Any) -> Tensor | None:
        """Ids of a tensor whose channels lie along axis 1, shape ``[channels]``; ``None`` for anything else."""
        shadow = self._shadows.get(id(value))
        if shadow is None or shadow.dim() < 2:
            return None
        pattern = compact(shadow)
        if pattern.numel() != pattern.shape[1]:
            return None
        channels = pattern.view(-1)
        return channels if len(channels) == shadow.shape[1] else channels.expand(shadow.shape[1])

    def tie(self, tensor: Tensor, axis: int, role: Role, ids: Tensor, blocks: int = 1) -> None:
        """Records a tie; met again (a module called twice), the channels of both calls are united instead."""
        name = self.name_of(tensor)
        if name is None:
            raise GraphError(
                f"module '{self.module}' uses a weight of shape {tuple(tensor.shape)} that is computed in its forward; "
                "only weights that stand in the state dict can be expanded; store the computed weight, or keep this "
                "module out of the network"
            )
        known = self.ties.get((name, axis, role))
        if known is None:
            self.ties[name, axis, role] = RecordedTie(name, axis, role, ids.reshape(blocks, -1).numpy())
        else:
            self.unite(torch.from_numpy(known.ids.reshape(-1)), ids)

    def rows(self, weight: Tensor, blocks: int = 1, axis: int = 0) -> Tensor:
        """Channels that a weight's rows produce, shape ``[rows]``: fresh ones at the first call of its module."""
        known = self.ties.get((self.name_of(weight) or "", axis, "row"))
        if known is not None:
            return torch.from_numpy(known.ids.reshape(-1))
        rows = self.fresh(weight.shape[axis] * (1 if axis == 0 else blocks))
        self.tie(weight, axis, "row", rows, blocks)
        return rows

    def record_norm(self, ids: Tensor, blocks: int) -> None:
        """Notes that the running module normalises over these channels, block by block."""
        self.norms.setdefault(self.module, ids.reshape(blocks, -1).numpy())

    def record_attention(self, queries: Tensor, keys: Tensor, scale_follows: bool) -> None:
        """Notes that the running module multiplies queries with keys, ids ``[heads, head size]`` each."""
        self.attentions.setdefault(self.frames.name, RecordedAttention(queries.numpy(), keys.numpy(), scale_follows))

    def record_split(self, length: int, parts: list[Tensor]) -> bool:
        """Notes which integer attribute of the running module gave the length of the parts; False unless just one."""
        name = self.frames.name
        owner = self._model.get_submodule(name)
        named = [key for key, value in vars(owner).items() if type(value) is int and value == length]
        if parts and len(named) == 1:
            self.splits.append((name, named[0], [part.numpy() for part in parts]))
            return True
        return False

    # ---- running -------------------------------------------------------------------------------------------------

    def _follow(self, call: Call) -> None:
        """Applies the rule of a call that meets channels; one that says nothing of any output would lose them."""
        tracked = any(id(tensor) in self._shadows for tensor in call.tensors)
        before = len(self._alive)
        rule_for(call, self.module)(self, call)
        said = {id(tensor) for tensor in self._alive[before:]}
        results = [output for output in call.outputs if output.is_floating_point()]
        if tracked and results and said.isdisjoint(map(id, results)) and not any(map(self.adrift, call.tensors)):
            raise GraphError(
                f"the rule of operator '{call.operator}' in module '{self.module}' marks no output: its channels would "
                "be lost; let it call tracer.mark(call.output, ...)"
            )

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        output = function(*args, **kwargs)
        call = Call(function, args, kwargs, output)
        names = [self._names.get(id(tensor)) for tensor in call.tensors]
        self.touched.update(name for name in names if name)
        self.frames.count_reads(call.tensors)
        if any(name or id(tensor) in self._shadows for name, tensor in zip(names, call.tensors, strict=True)):
            self._follow(call)
        lost = next(filter(None, map(self.adrift, call.tensors)), None)
        for result in call.outputs if lost else ():
            if id(result) not in self._shadows:
                self.set_adrift(result, lost)
        return output


@contextlib.contextmanager
def tracing_mode(model: nn.Module, training: bool = True) -> Iterator[None]:
    """The root in training, so that classifiers run, all else in evaluation, so that norms stay still; restored."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    model.training = training
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def run(model: nn.Module, input_size: tuple[int, ...], tracer: Tracer | None = None, training: bool = True) -> Tracer:
    """Traces one forward pass over an image of noise. The model is left as it was.

    Args:
        model: any module that maps an image batch ``[1, channels, height, width]`` to a tensor, or nested ones.
        input_size: ``(channels, height, width)``.
        tracer: a new tracer of this model; ``None`` for a plain one.
        training: whether the root is in training, so that classifiers run.

    Raises:
        GraphError: an operator without a rule, channels that cannot be followed, or a forward pass that fails.
    """
    tracer = tracer or Tracer(model)
    check_input_size(input_size)
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, *input_size, generator=generator).to(like.device, like.dtype)
    with tracing_mode(model, training):
        outputs = _traced(model, tracer, image)
    tracer.results = list(_tensors(outputs))
    for output in tracer.results:
        shadow = tracer.shadow(output)
        if shadow is not None:
            tracer.outputs.append(torch.unique(compact(shadow)).numpy())
    if not tracer.outputs:
        raise GraphError("no output of the network depends on a convolution or linear layer: there is nothing to trace")
    return tracer


def _traced(model: nn.Module, tracer: Tracer, image: Tensor) -> Any:
    try:
        with tracer.frames.watching(model), torch.inference_mode(), tracer:
            return model(image)
    except GraphError:
        raise
    except Exception as error:  # of a network's own code
        raise forward_error(model, image, tracer.module, error) from error


def _tensors(outputs: Any) -> Iterable[Tensor]:
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, dict):
        yield from _tensors(list(outputs.values()))
    elif isinstance(outputs, (list, tuple)):
        for output in outputs:
            yield from _tensors(output)
