"""Rules of the operators that normalise over channels: layer norm, RMS norm and group norm.

Merged channels count once in their means and variances, so a student is exact only if all its slots stand for equally
many channels; the graph records them (`ChannelGraph.norms`).
"""

from __future__ import annotations

from torch import Tensor

from ...errors import GraphError
from ..calls import Call, register_families
from ..recording import Recording
from ..shadows import compact, spread
from .layers import channel_norm, norm_of_image


def layer_norm(recording: Recording, call: Call) -> None:
    """Layer norm and RMS norm over the last axis: their vectors lie along the channels there."""
    shadow = recording.shadow(call.arguments["input"])
    if shadow is None:
        norm_of_image(recording, call)
        return
    if len(call.arguments["normalized_shape"]) != 1 or compact(shadow).shape[-1] == 1:
        raise GraphError(
            f"'{call.operator}' in module '{recording.module}' normalises over {call.arguments['normalized_shape']}, "
            "not over the axis of its input's channels alone; normalise over the last axis and move the channels there"
        )
    _normalise(recording, call, shadow, axis=shadow.dim() - 1, blocks=1)


def group_norm(recording: Recording, call: Call) -> None:
    """Group norm: channels of axis 1 in consecutive blocks, which are normalised one by one and get equal widths."""
    shadow, blocks = recording.shadow(call.arguments["input"]), call.arguments["num_groups"]
    if shadow is None or blocks == shadow.shape[1]:
        channel_norm(recording, call)  # blocks of one channel: nothing is normalised over channels
    else:
        _normalise(recording, call, shadow, axis=1, blocks=blocks)


def _normalise(recording: Recording, call: Call, shadow: Tensor, axis: int, blocks: int) -> None:
    channels = recording.axis_channels(shadow, axis)
    vectors = [call.arguments[name] for name in ("weight", "bias") if call.arguments.get(name) is not None]
    if not vectors:
        raise GraphError(
            f"'{call.operator}' in module '{recording.module}' has no weight that a student's width could be read from"
            "; make it affine"
        )
    for vector in vectors:
        recording.tie(vector, 0, "row", channels, blocks)
    recording.record_norm(channels, blocks)
    recording.mark(call.outputs[0], spread(channels, call.outputs[0], axis))


register_families({layer_norm: "layer_norm native_layer_norm rms_norm", group_norm: "group_norm native_group_norm"})
