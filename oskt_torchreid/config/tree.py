"""The tree of all keys: torchreid's, with its defaults, and the nodes that this package adds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from .allowed import Value
from .keys import NEITHER, Key, Node, Tree, defaults_of, rows_of
from .nodes.comparison import COMPARISON
from .nodes.data import CROPS, CUHK03, DATA, FEW_SHOT, MARKET1501, SAMPLER, SYNTHPED, SYNTHPED_VIDEO, VALIDATION, VIDEO
from .nodes.oskt import OSKT
from .nodes.testing import TEST
from .nodes.training import ADAM, LOSS, MODEL, RMSPROP, SGD, TRAIN
from .nodes.vkd import VKD

TORCHREIDS: Node = {
    "use_gpu": Key(True, "run on a GPU if there is one", effect=NEITHER),
    "model": MODEL,
    "data": DATA,
    "market1501": MARKET1501,
    "cuhk03": CUHK03,
    "sampler": SAMPLER,
    "video": VIDEO,
    "train": TRAIN,
    "sgd": SGD,
    "rmsprop": RMSPROP,
    "adam": ADAM,
    "loss": LOSS,
    "test": TEST,
}
"""torchreid's nodes; what this package adds to them is marked as its own."""

OWN: Node = {
    "engine": Key("", "softmax | triplet | oskt | vkd; empty: torchreid's choice by loss.name"),
    "oskt": OSKT,
    "vkd": VKD,
    "imports": Key(
        [],
        "user code that is imported first: files such as mine.py, and modules; it registers networks, data sets, "
        "engines, baselines",
        effect=NEITHER,
    ),
    "page": Key(True, "write report.html into the run's folder at its end", effect=NEITHER),
    "comparison": COMPARISON,
    "few_shot": FEW_SHOT,
    "validation": VALIDATION,
    "crops": CROPS,
    "synthped": SYNTHPED,
    "synthped_video": SYNTHPED_VIDEO,
}
"""The nodes of this package."""


def every_key() -> dict[str, Key]:
    """The row of every dotted key, including those that depend on registered names."""
    return dict(rows_of(TORCHREIDS)) | {key: replace(row, own=True) for key, row in rows_of(OWN)}


def default_tree() -> Tree:
    """The defaults as nested dicts; YAML files hold differences from them."""
    return defaults_of({**TORCHREIDS, **OWN})


def leaves(tree: Tree, prefix: str = "") -> dict[str, Value]:
    """Every dotted key of a tree, or of one of its nodes, and its value."""
    found: dict[str, Value] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            found |= leaves(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found
