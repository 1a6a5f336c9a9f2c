"""Checks of values: each alone, by what its row allows, and those that must go together."""

from __future__ import annotations

import math

from yacs.config import CfgNode

from ..errors import ConfigError
from ..files.checks import MOST_PIXELS
from .allowed import Value, entries_of
from .tree import every_key, leaves

LARGEST_NUMBER = 2**31
LONGEST_TEXT, LONGEST_NAME = 1000, 255  # characters of a value, bytes of a name in a path


def check_config(config: CfgNode) -> None:
    """Checks ranges and choices of a whole tree.

    Raises:
        ConfigError: first value that is not allowed, with the allowed ones.
    """
    values = leaves(config)
    for key, row in every_key().items():
        if row.allowed:
            row.allowed.check(key, values[key])
        if row.if_twice:
            _check_once(key, values[key], row.if_twice)
    _check_together(config)


def _check_once(key: str, value: Value, harm: str) -> None:
    """Raises ConfigError for a list that has an entry twice."""
    entries = entries_of(value)
    twice = next((entry for entry in entries if entries.count(entry) > 1), None)
    if twice is not None:
        raise ConfigError(f"{key} names '{twice}' twice, so that {harm}; name it once")


def _check_together(config: CfgNode) -> None:
    """Raises ConfigError for values that are each allowed, but not together."""
    height, width = config.data.height, config.data.width
    if height * width > MOST_PIXELS:
        raise ConfigError(
            f"data.height {height} times data.width {width} are {height * width} pixels; allowed: up to {MOST_PIXELS}"
        )
    if config.loss.center.weight and config.loss.name != "triplet":
        raise ConfigError(
            f"loss.center.weight is {config.loss.center.weight}, and networks give features to a loss with "
            f"loss.name=triplet alone, not with '{config.loss.name}'; set one of the two"
        )
    _check_nested(config.oskt)
    sgd = config.sgd
    if config.train.optim == "sgd" and sgd.nesterov and (sgd.momentum == 0 or sgd.dampening != 0):
        raise ConfigError(
            f"sgd.nesterov needs sgd.momentum above 0 and sgd.dampening 0; they are {sgd.momentum} and "
            f"{sgd.dampening}: change them, or set sgd.nesterov=False"
        )


def check_value(value: object, key: str, source: str) -> None:
    """Raises ConfigError for what no key means, alone or in a list: nothing computes with it, no file is named so.

    Args:
        value: as it was read, of any type.
        key: that it was given for.
        source: where it comes from, for messages.
    """
    if isinstance(value, (list, tuple)):
        for item in value:
            check_value(item, key, source)
    elif isinstance(value, int) and abs(value) > LARGEST_NUMBER:
        raise ConfigError(f"{key} in {source} is a whole number beyond {LARGEST_NUMBER}; no key means such a one")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{key} in {source} is {value}; it must be a finite number")
    elif isinstance(value, str):
        _check_text(value, key, source)


def _check_text(text: str, key: str, source: str) -> None:
    longest = max(len(part.encode(errors="surrogateescape")) for part in text.split("/"))
    if "\0" in text or len(text) > LONGEST_TEXT or longest > LONGEST_NAME:
        raise ConfigError(
            f"{key} in {source} is {text[:40]!r}... of {len(text)} characters; allowed: up to {LONGEST_TEXT}, "
            f"{LONGEST_NAME} bytes between two slashes, and no NUL"
        )


def _check_nested(oskt: CfgNode) -> None:
    """Raises `ConfigError` for settings that a nested chain needs, or cannot have."""
    if oskt.refine.levels and not oskt.nested:
        raise ConfigError(
            f"oskt.refine.levels is {oskt.refine.levels}, and only a nested chain has students of further widths to "
            "train; set oskt.nested=True, or oskt.refine.levels=0"
        )
    if oskt.contributions and not oskt.nested:
        raise ConfigError(
            f"oskt.contributions is {oskt.contributions}, and only the clusters of a nested chain follow them; "
            "set oskt.nested=True, or oskt.contributions=0"
        )
    if oskt.nested and oskt.clustering != "ward":
        raise ConfigError(
            f"oskt.clustering is '{oskt.clustering}', and a nested chain needs Ward's tree; set it to ward, or "
            "oskt.nested=False"
        )
