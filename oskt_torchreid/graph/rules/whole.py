"""Operators that mix channels in a way that no student repeats: all their channels stay, as those of unknown ones do.

See `keeping.py`; a rule knows why.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from ...errors import GraphError
from ..calls import Call
from ..keeping import Kept, users_line
from ..recording import Recording


def keep_whole(recording: Recording, call: Call, shadows: Iterable[Tensor | None], why: str) -> None:
    """Fixes the channels of an operator's inputs; its outputs, as wide as ever, carry none.

    Args:
        recording: of the network.
        call: of the operator.
        shadows: of its inputs.
        why: what is done to them, as in "mixed by a product".

    Raises:
        GraphError: nothing may stay whole that was not asked for.
    """
    for output in call.outputs:
        recording.mark(output, None)
    part = stay_whole(recording, call, shadows, why)
    if part is None:  # should channels meet them, they stay whole
        for output in call.outputs:
            recording.keeping.give(output, Kept(recording.owner, call.operator, users_line(), why))
        return
    recording.keep_whole(part, (), call.outputs)
    for channels in recording.running[-1].inputs if recording.running else []:
        recording.mixed.append((channels.numpy(), part.reason))


def stay_whole(recording: Recording, call: Call, shadows: Iterable[Tensor | None], why: str) -> Kept | None:
    """As `keep_whole`, of an operator whose outputs are left to its rule.

    Returns:
        The part that stays whole; `None` if the inputs are parameters alone, which are constants to the network.
    """
    known = [shadow for shadow in shadows if shadow is not None]
    if all(map(recording.is_bare, known)):
        for shadow in known:
            recording.fix(shadow, f"{why} in '{recording.module}'")
        return None
    if recording.keeping.strict:
        raise GraphError(
            f"operator '{call.operator}' in module '{recording.module}': its channels are {why}, which no narrower "
            "network repeats"
        )
    part = recording.keeping.part(recording.owner, call.operator, why)
    recording.keep_whole(part, [t for t in call.tensors if any(recording.known_shadow(t) is own for own in known)])
    for shadow in known:
        recording.fix(shadow, part.reason)
    return part
