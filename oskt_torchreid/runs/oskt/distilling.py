"""Which networks of a run learn from others, and whether they can: checks before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...baselines import baseline
from ...config import Config
from ...errors import ConfigError
from ...graph import ChannelGraph
from .specification import StudentSpec


def distilled_names(config: Config, controls: Sequence[str], students: Sequence[StudentSpec]) -> list[str]:
    """Names of the networks that learn from class scores of the teacher, or of the chain's widest student."""
    named = [name for name in controls if baseline(name).distils]
    of_chain = config.oskt.distillation.of_chain
    return [*named, *(spec.text for spec in students if spec.distils or (of_chain and spec.of_chain))]


def check_distillation(distilled: Sequence[str], known: int, num_classes: int) -> None:
    """Raises `ConfigError` for a network that would learn from class scores of other identities.

    Args:
        distilled: names of such networks.
        known: identities that the teacher's classifier was trained on.
        num_classes: identities of the data.
    """
    if distilled and known != num_classes:
        raise ConfigError(
            f"'{distilled[0]}' is trained by class scores of its teacher, which has {known} identities, but the data "
            f"have {num_classes}; drop it, or distil on the teacher's own identities"
        )


def check_liftable(config: Config, asked: Sequence[StudentSpec], graph: ChannelGraph) -> None:
    """Raises `ConfigError` for students that shall share a gallery, of a network whose features cannot be lifted.

    Args:
        config: `oskt.feature=teacher` and `oskt.finetune.compatible` above 0 lift features.
        asked: the students.
        graph: of their teacher.
    """
    weight, oskt = config.oskt.finetune.compatible, config.oskt
    key = "oskt.feature is 'teacher'" if oskt.feature == "teacher" else f"oskt.finetune.compatible is {weight:g}"
    if (oskt.feature != "teacher" and not weight) or not any(spec.of_chain for spec in asked):
        return
    if oskt.distance != "none":
        raise ConfigError(
            f"{key} and oskt.distance '{oskt.distance}'; lifted features have the teacher's distances as they are: set "
            "oskt.distance=none"
        )
    if not len(graph.feature):
        raise ConfigError(
            f"{key}, but '{config.model.name}' returns several features, or one whose parts are normalised one by one; "
            "set oskt.feature=own and oskt.finetune.compatible=0"
        )
    read = [graph.column_ties[name].channels[0] for name in graph.heads if name in graph.column_ties]
    if weight and (len(read) != 1 or not np.array_equal(read[0], graph.feature)):
        raise ConfigError(
            f"oskt.finetune.compatible is {weight:g}, but '{config.model.name}' has {len(graph.heads)} classifiers, or "
            "returns other features than its classifier is given, so that no feature is both trained and lifted; set "
            "it to 0"
        )
