"""The reference of the configuration in Markdown, from its defaults."""

from __future__ import annotations

import ast
import inspect
import io
import tokenize
from collections.abc import Iterator, Mapping
from typing import Any

from ..config import defaults, own_nodes
from ..config.defaults import CHOICES, LISTS, RANGES, default_tree
from ..config.effects import effect_of

_SOURCES = (defaults, own_nodes)


# ---- configuration ---------------------------------------------------------------------------------------------------


def configuration_reference() -> str:
    """Every key with its default, what it may be, and the comment that stands beside it in the defaults."""
    comments = _comments()
    parts = [
        "# Configuration reference",
        "Every key with its default, made by `python tools/docs.py`. A YAML file, and the words of a command line,\n"
        "hold differences from these; torchreid's own keys have torchreid's meaning.",
        "What a key *shapes* says what a run does that is started again with another value: where it shapes weights,\n"
        "what follows from it is trained anew, and what was there is kept aside; where it shapes numbers, finished\n"
        "networks are evaluated again; all else changes nothing that is there.",
    ]
    tree = default_tree()
    flat = {key: value for key, value in tree.items() if not isinstance(value, Mapping)}
    parts.append(_key_table("", flat, comments))
    for node, content in tree.items():
        if isinstance(content, Mapping):
            parts += [f"## {node}", _key_table(f"{node}.", dict(_flattened(content)), comments)]
    return "\n\n".join(parts) + "\n"


def _key_table(prefix: str, values: Mapping[str, Any], comments: Mapping[str, str]) -> str:
    lines = ["| key | default | allowed | shapes | meaning |", "|---|---|---|---|---|"]
    for name, value in values.items():
        key = prefix + name
        cells = (f"`{key}`", f"`{value!r}`", _allowed(key), effect_of(key).value, comments.get(key, ""))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def _allowed(key: str) -> str:
    if key in LISTS:
        fewest, most, lowest, highest = LISTS[key]
        entries = f"{fewest}" if fewest == most else f"{fewest} or more"
        return entries + (f", each {_range(lowest, highest)}" if lowest != highest else "")
    if key in CHOICES:
        return ", ".join(f"`{choice}`" for choice in CHOICES[key])
    if key not in RANGES:
        return ""
    return _range(*RANGES[key])


def _range(lowest: float, highest: float) -> str:
    return f"from {lowest:g}" if highest == float("inf") else f"{lowest:g} to {highest:g}"


def _flattened(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _flattened(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _comments() -> dict[str, str]:
    """Comment of each dotted key: the one behind it, or those in the lines before it."""
    dictionaries: dict[str, tuple[ast.Dict, dict[int, str], set[int]]] = {}
    for module in _SOURCES:
        source = inspect.getsource(module)
        beside, alone = _comment_lines(source)
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef):
                returned = [part.value for part in ast.walk(node) if isinstance(part, ast.Return)]
                for content in (part for part in returned if isinstance(part, ast.Dict)):
                    dictionaries[node.name] = (content, beside, alone)
    return dict(_keyed("default_tree", "", dictionaries))


def _comment_lines(source: str) -> tuple[dict[int, str], set[int]]:
    """Comments by line, and which of them have the line to themselves."""
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    comments = {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
    lines = source.splitlines()
    return comments, {number for number in comments if lines[number - 1].lstrip().startswith("#")}


def _keyed(function: str, prefix: str, dictionaries: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if function in dictionaries:
        yield from _keys_of(*dictionaries[function], prefix, dictionaries)


def _keys_of(
    node: ast.Dict, comments: dict[int, str], alone: set[int], prefix: str, dictionaries: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    for key, value in zip(node.keys, node.values, strict=True):
        called = value.func.id if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) else ""
        if key is None:
            yield from _keyed(called, prefix, dictionaries)
            continue
        name = f"{prefix}{key.value}"
        if isinstance(value, ast.Dict):
            yield from _keys_of(value, comments, alone, f"{name}.", dictionaries)
        yield from _keyed(called, f"{name}.", dictionaries)
        if comment := _comment_of(key.lineno, comments, alone):
            yield name, comment


def _comment_of(line: int, comments: Mapping[int, str], alone: set[int]) -> str:
    if line in comments and comments[line] != "added":
        return comments[line]
    before: list[str] = []
    while (line := line - 1) in alone and not comments[line].startswith("added"):
        before.insert(0, comments[line])
    return " ".join(before)
