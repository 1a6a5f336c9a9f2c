"""What an earlier part of a comparison found, for one that goes on with other seeds, another day or elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...config import Config
from ...errors import ConfigError
from ...files import read_json
from ...report.results import Row, read_versioned
from ..measurements import CHAIN_METHOD, Measurement
from .parts import TEACHER, Rates
from .tuning import scenarios

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Earlier:
    """An earlier part; an empty one stands for none.

    Attributes:
        rates: chosen on held-out identities; empty: none were.
        refinements: facts of every chain's refinement.
        measurements: everything that was measured.
    """

    rates: Rates
    refinements: Sequence[Mapping[str, Any]] = ()
    measurements: Sequence[Measurement] = ()


def read_earlier(config: Config) -> Earlier:
    """The part that `comparison.continues` names: a comparison.json, or the rates.json of one that only chose rates.

    Raises:
        ConfigError: it is no such file; it lacks a rate that this comparison needs; or it has seeds of this one.
    """
    path = config.comparison.continues
    if not path:
        return Earlier({})
    content = read_json(path)
    if isinstance(content, dict) and "chosen" in content:
        earlier = Earlier(content["chosen"])
    else:
        earlier = read_versioned(path, FORMAT_VERSION, _build, "a comparison")
    _check_rates(config, earlier.rates)
    node = config.comparison
    wanted = {(data_seed, seed) for data_seed in node.data_seeds for seed in node.seeds}
    if twice := sorted(wanted & {(m.data_seed, m.seed) for m in earlier.measurements}):
        raise ConfigError(
            f"'{path}' of comparison.continues has measurements of the data and training seeds {twice} already; name "
            "others in comparison.data_seeds and comparison.seeds"
        )
    return earlier


def _build(content: Mapping[str, Any]) -> Earlier:
    measurements = [Measurement(**{**entry, "row": Row(**entry["row"])}) for entry in content["measurements"]]
    return Earlier(content["rates"], content["refinements"], measurements)


def _check_rates(config: Config, rates: Rates) -> None:
    needed = {"teacher": [TEACHER], "refine": [CHAIN_METHOD]}
    needed |= {name: methods for name, (methods, _) in scenarios(config).items()}
    for scenario, methods in needed.items():
        if missing := [method for method in methods if method not in rates.get(scenario, ())]:
            raise ConfigError(
                f"'{config.comparison.continues}' of comparison.continues has no learning rate of {missing} for "
                f"'{scenario}'; leave these methods out, or leave comparison.continues empty to choose rates anew"
            )
