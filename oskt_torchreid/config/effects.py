"""The effect of a changed key: networks are trained again, evaluated again, or neither.

A run uses this when it is started again. If a key that shapes weights has another value, everything that depends on it
is trained again; if one that shapes numbers has, finished networks are evaluated again; other keys change nothing that
is there.
"""

from __future__ import annotations

from collections.abc import Iterable

from .allowed import Value
from .keys import Effect, Tree
from .tree import every_key, leaves


def settings(config: Tree, nodes: Iterable[str], effect: Effect) -> dict[str, Value]:
    """The keys of some nodes that have an effect, and their values.

    Keys of methods that are registered in another process alone are left out: this one cannot use them.

    Args:
        config: whole tree.
        nodes: dotted names of nodes or of single keys.
        effect: that is asked for.
    """
    rows, chosen = every_key(), tuple(nodes)
    return {
        key: value
        for key, value in leaves(config).items()
        if key in rows
        and rows[key].effect is effect
        and any(key == node or key.startswith(f"{node}.") for node in chosen)
    }
