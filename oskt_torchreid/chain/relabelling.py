"""Students for other identities than the chain was refined on: the same network with fresh classifiers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from torch import nn

from ..errors import GraphError

FRESH_DEVIATION = 0.001  # standard deviation of a fresh classifier's weights, as in necks


def relabel(student: nn.Module, heads: Iterable[str], num_classes: int) -> nn.Module:
    """Gives a student, in place, classifiers of another class count; the rest, including the feature, does not change.

    Classifiers that have the count already are kept with their weights.

    Args:
        student: made by `expand`.
        heads: names of the classifiers' weights, `ChannelGraph.heads`.
        num_classes: identities that it will be trained on.

    Returns:
        The student.

    Raises:
        GraphError: a classifier that is no linear layer; nothing is changed.
    """
    owners: dict[str, nn.Linear] = {}
    for name in (weight.rpartition(".")[0] for weight in sorted(heads)):
        layer = student.get_submodule(name)
        if not isinstance(layer, nn.Linear):
            raise GraphError(
                f"classifier '{name}' is a {type(layer).__name__}, and only a Linear can be replaced for "
                f"{num_classes} identities; fine-tune on the chain's own identities"
            )
        owners[name] = layer
    for name, layer in owners.items():
        if layer.out_features != num_classes:
            student.set_submodule(name, _fresh(layer, num_classes))
    record = getattr(student, "student_record", None)
    if record is not None:
        student.student_record = replace(record, num_classes=num_classes)
    return student


def _fresh(layer: nn.Linear, num_classes: int) -> nn.Linear:
    fresh = nn.Linear(layer.in_features, num_classes, bias=layer.bias is not None, device=layer.weight.device)
    nn.init.normal_(fresh.weight, std=FRESH_DEVIATION)
    if fresh.bias is not None:
        nn.init.zeros_(fresh.bias)
    return fresh.train(layer.training)
