"""Merging without refinement: channels clustered by k-means, rows averaged, columns summed."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from ..chain.chain import WeightChain
from ..chain.clustering import cluster_teacher
from ..chain.expansion import expand_to_plan
from ..chain.network import state_of
from ..graph import ChannelGraph
from ..graph.plans import check_plan
from .partitions import kmeans


def merge_by_kmeans(teacher: nn.Module, graph: ChannelGraph, widths: Mapping[str, int]) -> nn.Module:
    """Each channel of the student stands for a k-means cluster of the teacher's; nothing is trained.

    It is the student that a chain of these widths gives before any refinement, with k-means instead of Ward's method.
    The starts follow torch's random generator.

    Args:
        teacher: not changed.
        graph: its channel graph.
        widths: width per group name.

    Raises:
        ChainError: weights that are not finite.
        WidthError: widths that the graph does not allow.
    """
    check_plan(graph, widths)
    seed = int(torch.randint(2**31, ()))
    normalize = bool(graph.attentions)
    labels = cluster_teacher(graph, state_of(teacher), widths, normalize, kmeans(seed))
    return expand_to_plan(WeightChain.from_labels(teacher, graph, labels), widths)
