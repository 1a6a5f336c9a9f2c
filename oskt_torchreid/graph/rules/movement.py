"""Rules of the operators that move channels: views, transposes, slices, concatenations, copies, sampling grids."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import GraphError
from ..calls import Call, Rule, register_families
from ..keeping import Kept, users_line
from ..recording import Recording
from ..shadows import compact, extents, settled, spread
from ..sizes import blocks_of, held, note_length, note_parts, note_repeated, note_view
from .elementwise import spatial
from .whole import keep_whole


def reshape(recording: Recording, call: Call) -> None:
    """Views and reshapes: the shadow is reshaped alike."""
    shadow = recording.shadow(call.args[0])
    if shadow is None:  # only the shape is taken from a tensor that carries channels
        recording.mark(call.output, None)
        return
    moved = settled(shadow.reshape(call.output.shape))
    if extents(shadow) != extents(moved):
        recording.record_movement(call.operator, shadow)
    note_view(recording, _named_lengths(call), shadow, moved)
    if call.operator in ("view_as", "reshape_as"):
        _note_alike(recording, moved, recording.shadow(call.args[1]))
    recording.mark(call.output, moved)


def _note_alike(recording: Recording, shadow: Tensor, other: Tensor | None) -> None:
    """Notes that channels are as many, in every student, as those of the tensor whose shape they are given."""
    sides = [blocks_of(side)[:1] for side in (shadow, other) if side is not None]
    if len(sides) == 2 and sides[0].shape == sides[1].shape and not torch.equal(*sides):
        note_parts(recording, torch.cat(sides))


def _named_lengths(call: Call) -> list[int]:
    """The lengths that a view was given, one per axis of its output; -1 for those that it was not."""
    if call.operator in ("view", "_unsafe_view", "reshape"):
        return list(call.args[1])
    if call.operator == "unflatten":
        axis, lengths = call.args[1] % call.args[0].dim(), list(call.args[2])
        return [-1] * axis + lengths + [-1] * (call.args[0].dim() - axis - 1)
    return []


def move(recording: Recording, call: Call) -> None:
    """Transposes, slices, splits, repeats: the same operator is applied to the shadow."""
    shadow = recording.shadow(call.args[0])
    if shadow is None:
        for output in call.outputs:
            recording.mark(output, None)
        return
    args = [arg.to(shadow.device) if torch.is_tensor(arg) else arg for arg in call.args[1:]]  # an index may be on a GPU
    moved = call.function(shadow, *args, **call.kwargs)
    moved = [settled(part) for part in (moved if isinstance(moved, (list, tuple)) else [moved])]
    moves = len(extents(shadow)) > 1 or any(not _same_channels(part, shadow) for part in moved)
    if moves and not _is_split(recording, call, moved):
        recording.record_movement(call.operator, shadow)
        _note_parts(recording, call, shadow, moved)
    for output, part in zip(call.outputs, moved, strict=True):
        recording.mark(output, part)


def _same_channels(shadow: Tensor, other: Tensor) -> bool:
    """Whether two shadows that vary along one axis hold the same channels in the same order."""
    return torch.equal(compact(shadow).reshape(-1), compact(other).reshape(-1))


def _is_split(recording: Recording, call: Call, moved: list[Tensor]) -> bool:
    """Whether channels are split after a number that is an attribute of the module, and can be adapted."""
    if call.operator != "split" or len(moved) < 2:
        return False
    axis = call.arguments["dim"]
    parts = [part.movedim(axis, 0).reshape(part.shape[axis], -1)[:, 0] for part in map(compact, moved)]
    return recording.record_split(call.args[1], [part for part in parts if len(part) > 1])


def _note_parts(recording: Recording, call: Call, shadow: Tensor, moved: list[Tensor]) -> None:
    """Notes the lengths of parts that channels are cut into: equal ones (`chunk`), or those that the code named."""
    whole, parts = blocks_of(shadow), [blocks_of(part) for part in moved]
    if len({part.shape for part in parts}) == 1 and len(parts) > 1 and parts[0].shape[1] < whole.shape[1]:
        note_parts(recording, torch.cat(parts))
    if call.operator == "chunk":
        held(recording, parts[0])
    if call.operator == "slice" and len(whole) == 1:
        front = call.arguments["start"] or 0
        if 1 < front < whole.shape[1]:
            note_length(recording, whole[:, :front])
    if call.operator in ("split", "split_with_sizes", "slice"):
        for part in parts:
            if part.shape[1] < whole.shape[1]:
                note_length(recording, part, whole[0] if call.operator == "split" else None)


def index(recording: Recording, call: Call) -> None:
    """Entries at given places: those of a parameter, such as a table of positions, are rows of the same channels."""
    tensor, places = call.args[:2]
    shadow = recording.shadow(tensor)
    if shadow is None:
        recording.mark(call.output, None)
        return
    taken = [axis for axis, place in enumerate(places) if place is not None]
    if recording.name_of(tensor):
        for axis in taken:
            recording.unite(shadow, shadow.narrow(axis, 0, 1))
            shadow = shadow.narrow(axis, 0, 1).expand(shadow.shape)
    if any(compact(shadow).shape[axis] > 1 for axis in taken):
        keep_whole(recording, call, [shadow], "picked one by one")
        return
    recording.mark(call.output, settled(shadow[tuple(slice(None) if p is None else p.cpu() for p in places)]))


def look_up(recording: Recording, call: Call) -> None:
    """An embedding: rows of a table, whose channels are along its second axis."""
    shadow = recording.shadow(call.args[0])
    if shadow is not None:
        recording.unite(shadow, shadow[:1])
        recording.mark(call.output, shadow[0].expand(call.output.shape))


def concatenate(recording: Recording, call: Call) -> None:
    """Concatenation: shadows are joined; a part without channels (a constant) gets fixed ones.

    These are new where channels are joined one after the other, and its neighbours' where they lie side by side.
    """
    parts = list(call.args[0])
    _join(recording, call, parts, [recording.shadow(part) for part in parts])


def stack(recording: Recording, call: Call) -> None:
    """Stacking: concatenation along a new axis."""
    axis = call.arguments["dim"] % call.output.dim()
    shadows = [recording.shadow(part) for part in call.args[0]]
    shadows = [None if shadow is None else shadow.unsqueeze(axis) for shadow in shadows]
    _join(recording, call, [part.unsqueeze(axis) for part in call.args[0]], shadows)


def _join(recording: Recording, call: Call, parts: list[Tensor], shadows: list[Tensor | None]) -> None:
    axis = call.arguments.get("dim", 0) % call.output.dim()
    beside = next((s.narrow(axis, 0, 1) for s in shadows if s is not None and _lies_across(s, axis)), None)
    known = [
        _constant(recording, part, axis, beside) if shadow is None else shadow
        for part, shadow in zip(parts, shadows, strict=True)
    ]
    compacted = [compact(shadow) for shadow in known]
    blocks = [blocks_of(shadow) for shadow in known]
    apart = [small.shape[axis] == 1 or small.shape[axis + 1 :].numel() > 1 for small in compacted]
    if all(apart) and len({channels.shape[1] for channels in blocks}) == 1 and blocks[0].shape[1] > 1:
        note_parts(recording, torch.cat(blocks))
    widest = [max(part.shape[d] for part in compacted) for d in range(call.output.dim())]
    joined = [
        part.expand(*(shadow.shape[d] if d == axis else widest[d] for d in range(part.dim())))
        for part, shadow in zip(compacted, known, strict=True)
    ]
    recording.mark(call.output, torch.cat(joined, axis).expand(call.output.shape))


def _lies_across(shadow: Tensor, axis: int) -> bool:
    """Whether channels lie along other axes than the one along which tensors are joined."""
    pattern = compact(shadow)
    return pattern.shape[axis] == 1 and pattern.numel() > 1


def _constant(recording: Recording, part: Tensor, axis: int, beside: Tensor | None) -> Tensor:
    """Channels of a constant that is concatenated: fresh ones, or those beside it; they keep their width."""
    reason = recording.reason_beside(part, f"a constant is concatenated in '{recording.module}'")
    if beside is not None:
        recording.fix(beside, reason)
        return beside.expand(part.shape)
    channels = recording.fresh(part.shape[axis])
    if recording.giver(part) or not note_repeated(recording, part, axis, channels):
        recording.fix(channels, reason)
    return spread(channels, part, axis)


def copy(recording: Recording, call: Call) -> None:
    """Writing channels into a part of another tensor: they are not followed any further, and keep their width.

    This is enough for the parameters of a sampling grid; a layer that takes them reads a part that stays whole.
    """
    target, source = call.args[:2]
    reason = f"copied into a part of another tensor in '{recording.module}'"
    if recording.shadow(source) is not None:
        recording.keeping.give(target, Kept(recording.owner, call.operator, users_line()))
    for tensor in (target, source):
        _leave(recording, tensor, reason)
    recording.mark(target, recording.shadow(target))


def place(recording: Recording, call: Call) -> None:
    """Parameters of a sampling grid are positions, not content: the grid has no channels."""
    _leave(recording, call.args[0], f"say where '{recording.module}' looks")
    recording.mark(call.output, None)


def sample(recording: Recording, call: Call) -> None:
    """Sampling at the positions of a grid: channels stay, height and width change."""
    _leave(recording, call.args[1], f"say where '{recording.module}' looks")
    spatial(recording, call)


def leave_torch(recording: Recording, call: Call) -> None:
    """Numbers taken out of torch (`numpy()`, `tolist()`) return, if at all, as constants."""
    if recording.shadow(call.args[0]) is not None:
        raise GraphError(
            f"module '{recording.module}' takes channels out of torch (numpy or tolist), where they cannot be followed"
            "; write it with operators of torch on tensors"
        )


def _leave(recording: Recording, tensor: Tensor, reason: str) -> None:
    shadow = recording.shadow(tensor)
    if shadow is not None:
        recording.fix(shadow, reason)


_FAMILIES: dict[Rule, str] = {
    reshape: "view _unsafe_view reshape flatten unflatten view_as reshape_as",
    move: "permute transpose t movedim swapaxes expand expand_as squeeze unsqueeze slice select split split_with_sizes "
    "chunk unbind narrow index_select repeat flip roll tile repeat_interleave adjoint mT numpy_T matrix_H "
    "moveaxis swapdims",
    concatenate: "cat concat concatenate",
    stack: "stack",
    index: "index",
    look_up: "embedding",
    copy: "copy",
    place: "affine_grid_generator",
    sample: "grid_sampler grid_sampler_2d",
    leave_torch: "resolve_conj resolve_neg",
}
register_families(_FAMILIES)
