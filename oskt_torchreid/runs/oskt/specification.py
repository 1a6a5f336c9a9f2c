"""Students as a configuration requests them, and latency budgets that keep their widths across calls."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ...baselines import baseline
from ...chain.budgets import EXAMPLES, HALF, UNITS, parse_amount
from ...config import Config, digest, get, read_yaml
from ...deploy import Latency, measure_latency
from ...errors import ConfigError, WidthError
from ...files import read_json, write_json
from ...graph.plans import PRESETS
from ...host.models import builder_of
from ...registry import nearest

WAYS = ("width", *UNITS, "like")
CHOSEN_NAME = "chosen_widths.json"
FILE = "file"

Arguments = dict[str, Any]


@dataclass(frozen=True)
class StudentSpec:
    """One network as a configuration requests it: `width=0.5`, `slice:params=1M`, `file=PATH`.

    Attributes:
        method: the baseline that makes it; empty for a student of the chain, `file` for one of an earlier run.
        way: `width`, `params`, `flops`, `size`, `latency`, `like` or `file`.
        value: the rest, as written.
        text: the whole entry; also the network's name.
    """

    method: str
    way: str
    value: str
    text: str

    @classmethod
    def parse(cls, text: str) -> StudentSpec:
        """Splits a text; `arguments` checks its way and value.

        Raises:
            ConfigError: an unknown baseline.
        """
        way, _, value = text.partition("=")
        if way == FILE:
            return cls(FILE, way, value, text)
        method, colon, asked = text.partition(":")
        if colon:
            baseline(method)
        else:
            method, asked = "", text
        way, _, value = asked.partition("=")
        return cls(method, way, value, text)

    @property
    def is_file(self) -> bool:
        """Whether it is a student of an earlier run."""
        return self.method == FILE

    @property
    def of_chain(self) -> bool:
        """Whether it is expanded from a chain."""
        return not self.method

    @property
    def of_baseline(self) -> bool:
        """Whether it is made by a baseline."""
        return not (self.of_chain or self.is_file)

    @property
    def distils(self) -> bool:
        """Whether it is trained with its teacher."""
        return self.of_baseline and baseline(self.method).distils

    @property
    def is_half(self) -> bool:
        """Whether its file is one of half precision: `size=4MB fp16`."""
        return self.value.endswith(HALF)

    @property
    def folder(self) -> str:
        """Name of its folder."""
        return self.text if self.of_chain else self.text.replace("/", "-").replace(":", "-")

    def arguments(self, key: str = "oskt.students") -> Arguments:
        """Arguments of `expand`: `{"width": 0.5}`, `{"params": "1M"}`, `{"like": "osnet_x0_5"}`.

        A width is a ratio, a preset, or a YAML file of widths per group name or pattern.

        Args:
            key: its key in the configuration, for messages.

        Raises:
            ConfigError: an unknown way, value or model, or a file that cannot be read.
        """
        way, value, text = self.way, self.value, self.text
        if way not in WAYS or not value:
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


def students_of(config: Config) -> list[StudentSpec]:
    """The students that a run of OSKT makes."""
    return [StudentSpec.parse(text) for text in config.oskt.students]


def asks_for_latency(texts: Iterable[object]) -> str:
    """The first student or rung with a latency budget; empty if there is none."""
    named = (str(text) for text in texts)
    return next((text for text in named if StudentSpec.parse(text).way == "latency"), "")


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


def latency_measure(config: Config) -> partial[Latency]:
    """The measuring function that `oskt.latency` describes."""
    node = config.oskt.latency
    settings = {"batch": node.batch, "device": node.device, "backend": node.backend}
    return partial(measure_latency, threads=node.threads or None, **settings)


def chosen_widths(config: Config) -> dict[str, dict[str, int]]:
    """Widths that an earlier call with this configuration measured, per student; a second measurement would differ."""
    path = Path(config.data.save_dir) / CHOSEN_NAME
    content = read_json(path) if path.is_file() else {}
    return content["students"] if content.get("digest") == _digest(config) else {}


def keep_chosen_widths(config: Config, widths: dict[str, dict[str, int]]) -> None:
    """Writes the widths of students with a latency budget next to the run's results, if there are any."""
    students = {name: plan for name, plan in widths.items() if asks_for_latency([name])}
    if students:
        content = {"digest": _digest(config), "students": students}
        write_json(Path(config.data.save_dir) / CHOSEN_NAME, content)


def _digest(config: Config) -> str:
    oskt = [get(config, f"oskt.{key}") for key in ("width", "ladder", "chain", "latency")]
    return digest("latency", config.model, config.data.height, config.data.width, *oskt)
