"""Kinds of values on the command lines of `tools/`."""

from __future__ import annotations

import argparse


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
