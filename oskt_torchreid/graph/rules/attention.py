"""Rule of attention: queries, keys and values of a head are one set of channels, and every head is a separate block.

The product `q . k` sums over a head's channels, so the channels of queries and keys must be merged alike; values need
not be, but the method clusters all three together (one clustering per head). Merged channels count once in the sum, and
a narrower head scales it by its own `size ** -0.5`; both can be compensated in the rows of queries and keys, so the
graph says which rows these are (`ChannelGraph.attentions`).

Example (4 channels, 2 heads of 2): a layer of queries, keys and values has 12 rows, of which 0..3 are queries, 4..7
keys and 8..11 values. Rows 0, 4 and 8 become one channel, and so do 1, 5, 9, and so on: the attention's channels are
`[[0, 1], [2, 3]]`, its positions `{"qkv.weight": 0..7, "qkv.bias": 0..7}`.
"""

from __future__ import annotations

from torch import Tensor

from ...errors import GraphError
from ..calls import Call, register_rule
from ..recording import Recording, compact


def attention(recording: Recording, call: Call) -> None:
    """Fused attention of `[batch, heads, tokens, size]` (or of one head, without that axis)."""
    queries, keys, values = (call.arguments[name] for name in ("query", "key", "value"))
    shadows = _checked(recording, call, queries, keys, values)
    heads = [_per_head(recording, shadow) for shadow in shadows]
    recording.unite(heads[0], heads[1])
    recording.unite(heads[0], heads[2])
    recording.record_attention(heads[0], heads[1], call.arguments.get("scale") is None)
    shape = [1] * values.dim()
    shape[-1] = values.shape[-1]
    if values.dim() > 2:
        shape[-3] = values.shape[-3]
    recording.mark(call.outputs[0], heads[2].reshape(shape).expand(call.outputs[0].shape))


def _checked(recording: Recording, call: Call, *tensors: Tensor) -> list[Tensor]:
    """Shadows of queries, keys and values; raises `GraphError` where they cannot be followed."""
    found = [recording.shadow(tensor) for tensor in tensors]
    shadows = [shadow for shadow in found if shadow is not None]
    mask = call.arguments.get("attn_mask")
    reason = ""
    if len(shadows) < len(found):
        reason = "takes queries, keys or values that no layer produces"
    elif len({tensor.shape[:-2] + tensor.shape[-1:] for tensor in tensors}) > 1:
        reason = f"has heads of different numbers or sizes {[tuple(tensor.shape) for tensor in tensors]}"
    elif any(size > 1 for shadow in shadows for size in compact(shadow).shape[:-3]):
        reason = "has channels along another axis than heads and their sizes [batch, heads, tokens, size]"
    elif mask is not None and recording.shadow(mask) is not None:
        reason = "adds numbers that the network learns to the products of queries and keys"
    if reason:
        raise GraphError(
            f"attention in module '{recording.module}' {reason}; it can be followed where linear layers give queries, "
            "keys and values of equally many heads of one size"
        )
    return shadows


def _per_head(recording: Recording, shadow: Tensor) -> Tensor:
    """Channels of each head, shape `[heads, size]`; those of all tokens are united."""
    heads = shadow.shape[-3] if shadow.dim() > 2 else 1
    along = compact(shadow).expand(*[-1] * (shadow.dim() - 1), shadow.shape[-1]).movedim(-2, 0)
    along = along.reshape(along.shape[0], -1, shadow.shape[-1])
    along = along.expand(-1, heads, -1)
    if len(along) > 1:
        recording.unite(along, along[:1])
    return along[0]


def unfused(recording: Recording, call: Call) -> None:
    """A matrix product of activations: attention in parts, which is not followed."""
    raise GraphError(
        f"operator '{call.operator}' in module '{recording.module}' multiplies two activations: which channels it sums "
        "over is not followed. Attention is, in its fused form: torch.nn.functional.scaled_dot_product_attention"
    )


register_rule("scaled_dot_product_attention", attention)
for _operator in ("matmul", "bmm", "baddbmm"):
    register_rule(_operator, unfused)
