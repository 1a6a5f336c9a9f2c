"""Rules of the operators that move channels: views, transposes, slices, concatenations, copies, sampling grids."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import GraphError
from ..calls import Call, Rule, register_families
from ..keeping import Kept, users_line
from ..recording import Recording, compact, extents, settled, spread
from .elementwise import spatial


def reshape(recording: Recording, call: Call) -> None:
    """Views and reshapes: the shadow is reshaped alike."""
    shadow = recording.shadow(call.args[0])
    if shadow is None:  # only the shape is taken from a tensor that carries channels
        recording.mark(call.output, None)
        return
    moved = settled(shadow.reshape(call.output.shape))
    if extents(shadow) != extents(moved):
        recording.record_movement(call.operator, shadow)
    recording.mark(call.output, moved)


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
    shadow = spread(recording.fresh(part.shape[axis]), part, axis) if beside is None else beside.expand(part.shape)
    giver = recording.giver(part)
    recording.fix(shadow, giver.reason if giver else f"a constant is concatenated in '{recording.module}'")
    return shadow


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
    "chunk unbind narrow index_select repeat flip roll",
    concatenate: "cat concat concatenate",
    stack: "stack",
    copy: "copy",
    place: "affine_grid_generator",
    sample: "grid_sampler grid_sampler_2d",
    leave_torch: "resolve_conj resolve_neg",
}
register_families(_FAMILIES)
