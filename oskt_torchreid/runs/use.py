"""Which keys a run uses: keys that an engine would silently ignore are refused, or named in the log."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from fnmatch import fnmatch
from typing import Any

from ..config import Config, default_config, get, leaves
from ..datasets import crops, synthped, synthped_video
from ..errors import ConfigError
from ..host.ranking import METRICS
from .conditions import BY_MACHINE, idle_keys, left_out_keys, train_schedule

logger = logging.getLogger(__name__)

DATA_NODES: dict[str, tuple[str, ...]] = {
    "market1501": ("market1501",),
    "cuhk03": ("cuhk03",),
    "crops": (crops.NAME,),
    "synthped": tuple(synthped.VARIANTS),
    "synthped_video": tuple(synthped_video.VARIANTS),
}
"""Nodes that describe data sets, and the names of those sets."""

_OPTIMIZERS = {"sgd": ("sgd",), "rmsprop": ("rmsprop",), "adam": ("adam", "amsgrad", "radam")}
NOT_USED: dict[str, str] = {
    "video.*": "no engine here learns from clips; engine vkd learns from sets of frames, see vkd.num_views",
    "data.load_train_targets": "no engine here learns from the pictures of targets; name the set among data.sources",
    "sampler.train_sampler_t": "no engine here learns from the pictures of targets",
    "data.k_tfm": "no engine here learns from several views of a picture at a time",
}
"""Keys of torchreid's tree that no engine uses, and why; patterns of names."""

NOT_USED_BY: dict[str, dict[str, str]] = {
    "vkd": {
        "sampler.num_cams": "batches hold sets of some identities, see sampler.num_instances",
        "sampler.num_datasets": "batches hold sets of some identities, see sampler.num_instances",
        "model.neck": "networks of sets have their own classifier",
        "model.last_stride": "networks of sets have their own last stage",
        "cuhk03.use_metric_cuhk03": "protocols are those of Market-1501",
        "test.visrank": "ranked lists are drawn of pictures, not of sets",
        "test.visrank_topk": "ranked lists are drawn of pictures, not of sets",
    }
}
"""Keys of torchreid's tree that one engine does not use, and why."""

_ONLY: dict[str, dict[str, tuple[Any, ...]]] = {
    "vkd": {
        "sampler.train_sampler": ("RandomSampler", "RandomIdentitySampler"),
        "test.dist_metric": METRICS,
    }
}
"""Keys whose values an engine does not distinguish: the default, and the value that describes the engine."""


_ALWAYS_USED = ("cuhk03.use_metric_cuhk03",)  # a protocol for any data


def data_nodes(names: Iterable[str]) -> list[str]:
    """The nodes that describe data sets of these names."""
    names = set(names)
    return [node for node, known in DATA_NODES.items() if names & set(known)]


def unused_nodes(config: Config) -> dict[str, str]:
    """Nodes and single keys without effect on this run, and why."""
    engine, data = config.engine or config.loss.name, config.data
    reasons = {node: f"engine is '{engine}'" for node in ("oskt", "vkd") if node != engine}
    reasons["comparison"] = "it belongs to oskt bench accuracy"
    used = data_nodes([*data.sources, *data.targets])
    names = ", ".join(dict.fromkeys([*data.sources, *data.targets]))
    reasons |= {node: f"the data are {names}" for node in DATA_NODES if node not in used}
    optim = config.train.optim
    reasons |= {node: f"train.optim is '{optim}'" for node, known in _OPTIMIZERS.items() if optim not in known}
    if engine == "vkd":
        own = "vkd.teacher_stage and vkd.student_stage have their own schedules"
        reasons |= dict.fromkeys(train_schedule(config), own)
    idle = idle_keys(config)
    return reasons | {key: reason for key, reason in idle.items() if not any(_is_of(key, node) for node in reasons)}


def refused_keys(engine: str) -> dict[str, str]:
    """Keys of torchreid's tree that an engine refuses to have another value than the default, and why."""
    patterns = {**NOT_USED, **NOT_USED_BY.get(engine, {})}
    keys = leaves(default_config())
    return {key: reason for key in keys for pattern, reason in patterns.items() if fnmatch(key, pattern)}


def check_use(config: Config, given: Iterable[str] = ()) -> None:
    """Refuses values that would have no effect.

    Nodes of another engine or optimiser, schedules in `train` if stages have their own, and keys without effect under
    the values of others are allowed in a file, and logged, but not on a command line. Allowed in both are nodes of
    unused data sets, keys that depend on the machine, and keys of skipped stages.

    Args:
        config: whole tree.
        given: dotted keys that the user named on the command line.

    Raises:
        ConfigError: a key that the engine does not use, with why.
    """
    engine = config.engine or config.loss.name
    default = default_config()
    for key, reason in refused_keys(engine).items():
        if get(config, key) != get(default, key):
            raise ConfigError(
                f"{key} is {get(config, key)!r}, which engine {engine} does not use: {reason}; leave it at "
                f"{get(default, key)!r}"
            )
    for key, allowed in _ONLY.get(engine, {}).items():
        if get(config, key) not in allowed:
            raise ConfigError(
                f"{key} is {get(config, key)!r}, which engine {engine} does not use; it works as with {allowed[-1]!r}"
            )
    _check_nodes(config, default, given)


def _check_nodes(config: Config, default: Config, given: Iterable[str]) -> None:
    reasons = unused_nodes(config)
    told = {*DATA_NODES, *BY_MACHINE, *left_out_keys(config)}
    for key in given:
        node = next((node for node in reasons if _is_of(key, node)), "")
        if node and node not in told:
            raise ConfigError(f"{key} is given, and nothing uses it: {reasons[node]}; take it out")
    values, defaults = leaves(config), leaves(default)
    passed_over: dict[str, list[str]] = {}
    for node, reason in reasons.items():
        keys = [key for key in values if _is_of(key, node) and key not in _ALWAYS_USED]
        if node != "comparison" and any(values[key] != defaults[key] for key in keys):
            passed_over.setdefault(reason, []).append(node if keys == [node] else f"{node}.*")
    for reason, names in passed_over.items():
        logger.info("not used in this run: %s, for %s", ", ".join(names), reason)


def _is_of(key: str, node: str) -> bool:
    return key == node or key.startswith(f"{node}.")
