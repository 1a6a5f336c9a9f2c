"""What each operator does to channels, by families of operators; see `calls.py` for how another one is added."""

from . import attention, elementwise, layers, movement, norms  # noqa: F401  they register their rules
