"""Chains with arbitrary clusters: costs depend on widths, not on which channels share a cluster."""

from __future__ import annotations

import numpy as np
from torch import nn

from oskt_torchreid.chain.chain import WeightChain
from oskt_torchreid.chain.network import trace
from oskt_torchreid.graph.plans import full_plan


def arbitrary_chain(model: nn.Module, width: object, size: tuple[int, int, int]) -> WeightChain:
    """Channel `i` of a group of `K` clusters belongs to cluster `i mod K`."""
    graph = trace(model, size)
    widths = full_plan(graph, width)
    return WeightChain.from_labels(model, graph, {g.name: np.arange(g.size) % widths[g.name] for g in graph.groups})
