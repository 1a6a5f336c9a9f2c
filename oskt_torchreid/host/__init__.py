"""The interface to torchreid: nothing outside this folder imports it."""

from .. import needs_torchreid  # noqa: F401  so that everything is registered first, in an order that works
