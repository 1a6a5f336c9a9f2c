"""A run as a case: whatever it is given, it succeeds or ends in a typed error, and soon."""

from __future__ import annotations

import multiprocessing
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from small_networks import TinyNet

import oskt_torchreid as oskt
from oskt_torchreid.errors import OsktError
from oskt_torchreid.host.models import model_names

from .files import Hang, timed

FINE = "fine"
NETWORK = "fuzzed_net"


@dataclass(frozen=True)
class Case:
    """What became of one case.

    Attributes:
        number: with the seed it gives the same case again.
        what: was done, in words.
        outcome: name of a typed error, or `fine`.
        failure: what must not happen, in words; empty if it did not.
    """

    number: int
    what: str
    outcome: str
    failure: str = ""


def ready() -> None:
    """Registers the network of all cases, where it is not."""
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # for loaders' workers, wherever this process comes from
    warnings.filterwarnings("ignore")
    if NETWORK not in model_names():
        oskt.register_backbone(NETWORK, TinyNet, input_size=(3, 32, 16))


def outcome_of(work: Callable[[], object]) -> tuple[str, str]:
    """Name of the typed error that work ends in, or that it is fine; and what went wrong."""
    try:
        with timed():
            work()
    except OsktError as error:
        text = str(error)
        wrong = "" if text and "Traceback" not in text else f"a message of no use: {text[:200]!r}"
        return type(error).__name__, wrong
    except (Exception, Hang, SystemExit) as error:  # whatever it is, it is what is looked for here
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}:{place.lineno}"
        return type(error).__name__, f"{type(error).__name__} at {where}: {str(error)[:300]}"
    return FINE, ""
