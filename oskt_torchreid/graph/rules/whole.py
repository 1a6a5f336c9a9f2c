"""Operators that mix channels in a way that no student repeats: their channels stay, and are followed no further."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from torch import Tensor

from ...errors import GraphError
from ..calls import Call
from ..recording import Recording

logger = logging.getLogger(__name__)


def keep_whole(recording: Recording, call: Call, shadows: Iterable[Tensor | None], why: str) -> None:
    """Fixes the channels of an operator's inputs; its outputs, as wide as ever, carry none.

    Args:
        recording: of the network.
        call: of the operator.
        shadows: of its inputs.
        why: what is done to them.

    Raises:
        GraphError: nothing may stay whole that was not asked for.
    """
    known = [shadow for shadow in shadows if shadow is not None]
    what = f"operator '{call.operator}' in module '{recording.module}': its channels are {why}"
    if known and recording.keeping.strict:
        raise GraphError(f"{what}, which no narrower network repeats")
    logger.debug("kept whole: %s", what)
    for output in call.outputs:
        recording.mark(output, None)
    if known:
        part = recording.keeping.part(recording.owner, call.operator)
        given = [tensor for tensor in call.tensors if any(recording.known_shadow(tensor) is own for own in known)]
        recording.keep_whole(part, given, call.outputs)
        for shadow in known:
            recording.fix(shadow, part.reason)
    for channels in recording.running[-1].inputs if recording.running else []:
        recording.kept.append((channels.numpy(), recording.module))
