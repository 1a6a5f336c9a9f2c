"""A dry run: everything that a configuration asks for is built on stand-in data; nothing is trained but one step."""

from .run import run_dry

__all__ = ["run_dry"]
