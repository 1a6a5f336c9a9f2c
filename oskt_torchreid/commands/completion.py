"""Prints a script that completes the commands and options of `oskt`.

oskt completion bash > ~/.local/share/bash-completion/completions/oskt
oskt completion zsh > "${fpath[1]}/_oskt"
"""

import argparse
import importlib
from collections.abc import Sequence

import shtab

from ..cli import parser_of, say
from .page import COMMANDS


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = parser_of("completion", __doc__)
    parser.add_argument("shell", choices=shtab.SUPPORTED_SHELLS, help="whose script it is")
    return parser


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The words of a command line."""
    return make_parser().parse_args(arguments)


def every_command() -> argparse.ArgumentParser:
    """All commands in one parser."""
    parser = argparse.ArgumentParser(prog="oskt")
    commands = parser.add_subparsers()
    for name, help in COMMANDS.items():
        of_command = importlib.import_module(f"{__package__}.{name}").make_parser()
        commands.add_parser(name, help=help, parents=[of_command], add_help=False)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the script; returns the exit status."""
    parsed = parse_arguments(arguments)
    say(shtab.complete(every_command(), parsed.shell))
    return 0
