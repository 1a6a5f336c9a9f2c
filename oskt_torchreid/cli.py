"""What the command lines of `tools/` have in common: kinds of values, and the option that names user code."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any


def positive(text: str) -> int:
    """A whole number of 1 or more, as a `type` of argparse.

    Raises:
        ArgumentTypeError: a smaller number; argparse prints it with the argument's name.
        ValueError: not a whole number; argparse reports it.
    """
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not 1 or more")
    return value


def parse_with_imports(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None, intermixed: bool = False
) -> argparse.Namespace:
    """The command line of a tool; `--import`, which may stand anywhere, also behind a command, is its `imports`.

    Args:
        parser: of the tool; it is given the option, for its help.
        arguments: words; `None`: those of this process.
        intermixed: whether options may stand between the words of a list.
    """
    how: dict[str, Any] = {"dest": "imports", "action": "append", "metavar": "CODE", "default": []}
    parser.add_argument("--import", help="file (mine.py) or module with own networks, data sets, methods", **how)
    taking = argparse.ArgumentParser(prog=parser.prog, usage=argparse.SUPPRESS, add_help=False, allow_abbrev=False)
    taking.add_argument("--import", **how)
    taken, others = taking.parse_known_args(arguments)
    parsed = parser.parse_intermixed_args(others) if intermixed else parser.parse_args(others)
    parsed.imports = taken.imports
    return parsed
