"""Configuration in, results out: teacher, chain, students and controls, each stage kept in files and made only once."""

from .dry_run import rehearse
from .run import run
from .untrained import untrained_table

__all__ = ["rehearse", "run", "untrained_table"]
