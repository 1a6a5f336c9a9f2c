"""Data sets that this package brings along."""

from .. import needs_torchreid  # noqa: F401  so that everything is registered first, in an order that works
