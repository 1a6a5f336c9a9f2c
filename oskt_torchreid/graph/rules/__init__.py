"""What each operator does to channels, by families of operators; see `calls.py` for how to add one."""

from . import attention, elementwise, layers, movement, norms, products, reductions  # noqa: F401  they register their rules
