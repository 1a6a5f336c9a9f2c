"""The record of a network's forward pass: channel ids for every activation, and what operators demand of them.

Every activation has a *shadow*: an integer tensor of the same shape with the channel of each element, expanded with
stride 0 along every axis along which it does not vary, and therefore nearly free.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import GraphError
from .channel_graph import Role
from .keeping import Keeping, Kept, NoRemedyError, memory, users_line
from .notes import Makers, Notes, RecordedAttention, RecordedTie
from .shadows import compact


class Recording(Notes):
    """What a network does to channels while it runs: ties, unions, gates, fixed channels. Rules read it and add to it.

    Its attributes are those of `Notes`, and

    Attributes:
        transient: module and name of the buffers that are in no state dict, by their `id`.
        keeping: the parts of the network that stay whole.
    """

    def __init__(self, model: nn.Module, keeping: Keeping | None = None) -> None:
        super().__init__()
        self.keeping = keeping or Keeping()
        self._names: dict[int, str] = {}
        for name, tensor in model.state_dict(keep_vars=True).items():
            self._names.setdefault(id(tensor), name)
        self.transient = {
            id(module._buffers[key]): (name, key)
            for name, module in model.named_modules()
            for key in module._non_persistent_buffers_set
        }
        self._shadows: dict[int, Tensor] = {}
        self._bare: dict[str, tuple[int, int]] = {}
        self._alive: list[Tensor] = []  # an id() is only unique while its tensor lives
        self._model = model
        self._layer_of: dict[int, str] = {}

    def submodule(self, name: str) -> nn.Module:
        """A module of the network by its name."""
        return self._model.get_submodule(name)

    def count_reads(self, tensors: Iterable[Tensor]) -> None:
        """Notes which running modules' inputs an operator reads."""
        read = {id(tensor) for tensor in tensors}
        for frame in self.running:
            frame.reads += id(frame.given) in read

    def fresh(self, count: int) -> Tensor:
        """`count` new channel ids, shape `[count]`."""
        start, self.num_ids = self.num_ids, self.num_ids + count
        return torch.arange(start, self.num_ids)

    def name_of(self, tensor: Tensor | None) -> str | None:
        """State-dict name of a parameter or buffer; `None` for an activation."""
        return None if tensor is None else self._names.get(id(tensor))

    def known_shadow(self, value: Any) -> Tensor | None:
        """As `shadow`, but a bare parameter has one only if it was combined with activations before."""
        return self._shadows.get(id(value), self.elementwise.get(self._names.get(id(value), "")))

    def is_bare(self, shadow: Tensor) -> bool:
        """Whether a shadow consists of the elements of bare parameters alone."""
        return bool(self.bare_names(shadow))

    def bare_names(self, shadow: Tensor) -> list[str]:
        """Names of the bare parameters that a shadow consists of; none if it has other elements as well."""
        if not self._bare:
            return []
        names = list(self._bare)  # in the order of their ids
        starts, stops = torch.tensor(list(self._bare.values())).t().contiguous()
        ids = compact(shadow).reshape(-1).contiguous()
        place = torch.searchsorted(starts, ids, right=True) - 1
        if not ((place >= 0) & (ids < stops[place])).all():
            return []
        return [names[index] for index in torch.bincount(place).nonzero().reshape(-1).tolist()]

    def shadow(self, tensor: Any) -> Tensor | None:
        """Channel ids of a tensor's elements, in its shape; `None` where it carries no channels (images, constants).

        A bare parameter that is combined directly with activations gets one id per element the first time.
        """
        if not isinstance(tensor, Tensor):
            return None
        if id(tensor) in self._shadows:
            return self._shadows[id(tensor)]
        name = self.name_of(tensor)
        if name is None or tensor.numel() < 2 or not tensor.is_floating_point():
            return None
        if name not in self.elementwise:
            self._bare[name] = self.num_ids, self.num_ids + tensor.numel()
            self.elementwise[name] = self.fresh(tensor.numel()).reshape(tensor.shape)
        return self.elementwise[name]

    def mark(self, tensor: Tensor, shadow: Tensor | None) -> None:
        """Says that `tensor` carries `shadow` (or nothing) from now on."""
        self._alive.append(tensor)
        if shadow is None:
            self._shadows.pop(id(tensor), None)
            return
        if shadow.shape != tensor.shape:
            shapes = f"{tuple(shadow.shape)} to a tensor of {tuple(tensor.shape)}"
            raise NoRemedyError(f"a rule gave channels of shape {shapes}; it must give one channel per element")
        self._shadows[id(tensor)] = shadow

    def giver(self, tensor: Tensor) -> Kept | None:
        """The part that stays whole from which a tensor without channels comes; `None` for images and constants."""
        return None if id(tensor) in self._shadows else self.keeping.giver(tensor)

    def keep_whole(self, part: Kept, given: Iterable[Tensor], outputs: Iterable[Tensor] = ()) -> None:
        """What a part is given keeps its channels, or its shape; what it puts out has none, as an image has none."""
        self.keeping.note(part, self.module)
        for tensor in given:
            if (name := self.name_of(tensor)) is not None:
                self.keeping.tensors.setdefault(name, part.reason)
            elif (shadow := self._shadows.get(id(tensor))) is not None:
                self.keeping.tensors.update(dict.fromkeys(self.bare_names(shadow), part.reason))
                self.fix(shadow, part.reason)
                self.note_read(tensor)
        for tensor in outputs:
            self.mark(tensor, None)
            self.keeping.give(tensor, part)

    def reason_beside(self, constant: Tensor, why: str) -> str:
        """Why channels stay that lie beside a tensor without any: `why`, or the part that stays whole that gives it."""
        part = self.giver(constant)
        if part is None:
            return why
        self.keeping.note(part, self.module)
        return part.reason

    def columns_of(self, tensor: Tensor, axis: int) -> Tensor | None:
        """Channels along the axis of a tensor that a layer reads, `[length]`; `None` for an image or a constant.

        Those of a part that stays whole come to be here, and keep their width.
        """
        shadow = self.shadow(tensor)
        if shadow is not None:
            return self.axis_channels(shadow, axis)
        part = self.giver(tensor)
        if part is None:
            return None
        self.keeping.note(part, self.module)
        columns = self.fresh(tensor.shape[axis])
        self.fix(columns, part.reason)
        return columns

    def unite(self, left: Tensor, right: Tensor) -> None:
        """Channels at the same position after broadcasting become one."""
        left, right = torch.broadcast_tensors(compact(left), compact(right))
        if left is not right:
            self.unions.append((left.reshape(-1).numpy(), right.reshape(-1).numpy()))

    def fix(self, ids: Tensor, reason: str) -> None:
        """These channels keep their width, and `reason` says why."""
        self.fixed.append((compact(ids).reshape(-1).numpy(), reason))

    def axis_channels(self, shadow: Tensor, axis: int) -> Tensor:
        """Channels along one axis, shape `[length]`; channels that share a position there are united."""
        along = compact(shadow).movedim(axis, 0)
        along = along.reshape(along.shape[0], -1)
        if along.shape[1] > 1:
            self.unite(along, along[:, :1])
        return along[:, 0].expand(shadow.shape[axis])

    def plain_channels(self, value: Any) -> Tensor | None:
        """Ids of a tensor whose channels lie along axis 1, shape `[channels]`; `None` for anything else."""
        shadow = self._shadows.get(id(value))
        if shadow is None or shadow.dim() < 2:
            return None
        pattern = compact(shadow)
        if pattern.numel() != pattern.shape[1]:
            return None
        channels = pattern.view(-1)
        return channels if len(channels) == shadow.shape[1] else channels.expand(shadow.shape[1])

    def tie(self, tensor: Tensor, axis: int, role: Role, ids: Tensor, blocks: int = 1) -> None:
        """Records a tie; at the second call of a module, the channels of both calls are united instead."""
        name = self.name_of(tensor)
        if name is None:
            raise self._unnamed(tensor)
        known = self.ties.get((name, axis, role))
        if known is None:
            self.ties[name, axis, role] = RecordedTie(name, axis, role, ids.reshape(blocks, -1).numpy())
        else:
            self.unite(torch.from_numpy(known.ids.reshape(-1)), ids)

    def _unnamed(self, weight: Tensor) -> GraphError:
        """The error for a weight that no name of the state dict stands for."""
        what = f"module '{self.module}' uses a weight of shape {tuple(weight.shape)}"
        if isinstance(weight, nn.Parameter):
            return NoRemedyError(
                f"{what} past its own attributes, as code does that was made for one network alone (a function that "
                "remembers a module, a compiled one); a copy would use the original's weights: write it as a method"
            )
        return GraphError(
            f"{what} that is computed in its forward; only weights in the state dict can be expanded; store the "
            "computed weight, or keep this module out of the network"
        )

    def record_movement(self, operator: str, shadow: Tensor) -> None:
        """Notes that the running module's own code takes these channels apart, or reorders them."""
        if self.owner not in self.movements:
            self.movements[self.owner] = operator
            self.moved[self.owner] = Kept(self.owner, operator, users_line()), []
        self.moved[self.owner][1].append(compact(shadow).reshape(-1))

    def keep_movements(self, modules: Iterable[str]) -> None:
        """Keeps the channels whole that the code of these modules takes apart or reorders."""
        for name in modules:
            part, moved = self.moved[name]
            self.keeping.note(part, name)
            for ids in moved:
                self.fix(ids, part.reason)

    def rows(self, weight: Tensor, blocks: int = 1, axis: int = 0) -> Tensor:
        """Channels that a weight's rows produce, shape `[rows]`: fresh ones at the first call of its module."""
        known = self.ties.get((self.name_of(weight) or "", axis, "row"))
        if known is not None:
            return torch.from_numpy(known.ids.reshape(-1))
        rows = self.fresh(weight.shape[axis] * (1 if axis == 0 else blocks))
        self.tie(weight, axis, "row", rows, blocks)
        return rows

    def record_layer(self, weight: Tensor, rows: Tensor, output: Tensor) -> None:
        """Notes a layer that gives the image one number per row, `[rows]`, as classifiers do."""
        if output.numel() == len(rows):
            self._layer_of[memory(output)] = self.name_of(weight) or ""

    def overwritten(self, tensor: Tensor) -> None:
        """Says that an operator changed a tensor in place."""
        self._layer_of.pop(memory(tensor), None)

    def note_scores(self, output: Tensor) -> None:
        """Notes the layer whose output is one of the network's, moved at most."""
        layer = self._layer_of.get(memory(output))
        if layer:
            self.scores.add(layer)

    def record_norm(self, ids: Tensor, blocks: int) -> None:
        """Notes that the running module normalises over these channels, block by block."""
        self.norms.append((self.owner, ids.reshape(blocks, -1).numpy()))

    def record_attention(
        self, queries: Tensor, keys: Tensor, scale_follows: bool, tensors: tuple[Tensor, Tensor]
    ) -> None:
        """Notes that the running module multiplies queries with keys.

        Args:
            queries: ids `[heads, head size]`.
            keys: the same of the keys.
            scale_follows: whether the scale is the head's own.
            tensors: queries and keys themselves.
        """
        makers = [self.makers.get(id(tensor), self._bare_maker(tensor)) for tensor in tensors]
        product = RecordedAttention(self.owner, queries.numpy(), keys.numpy(), scale_follows, (makers[0], makers[1]))
        self.attentions.append(product)

    def note_read(self, tensor: Tensor) -> None:
        """Notes that an operator reads an activation, whose rows then cannot be multiplied by factors."""
        makers, shadow = self.makers.get(id(tensor)), self._shadows.get(id(tensor))
        if makers and shadow is not None:
            self.reads.append((makers, compact(shadow).reshape(-1).numpy()))

    def _bare_maker(self, tensor: Tensor) -> Makers:
        name = self.name_of(tensor)
        return frozenset((name,)) if name else None

    def stand_for(self, bare: Tensor, rows: Tensor) -> None:
        """Notes that elements of bare parameters are added to rows: what multiplies these multiplies them."""
        bare, rows = torch.broadcast_tensors(compact(bare), compact(rows))
        self.stands_for.append((bare.reshape(-1).numpy(), rows.reshape(-1).numpy()))

    def note_number(self, number: float) -> None:
        """Notes that the running module's own code multiplies by a number."""
        self.numbers.setdefault(self.owner, []).append(number)

    def record_split(self, length: int, parts: list[Tensor]) -> bool:
        """Notes which integer attribute of the running module is the length of the parts; False if not exactly one."""
        name = self.owner
        owner = self._model.get_submodule(name)
        named = [key for key, value in vars(owner).items() if type(value) is int and value == length]
        known = next((own for module, _, own in self.splits if module == name), None)
        if parts and known is not None and list(map(len, known)) == list(map(len, parts)):
            for first, second in zip(known, parts, strict=True):
                self.unite(torch.from_numpy(first), second)
            return True
        if parts and len(named) == 1:
            self.splits.append((name, named[0], [part.numpy() for part in parts]))
            return True
        return False

    def record_reduction(self, operator: str, tensor: Tensor) -> bool:
        """Notes that the running module's own code reduces its input over channels; False for any other tensor."""
        frame = self.running[-1] if self.running else None
        if frame is None or frame.given is not tensor or frame.sources[0] is None:
            return False
        frame.reductions.append((operator, frame.sources[0], users_line()))
        return True
