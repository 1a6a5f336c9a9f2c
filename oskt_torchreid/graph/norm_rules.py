"""Rules of the operators that normalise over channels: layer norm and group norm.

Merged channels count once in their means and variances, so a student is exact only where all its slots stand for
equally many channels; the graph says so (``ChannelGraph.norms``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ..errors import GraphError
from .calls import Call, register_rule
from .shadows import compact

if TYPE_CHECKING:
    from .tracing import Tracer


def layer_norm(tracer: Tracer, call: Call) -> None:
    """Layer norm over the last axis: its vectors lie along the channels there."""
    shadow = tracer.shadow(call.arguments["input"])
    if shadow is None:
        return
    if len(call.arguments["normalized_shape"]) != 1 or compact(shadow).shape[-1] == 1:
        raise GraphError(
            f"'{call.operator}' in module '{tracer.module}' normalises over {call.arguments['normalized_shape']}, which "
            "is not the axis of its input's channels alone; normalise over the last axis and move the channels there"
        )
    _normalise(tracer, call, shadow, axis=shadow.dim() - 1, blocks=1)


def group_norm(tracer: Tracer, call: Call) -> None:
    """Group norm: channels of axis 1 in consecutive blocks, which are normalised one by one and get equal widths."""
    shadow = tracer.shadow(call.arguments["input"])
    if shadow is not None:
        _normalise(tracer, call, shadow, axis=1, blocks=call.arguments["num_groups"])


def _normalise(tracer: Tracer, call: Call, shadow: Tensor, axis: int, blocks: int) -> None:
    channels = tracer.axis_channels(shadow, axis)
    vectors = [call.arguments[name] for name in ("weight", "bias") if call.arguments[name] is not None]
    if not vectors:
        raise GraphError(
            f"'{call.operator}' in module '{tracer.module}' has no weight that a student's width could be read from; "
            "make it affine"
        )
    for vector in vectors:
        tracer.tie(vector, 0, "row", channels, blocks)
    tracer.record_norm(channels, blocks)
    tracer.mark(call.outputs[0], shadow)


register_rule("layer_norm", layer_norm)
register_rule("native_layer_norm", layer_norm)
register_rule("group_norm", group_norm)
register_rule("native_group_norm", group_norm)
