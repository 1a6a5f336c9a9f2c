"""What a budget says, as a number: ``"1M"`` parameters, ``"4MB fp16"`` of file, ``"5ms"``."""

from __future__ import annotations

import math
import re

from ..errors import WidthError

_COUNT = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9}
_BYTES = {"": 1, "B": 1, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_MILLISECONDS = {"": 1, "us": 1e-3, "ms": 1, "s": 1e3}
UNITS = {"params": _COUNT, "flops": _COUNT, "size": _BYTES, "latency": _MILLISECONDS}
EXAMPLES = {"params": "1M", "flops": "200M", "size": "4MB", "latency": "5ms"}
HALF = "fp16"
_AMOUNT = re.compile(r"\s*([\d.]+(?:[eE][+-]?\d+)?)\s*([A-Za-z]*)\s*")


def parse_amount(way: str, budget: float | str) -> float:
    """A budget in parameters, multiply-adds, bytes or milliseconds.

    Args:
        way: ``params``, ``flops``, ``size`` or ``latency``.
        budget: a number, or a number with a unit: k, M, G for counts; kB, MB, GB (powers of 1000) or KiB, MiB, GiB for
            sizes, with ``fp16`` behind it for files in half precision; us, ms, s for latencies. Without a unit a
            latency is in milliseconds.

    Raises:
        WidthError: no such amount, or not above zero.
    """
    text = str(budget)
    if way == "size":
        text = text.removesuffix(HALF)
    match = _AMOUNT.fullmatch(text)
    unit = match and match[2]
    try:
        amount = float(match[1]) * UNITS[way][unit]
    except (KeyError, TypeError, ValueError):
        amount = math.nan
    if not 0 < amount < math.inf:
        units = ", ".join(unit for unit in UNITS[way] if unit)
        raise WidthError(
            f"{way}={budget!r} is no budget; give a number above zero, alone or with one of the units {units}, such as "
            f"{way}='{EXAMPLES[way]}'"
        )
    return amount


def in_half_precision(budget: float | str) -> bool:
    """Whether a size is that of a file in half precision."""
    return str(budget).endswith(HALF)


def show_amount(way: str, amount: float) -> str:
    """An amount with three digits and a unit: 2193616 parameters -> '2.19M'."""
    units = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9}
    if way == "latency":
        return f"{amount:.3g}ms" if amount < 999.5 else f"{amount / 1e3:.3g}s"
    unit = max((name for name, scale in units.items() if amount >= 0.9995 * scale), key=units.get, default="")
    digits = f"{amount / units[unit]:#.3g}".rstrip(".") if unit else f"{amount:.0f}"
    return f"{digits}{unit}{'B' if way == 'size' else ''}"


def show_ratio(ratio: float) -> str:
    """A width ratio with four digits, rounded up: typed in again it makes no group narrower. 1/3 -> '0.3334'."""
    return f"{math.ceil(1e4 * ratio - 1e-6) / 1e4:g}"
