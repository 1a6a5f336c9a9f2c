"""What works with which backbone, found by trying."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from tabulate import tabulate
from tqdm import tqdm

from ..errors import ConfigError, GraphError
from ..host import models
from ..models import NeckModel, find_classifier
from ..oskt.network import trace
from .tables import human_count

HEADERS = ("backbone", "parameters", "channels", "groups", "ties", "chain", "BNNeck")
NUM_CLASSES = 751


def support_table(names: Iterable[str]) -> str:
    """A Markdown table: each backbone traced at the size it is made for, and built with a neck.

    ``chain`` is *yes* where students of any width can be expanded, else the first words of the reason; ``BNNeck`` says
    whether ``oskt_<backbone>`` exists.
    """
    rows = [_row(name) for name in tqdm(list(names), disable=None, unit="backbone")]
    return tabulate(rows, headers=HEADERS, tablefmt="github", colalign=("left", *["right"] * 4, "left", "left"))


def _row(name: str) -> tuple[str, ...]:
    torch.manual_seed(0)
    model = models.build(name, NUM_CLASSES)
    params = human_count(sum(parameter.numel() for parameter in model.parameters()))
    try:
        find_classifier(model, models.input_size(name))
        neck = "yes"
    except ConfigError:
        neck = "no: several classifiers"
    if isinstance(model, NeckModel):
        neck = "has one"
    try:
        graph = trace(model)
    except GraphError as error:
        return name, params, "-", "-", "-", f"no: {str(error).partition(';')[0][:80]}", neck
    return name, params, str(graph.num_channels), str(len(graph.groups)), str(len(graph.ties)), "yes", neck
