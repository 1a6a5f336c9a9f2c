"""The embedded demonstration: synthetic people are drawn, a teacher is trained, a chain is refined, students are made.

oskt demo
oskt demo --fast                       in a minute, to see that everything works; its numbers mean nothing
oskt demo data.save_dir=log/mine       options as of `oskt run`
"""

import argparse
from collections.abc import Sequence

from ..cli import parser_of
from . import run

CONFIG = "oskt_osnet"
FAST = (
    "data.save_dir=log/oskt_demo_fast",
    "synthped.num_train=12",
    "synthped.num_test=24",
    "data.height=48",
    "data.width=24",
    "train.max_epoch=2",
    "train.half_resolution_epochs=0",
    "oskt.refine.max_epoch=1",
    "oskt.refine.half_resolution_epochs=0",
    "oskt.students=['width=0.5','width=0.75']",
    "oskt.controls=[]",
    "train.print_freq=4",
    "oskt.processes=1",
)
"""Differences of `--fast`."""


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = parser_of("demo", __doc__)
    parser.add_argument("--fast", action="store_true", help="tiny data, an epoch or two of everything")
    parser.add_argument("options", nargs="*", help="KEY VALUE or KEY=VALUE, as in the YAML")
    return parser


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The words of a command line."""
    return make_parser().parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs it; returns the exit status."""
    parsed = parse_arguments(arguments)
    return run.main([CONFIG, *(FAST if parsed.fast else ()), *parsed.options])
