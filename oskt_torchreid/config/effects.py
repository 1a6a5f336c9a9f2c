"""What every key shapes: the weights of networks, the numbers that are measured of them, or neither.

A run goes by this table when it is started again. Where a key that shapes weights has another value, what follows from
it is trained anew; where one that shapes numbers has, finished networks are evaluated again; all else changes nothing
that is there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any


class Effect(str, Enum):
    """What another value of a key makes necessary."""

    WEIGHTS = "weights"  # networks are trained again
    NUMBERS = "numbers"  # networks are evaluated again
    NEITHER = "neither"  # nothing: how, where and how fast it is done, or which networks there are


WEIGHTS, NUMBERS, NEITHER = Effect

EFFECTS: dict[str, Effect] = {
    "use_gpu": NEITHER,
    "engine": WEIGHTS,
    "model": WEIGHTS,
    "model.resume": NEITHER,
    "data": WEIGHTS,
    "data.root": NEITHER,  # the pictures themselves are compared: names, sizes, labels
    "data.targets": NUMBERS,
    "data.workers": NEITHER,
    "data.save_dir": NEITHER,
    "data.check": NEITHER,
    "market1501": NUMBERS,  # more pictures in the gallery
    "cuhk03": WEIGHTS,
    "cuhk03.use_metric_cuhk03": NUMBERS,
    "sampler": WEIGHTS,
    "video": WEIGHTS,
    "train": WEIGHTS,
    "train.print_freq": NEITHER,
    "sgd": WEIGHTS,
    "rmsprop": WEIGHTS,
    "adam": WEIGHTS,
    "loss": WEIGHTS,
    "test": NUMBERS,
    "test.batch_size": NEITHER,
    "test.evaluate": NEITHER,
    "test.eval_freq": NEITHER,  # evaluations on the way leave the random numbers as they are
    "test.start_eval": NEITHER,
    "oskt": WEIGHTS,
    "oskt.students": NEITHER,  # which networks there are; each is made once
    "oskt.controls": NEITHER,
    "oskt.processes": NEITHER,
    "oskt.latency": NEITHER,  # chooses widths, which are compared themselves
    "vkd": WEIGHTS,
    "vkd.frame_memory": NEITHER,
    "vkd.generations": NEITHER,
    "vkd.protocols": NUMBERS,
    "vkd.query_in_gallery": NUMBERS,
    "vkd.test_frames": NUMBERS,
    "comparison": NEITHER,  # its runs have keys of their own
    "few_shot": WEIGHTS,
    "validation": WEIGHTS,
    "synthped": WEIGHTS,
    "synthped.num_test": NUMBERS,
    "synthped_video": WEIGHTS,
    "synthped_video.num_test": NUMBERS,
}
"""Effect of a key, or of all keys of a node that have none of their own."""


def effect_of(key: str) -> Effect:
    """Effect of a dotted key: its own in ``EFFECTS``, or that of the nearest node above it.

    Raises:
        KeyError: neither the key nor a node above it is in the table.
    """
    node = key
    while node not in EFFECTS:
        node, dot, _ = node.rpartition(".")
        if not dot:
            raise KeyError(key)
    return EFFECTS[node]


def leaves(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Every dotted key of a tree, or of one of its nodes, and its value."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            found |= leaves(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def settings(config: Mapping[str, Any], nodes: Iterable[str], effect: Effect) -> dict[str, Any]:
    """The keys of some nodes that have an effect, and their values.

    Args:
        config: whole tree.
        nodes: dotted names of nodes or of single keys.
        effect: that is asked for.
    """
    chosen = tuple(nodes)
    return {
        key: value
        for key, value in leaves(config).items()
        if effect_of(key) is effect and any(key == node or key.startswith(f"{node}.") for node in chosen)
    }
