"""The reference of the configuration in Markdown, from the table of its keys."""

from __future__ import annotations

from collections.abc import Mapping

from ..config.keys import Key
from ..config.tree import every_key

# ---- configuration ---------------------------------------------------------------------------------------------------


def configuration_reference() -> str:
    """Every key with its default, what it may be, what it shapes, and its meaning."""
    parts = [
        "# Configuration reference",
        "Every key with its default, made by `python tools/docs.py`. A YAML file, and the words of a command line,\n"
        "hold differences from these; torchreid's own keys have torchreid's meaning.",
        "The column *shapes* says what a run does when it is started again with another value: if a key shapes\n"
        "weights, everything that depends on it is trained again, and the earlier files are kept aside; if it shapes\n"
        "numbers, finished networks are evaluated again; other keys change nothing that exists.",
    ]
    for node, keys in _by_node(every_key()).items():
        parts += [f"## {node}"] if node else []
        parts += [_added(keys), _key_table(keys)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _by_node(keys: Mapping[str, Key]) -> dict[str, dict[str, Key]]:
    """The keys of every node of the tree, before them those that belong to none."""
    nodes: dict[str, dict[str, Key]] = {}
    for name, key in keys.items():
        node = name.partition(".")[0] if "." in name else ""
        nodes.setdefault(node, {})[name] = key
    return nodes


def _added(keys: Mapping[str, Key]) -> str:
    """Which of the keys torchreid does not have."""
    own = [f"`{name}`" for name, key in keys.items() if key.own]
    if not own:
        return ""
    return "Added by this package." if len(own) == len(keys) else f"Added by this package: {', '.join(own)}."


def _key_table(keys: Mapping[str, Key]) -> str:
    lines = ["| key | default | allowed | shapes | meaning |", "|---|---|---|---|---|"]
    for name, key in keys.items():
        allowed = key.allowed.in_words() if key.allowed else ""
        cells = (f"`{name}`", f"`{key.default!r}`", allowed, key.effect.value, key.meaning)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)
