"""Students as a configuration asks for them, and latency budgets that keep their widths from one call to the next."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

from ...baselines import baseline
from ...chain.amounts import EXAMPLES, UNITS, parse_amount
from ...chain.widths import PRESETS
from ...config import digest, get, read_yaml
from ...deploy import measure_latency
from ...errors import ConfigError, WidthError
from ...files import read_json, write_json
from ...host.models import builder_of
from ...registry import nearest

WAYS = ("width", *UNITS, "like")
CHOSEN_NAME = "latency.json"
FILE_METHOD = "file"

Wish = dict[str, Any]


def method_of(name: str) -> str:
    """The baseline in ``slice:width=0.5``, ``file`` for ``file=PATH``; empty for ``width=0.5``, a student of the chain.

    Raises:
        ConfigError: an unknown baseline.
    """
    if name.startswith(f"{FILE_METHOD}="):
        return FILE_METHOD
    method, colon, _ = name.partition(":")
    if colon:
        baseline(method)
    return method if colon else ""


def parse_wish(text: str, key: str = "oskt.students") -> Wish:
    """``way=value`` as arguments of ``expand``: ``{"width": 0.5}``, ``{"params": "1M"}``, ``{"like": "osnet_x0_5"}``.

    A width is a ratio, a preset, or a YAML file of widths per group name or pattern.

    Args:
        text: what the configuration says.
        key: where it says so, for messages.

    Raises:
        ConfigError: an unknown way, value or model, or a file that cannot be read.
    """
    way, equals, value = text.partition("=")
    if not equals or way not in WAYS or not value:
        examples = ", ".join(f"{name}={example}" for name, example in EXAMPLES.items())
        raise ConfigError(f"{key} has '{text}'{nearest(way, WAYS)}; write width=0.5, {examples} or like=osnet_x0_5")
    if way == "like":
        builder_of(value)
    elif way == "width":
        return {way: _width(text, value, key)}
    else:
        try:
            parse_amount(way, value)
        except WidthError as error:
            raise ConfigError(f"{key} has '{text}': {error}") from error
    return {way: value}


def _width(text: str, value: str, key: str) -> float | str | dict[str, float]:
    if re.fullmatch(r"\d*\.?\d+", value):
        return float(value)
    if value in PRESETS:
        return value
    if not value.endswith((".yaml", ".yml")):
        raise ConfigError(
            f"{key} has '{text}'{nearest(value, PRESETS)}; the width is a ratio of the teacher's, such as width=0.5, a "
            "preset such as width=res50-s1, or a YAML file of widths per channel group"
        )
    return read_widths(value)


def read_widths(path: str | Path) -> dict[str, float]:
    """Widths per channel group name or pattern, from a YAML mapping.

    Raises:
        ConfigError: missing, malformed, or not a mapping.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"no file of widths at '{path}' (looked in '{path.parent.absolute()}')")
    content = read_yaml(path)
    if not isinstance(content, dict) or not content:
        raise ConfigError(f"'{path}' holds no mapping; write a line 'group: width' per channel group or pattern")
    return {str(name): width for name, width in content.items()}


# ---- latency -----------------------------------------------------------------------------------------------------


def latency_measure(config: Any) -> Any:
    """The measuring function that ``oskt.latency`` describes."""
    node = config.oskt.latency
    settings = {"batch": node.batch, "device": node.device, "backend": node.backend}
    return partial(measure_latency, threads=node.threads or None, **settings)


def chosen_widths(config: Any) -> dict[str, dict[str, int]]:
    """Widths that an earlier call with this configuration measured, per student; a second measurement would differ."""
    path = Path(config.data.save_dir) / CHOSEN_NAME
    content = read_json(path) if path.is_file() else {}
    return content["students"] if content.get("digest") == _digest(config) else {}


def keep_chosen_widths(config: Any, widths: dict[str, dict[str, int]]) -> None:
    """Writes the widths of the students with a latency budget beside the run's results, if there are any."""
    students = {name: plan for name, plan in widths.items() if name.rpartition(":")[2].startswith("latency=")}
    if students:
        content = {"digest": _digest(config), "students": students}
        write_json(Path(config.data.save_dir) / CHOSEN_NAME, content)


def _digest(config: Any) -> str:
    oskt = [get(config, f"oskt.{key}") for key in ("width", "ladder", "chain", "latency")]
    return digest("latency", config.model, config.data.height, config.data.width, *oskt)
