"""Retrieval distances of students: merged feature dimensions get back their original weight.

If a student's feature has one dimension for `n` equal ones of the teacher, class scores stay exact, because columns are
summed, but `||f - g||^2` counts that dimension once instead of `n` times. A factor per dimension corrects this, and
with it cosine distances and norms:

* `teacher`: `sqrt(members of the slot)` gives the distances of the teacher with its rows replaced by its chain's (in a
  ladder, of the first teacher);
* `chain`: `1 / sqrt(slots of the cluster)` gives those of the S-student;
* `none`: features as they are.

Example: the channels `0, 2, 3` of 4 are one cluster and `1` another; two images differ by `a` and `b` in them.
The teacher's squared distance is `3 a^2 + b^2`, that of the S-student `a^2 + b^2`. A student of width 3, with slots
for `(0, 2)`, `(1)` and `(3)`, has `2 a^2 + b^2`; with the factors `sqrt(2), 1, 1` that becomes
`(2 + 1) a^2 + b^2`, and with `sqrt(1/2), 1, sqrt(1/2)` it becomes `(1/2 + 1/2) a^2 + b^2`.

The rows of the layers that produce the feature are multiplied by the factors, and the columns of every other layer that
consumes it are divided by them (see `graph/scaling.py`): no operator is added, and class scores do not change.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError, GraphError
from ..graph.factors import ChannelFactors
from ..graph.plans import occupied_places
from ..graph.surgery.shell import student_axis
from ..registry import nearest
from .chain import WeightChain
from .layout import Layout

DISTANCES = ("none", "chain", "teacher")


def check_distance(distance: str) -> None:
    """Raises `ConfigError` for anything but one of `DISTANCES`."""
    if distance not in DISTANCES:
        raise ConfigError(
            f"distance is {distance!r}{nearest(str(distance), DISTANCES)}; allowed: {', '.join(DISTANCES)}"
        )


def check_foldable(chain: WeightChain, distance: str) -> None:
    """Raises `GraphError` if factors cannot be folded into a network that has merged feature dimensions."""
    check_distance(distance)
    if distance != "none" and chain.features.obstacle:
        raise GraphError(
            f"the features of {type(chain.model).__name__} cannot be scaled for distance='{distance}': "
            f"{chain.features.obstacle}; expand with distance='none' and multiply the features by "
            "oskt.chain.feature_scale(chain, widths, distance)"
        )


def feature_scale(chain: WeightChain, widths: Mapping[str, int], distance: str) -> Tensor:
    """The factors, for features that are scaled outside the network.

    Args:
        chain: not changed.
        widths: width per group name, as `width_plan` gives it.
        distance: `teacher`, `chain` or `none`.

    Returns:
        Factor per dimension of the student's feature, `[length]`; multiply before normalising.

    Raises:
        ConfigError: unknown distance.
        GraphError: a network whose feature is not made of channels of its graph.
        WidthError: widths that do not fit.
    """
    chain.check_range(widths)
    layout = chain.layout_of(widths)
    channels = chain.features.channels
    kept = channels[_along(occupied_places(chain.graph, widths), channels, True)]
    return torch.from_numpy(_along(channel_factors(chain, layout, distance), kept, 1)).float()


def _along(values: np.ndarray, channels: np.ndarray, otherwise: float) -> np.ndarray:
    """Values `[num_channels]` at some channels; another value where there is no channel (-1)."""
    return np.append(values, np.array(otherwise, values.dtype))[channels]


def channel_factors(chain: WeightChain, layout: Layout, distance: str) -> np.ndarray:
    """Factor of the slot at each channel's place, `[num_channels]`; 1 where there is no slot."""
    check_distance(distance)
    factors = np.ones(chain.graph.num_channels)
    if distance == "teacher":
        members = layout.total(chain.origins_per_channel)
        factors[members > 0] = np.sqrt(members[members > 0])
    elif distance == "chain":
        for group in chain.graph.groups:
            cluster = layout.slots[group.name].slot_to_cluster
            factors[group.channels[: len(cluster)]] = 1 / np.sqrt(np.bincount(cluster)[cluster])
    return factors


def scale_features(tensors: Mapping[str, Tensor], chain: WeightChain, layout: Layout, distance: str) -> None:
    """Folds the factors into a student's tensors, in place.

    Args:
        tensors: the student's own, by state-dict name.
        chain: the chain that they were made from.
        layout: of the student's widths.
        distance: see above.

    Raises:
        ConfigError: unknown distance.
        GraphError: an operator between the last layer and the feature does not commute with the factors.
    """
    factors = channel_factors(chain, layout, distance)
    path = chain.features
    if (_along(factors, path.channels, 1) == 1).all():
        return
    check_foldable(chain, distance)
    occupied = occupied_places(chain.graph, layout.widths)
    fold = ChannelFactors(chain.graph, tensors, factors, lambda axis: student_axis(axis, occupied))
    for name in path.rows:
        fold.multiply_rows(name)
    for name in path.columns:
        fold.divide_columns(name)
    for module in path.statistics:
        fold.scale_statistics(module, vars(chain.model.get_submodule(module))["eps"])
