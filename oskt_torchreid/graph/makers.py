"""Which tensors' rows can multiply an activation by a factor per channel: those of the layer that made it.

A factor on the rows (and bias) of a layer, or on the vectors of a norm, passes unchanged through what is homogeneous
channel by channel. Example: in `(norm(linear(x)) * 0.5).transpose(1, 2)` the makers are the norm's weight and bias.
"""

from __future__ import annotations

from torch import Tensor

from .calls import Call
from .notes import Makers
from .recording import Recording


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


LAYERS = _names(
    "conv1d conv2d linear batch_norm instance_norm layer_norm native_layer_norm rms_norm group_norm native_group_norm "
    "conv_transpose1d conv_transpose2d"
)
MOVEMENTS = _names(
    "clone contiguous detach alias lift_fresh to _to_copy type_as view _unsafe_view reshape flatten unflatten view_as "
    "reshape_as permute transpose t movedim swapaxes expand expand_as squeeze unsqueeze slice select split "
    "split_with_sizes chunk unbind narrow index_select repeat flip roll cat concat concatenate stack "
    "numpy_T mT matrix_H adjoint moveaxis swapdims"
)
"""They put every number somewhere, and change none."""
HOMOGENEOUS = MOVEMENTS | _names(
    "relu leaky_relu dropout feature_dropout abs neg max_pool2d avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d "
    "max_pool1d avg_pool1d adaptive_avg_pool1d upsample_bilinear2d upsample_nearest2d upsample_bicubic2d "
    "reflection_pad2d replication_pad2d mean sum amax amin"
)
"""A positive factor per channel passes unchanged."""


PRODUCTS = _names("matmul bmm baddbmm einsum scaled_dot_product_attention linalg_vector_norm norm")
"""They note themselves what they read otherwise than in a product over channels."""


def note_reads(recording: Recording, call: Call, makers: Makers) -> None:
    """Notes the activations that a call reads, unless a factor on them passes on, or a product makes up for it."""
    operator = call.operator.removesuffix("_")
    if operator not in PRODUCTS and (makers is None or operator in LAYERS):
        for tensor in call.tensors:
            recording.note_read(tensor)


def makers_of(recording: Recording, call: Call) -> Makers:
    """Names of the tensors that a factor on the output of a call can be folded into; `None` if it cannot."""
    operator = call.operator.removesuffix("_")
    if operator in LAYERS:
        return _of_layer(recording, call)
    tensors = call.tensors[:1] if operator.endswith("_as") else call.tensors  # of the other only the shape is taken
    tracked = [tensor for tensor in tensors if recording.known_shadow(tensor) is not None]
    scaled = operator in ("mul", "div") and len(tracked) == 1 and tracked[0] is call.args[0]
    summed = operator in ("add", "sub") and len(tracked) == 2
    if not (operator in HOMOGENEOUS or scaled or summed):
        return None
    found: set[str] = set()
    for tensor in tracked:
        makers = _of(recording, tensor)
        if makers is None:
            return None
        found |= makers
    return frozenset(found)


def _of_layer(recording: Recording, call: Call) -> Makers:
    weight, bias = call.arguments.get("weight"), call.arguments.get("bias")
    if weight is None or recording.name_of(weight) is None:
        return None
    of_bias = frozenset() if bias is None else _of(recording, bias)
    return None if of_bias is None else of_bias | {recording.name_of(weight) or ""}


def _of(recording: Recording, tensor: Tensor) -> Makers:
    name = recording.name_of(tensor)
    return frozenset((name,)) if name else recording.makers.get(id(tensor))
