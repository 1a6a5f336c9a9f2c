"""Operators that mix channels in a way that no student repeats: all their channels stay, followed no further."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from ..calls import Call
from ..recording import Recording


def keep_whole(recording: Recording, call: Call, shadows: Iterable[Tensor | None], why: str) -> None:
    """Fixes the channels of an operator's inputs; its outputs, as wide as ever, carry none.

    Args:
        recording: of the network.
        call: of the operator.
        shadows: of its inputs.
        why: what is done to them, for the summary of the graph.
    """
    for shadow in shadows:
        if shadow is not None:
            recording.fix(shadow, f"{why} in '{recording.module}'")
    for output in call.outputs:
        recording.mark(output, None)
    for channels in recording.running[-1].inputs if recording.running else []:
        recording.kept.append((channels.numpy(), recording.module))
