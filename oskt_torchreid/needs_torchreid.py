"""Importing this module integrates, see `on_demand`: the first line of every part that needs torchreid."""

from .on_demand import integrate

integrate()
