"""What the commands of `oskt` have in common: how they print and fail, kinds of values, the option of user code."""

from __future__ import annotations

import argparse
import itertools
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from .errors import OsktError
from .user_code import import_user_code


def parser_of(command: str, description: str | None) -> argparse.ArgumentParser:
    """An empty parser of `oskt COMMAND`, whose help shows a description as it is written."""
    layout = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(prog=f"oskt {command}", description=description, formatter_class=layout)


def say(text: object, end: str = "\n") -> None:
    """Writes a command's result to standard output, where it is seen at once."""
    sys.stdout.write(f"{text}{end}")
    sys.stdout.flush()


def carried_out(action: Callable[[], object]) -> int:
    """Does what a command was asked for; the exit status: 0, or 2 after one line about what the user can mend."""
    try:
        action()
    except OsktError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


def subcommand(parsed: argparse.Namespace) -> int:
    """Imports user code and does what `parsed.run` is, a function of the command line; the exit status."""

    def action() -> None:
        import_user_code(parsed.imports)
        parsed.run(parsed)

    return carried_out(action)


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
    for before, word in itertools.pairwise(["", *others]):
        if word == "" or re.fullmatch(r"--[\w-]+=", word):
            parser.error(
                f"{word or before or 'a word'} has an empty value; is a variable of the shell not set? (KEY= empties a "
                "key of the configuration)"
            )
    parsed = parser.parse_intermixed_args(others) if intermixed else parser.parse_args(others)
    parsed.imports = taken.imports
    return parsed
