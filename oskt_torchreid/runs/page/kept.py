"""What a run keeps for its page: some ranked lists, versions and machine."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ...files import write_json
from ..trainer import Trainer

RANKED_NAME = "ranked.json"
PACKAGES = ("oskt_torchreid", "torch", "torchvision", "torchreid", "numpy")


def keep_ranked(folder: Path, trainer: Trainer, lists: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes `ranked.json`: paths of some queries, and of what every network found for them.

    Args:
        folder: of the run.
        trainer: whose data the numbers in the lists belong to.
        lists: `queries` and `places` by the name of a network, see `host.ranked_lists`.
    """
    if not lists:
        return
    parts = next(iter(trainer.first_datamanager.test_dataset.values()))
    asked = next(iter(lists.values()))["queries"]

    def entry(item: Sequence[Any]) -> dict[str, Any]:
        return {"path": str(item[0]), "identity": int(item[1]), "camera": int(item[2])}

    found = {
        name: [[entry(parts["gallery"][place]) for place in row] for row in own["places"]]
        for name, own in lists.items()
        if own["queries"] == asked
    }
    content = {"queries": [entry(parts["query"][number]) for number in asked], "networks": found}
    write_json(folder / RANKED_NAME, content)


def environment() -> dict[str, str]:
    """Versions and machine, in words."""
    versions = {name: version for name in PACKAGES if (version := _version(name))}
    machine = f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads"
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU"
    return {**versions, "Python": platform.python_version(), "machine": f"{machine}, {device}"}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""
