"""The channel graph of any network: which channels every axis of every weight is made of, and which belong together."""

from __future__ import annotations

from torch import nn

from . import rules  # noqa: F401  it registers the rules of operators
from .calls import Call, register_rule
from .channel_graph import ChannelGraph
from .failures import check_model
from .grouping import build_graph
from .movement import check_movements
from .probing import find_routes
from .rules.elementwise import keep, spatial
from .scaling import FeaturePath, feature_path
from .shadows import spread
from .surgery.rebuild import rebuild, register_attribute_rule
from .surgery.routing import adapt_code
from .surgery.shell import shell
from .tracing import Tracer, run
from .types import ChannelGroup, Tie

__all__ = [
    "Call",
    "ChannelGraph",
    "ChannelGroup",
    "FeaturePath",
    "Tie",
    "Tracer",
    "adapt_code",
    "feature_path",
    "keep",
    "rebuild",
    "register_attribute_rule",
    "register_rule",
    "shell",
    "spatial",
    "spread",
    "trace",
]


def trace(model: nn.Module, input_size: tuple[int, int, int] = (3, 256, 128)) -> ChannelGraph:
    """Follows every channel of a network through one forward pass.

    Args:
        model: any module that maps an image batch to features or class scores; left exactly as it was.
        input_size: ``(channels, height, width)`` of the image to run it on; only speed depends on it, unless the
            network itself is made for one size.

    Returns:
        The channel graph; ``print(graph.summary())`` shows it.

    Raises:
        GraphError: an operator without a rule, a reduction over channels, weights that are computed on the fly, or
            code that takes channels apart at fixed places; says where and what to do.
    """
    check_model(model)
    tracer = run(model, input_size)
    routes = find_routes(model, tracer.frames.passages)
    graph = build_graph(model, tracer, input_size, routes)
    if tracer.movements or graph.splits or graph.reductions:
        check_movements(model, graph, tracer.movements)
    return graph
