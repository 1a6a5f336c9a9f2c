"""Rule of fused attention: queries, keys and values of a head are one set of channels, every head is a separate block.

The product `q . k` sums over a head's channels, so the channels of queries and keys must be merged alike; values need
not be, but the method clusters all three together where they are equally many (one clustering per head). Merged
channels count once in the sum, and a narrower head scales it by its own `size ** -0.5`; both can be compensated in the
rows of queries and keys, so the graph says which rows these are (`ChannelGraph.attentions`). Attention in parts is
followed as well, see `products.py`.

Example (4 channels, 2 heads of 2): a layer of queries, keys and values has 12 rows, of which 0..3 are queries, 4..7
keys and 8..11 values. Rows 0, 4 and 8 become one channel, and so do 1, 5, 9, and so on: the attention's channels are
`[[0, 1], [2, 3]]`, its positions `{"qkv.weight": 0..7, "qkv.bias": 0..7}`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..calls import Call, register_rule
from ..recording import Recording
from ..shadows import compact
from .products import multiply_channels
from .whole import keep_whole


def attention(recording: Recording, call: Call) -> None:
    """Fused attention of `[..., tokens, size]`: products of queries and keys over the last axis; values pass."""
    queries, keys, values = (call.arguments[name] for name in ("query", "key", "value"))
    scale, mask = call.arguments.get("scale"), call.arguments.get("attn_mask")
    if scale is not None:
        recording.note_number(float(scale))
    of_queries, of_keys, of_values = (recording.shadow(tensor) for tensor in (queries, keys, values))
    if call.arguments.get("enable_gqa"):
        of_keys, of_values = (_repeated(shadow, queries) for shadow in (of_keys, of_values))
    _check_mask(recording, mask)
    heads = None
    if of_queries is None or of_keys is None or any(compact(side).shape[-1] == 1 for side in (of_queries, of_keys)):
        keep_whole(recording, call, [of_queries, of_keys], "multiplied with a constant")
    else:
        heads = multiply_channels(recording, of_queries, of_keys, (queries, keys), scale is None)
    if of_values is None:
        recording.mark(call.outputs[0], None)
        return
    recording.note_read(values)
    passed = _without_tokens(recording, of_values)
    if heads is not None and passed.shape[-1] == heads.shape[-1] and passed.numel() == heads.numel():
        recording.unite(passed.reshape(heads.shape), heads)
    recording.mark(call.outputs[0], passed.expand(call.outputs[0].shape))


def _repeated(shadow: Tensor | None, queries: Tensor) -> Tensor | None:
    """Keys or values of which several heads of queries share one, as often as they are used."""
    return None if shadow is None else shadow.repeat_interleave(queries.shape[-3] // shadow.shape[-3], -3)


def _without_tokens(recording: Recording, shadow: Tensor) -> Tensor:
    """A compact shadow whose channels are the same for all tokens."""
    small = compact(shadow)
    if small.shape[-2] > 1:
        recording.unite(small, small.narrow(-2, 0, 1))
    return small.narrow(-2, 0, 1)


def _check_mask(recording: Recording, mask: Tensor | None) -> None:
    """What a layer adds to the products of queries and keys is one number per head and position: it stays whole."""
    shadow = recording.shadow(mask) if torch.is_tensor(mask) else None
    if shadow is not None and not recording.is_bare(shadow):
        recording.fix(shadow, f"added to products of queries and keys in '{recording.module}'")


register_rule("scaled_dot_product_attention", attention)
