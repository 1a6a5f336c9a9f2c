"""Reference pages in Markdown, from the defaults of the configuration and from docstrings."""

from __future__ import annotations

import ast
import inspect
import io
import re
import textwrap
import tokenize
from collections.abc import Iterator, Mapping
from functools import cached_property
from types import ModuleType
from typing import Any, NamedTuple

from ..config import defaults, own_nodes
from ..config.defaults import CHOICES, LISTS, RANGES, default_tree
from ..config.effects import effect_of

_SOURCES = (defaults, own_nodes)
_SECTIONS = ("Args", "Attributes", "Example", "Raises", "Returns", "Yields")
_WRAPPED = ("__func__", "fget", "func")  # what methods of classes and properties keep their function in
_ITEM = re.compile(r"^ {4}(\*{0,2}\w+): ")


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


class _Returned(NamedTuple):
    """A dictionary that a function returns, and the comments of its source, see ``_comment_lines``."""

    content: ast.Dict
    comments: dict[int, str]
    alone: set[int]


def _comments() -> dict[str, str]:
    """Comment of each dotted key: the one behind it, or those in the lines before it."""
    dictionaries: dict[str, _Returned] = {}
    for module in _SOURCES:
        source = inspect.getsource(module)
        beside, alone = _comment_lines(source)
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef):
                returned = [part.value for part in ast.walk(node) if isinstance(part, ast.Return)]
                for content in (part for part in returned if isinstance(part, ast.Dict)):
                    dictionaries[node.name] = _Returned(content, beside, alone)
    return dict(_keyed("default_tree", "", dictionaries))


def _comment_lines(source: str) -> tuple[dict[int, str], set[int]]:
    """Comments by line, and which of them have the line to themselves."""
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    comments = {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
    lines = source.splitlines()
    return comments, {number for number in comments if lines[number - 1].lstrip().startswith("#")}


def _keyed(function: str, prefix: str, dictionaries: Mapping[str, _Returned]) -> Iterator[tuple[str, str]]:
    if function in dictionaries:
        yield from _keys_of(dictionaries[function], prefix, dictionaries)


def _keys_of(returned: _Returned, prefix: str, dictionaries: Mapping[str, _Returned]) -> Iterator[tuple[str, str]]:
    for key, value in zip(returned.content.keys, returned.content.values, strict=True):
        called = value.func.id if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) else ""
        if key is None:
            yield from _keyed(called, prefix, dictionaries)
            continue
        name = f"{prefix}{ast.literal_eval(key)}"
        if isinstance(value, ast.Dict):
            yield from _keys_of(returned._replace(content=value), f"{name}.", dictionaries)
        yield from _keyed(called, f"{name}.", dictionaries)
        if comment := _comment_of(key.lineno, returned.comments, returned.alone):
            yield name, comment


def _comment_of(line: int, comments: Mapping[int, str], alone: set[int]) -> str:
    if line in comments and comments[line] != "added":
        return comments[line]
    before: list[str] = []
    while (line := line - 1) in alone and not comments[line].startswith("added"):
        before.insert(0, comments[line])
    return " ".join(before)


# ---- interface -------------------------------------------------------------------------------------------------------


def interface_reference(package: ModuleType) -> str:
    """Every public name of a package, and of its public parts, with its docstring."""
    parts = [
        "# API reference",
        f"The public names of `{package.__name__}`, made of their docstrings by `python tools/docs.py`.",
    ]
    modules = [package, *(part for name in package.__all__ if inspect.ismodule(part := getattr(package, name)))]
    for module in modules:
        parts.append(f"## {module.__name__}")
        parts.append(_text_of(module))
        for name in sorted(module.__all__, key=str.lower):
            thing = getattr(module, name)
            if not inspect.ismodule(thing):
                parts += _entry_of(name, thing)
    return "\n\n".join(part for part in parts if part) + "\n"


def _entry_of(name: str, thing: Any) -> list[str]:
    entry = [f"### {name}{_signature(thing)}", _text_of(thing)]
    if inspect.isclass(thing) and not issubclass(thing, Exception):
        for own, member in vars(thing).items():
            function = next((getattr(member, key) for key in _WRAPPED if getattr(member, key, None)), member)
            if not own.startswith("_") and inspect.isfunction(function) and function.__doc__:
                call = "" if isinstance(member, (property, cached_property)) else _signature(function)
                entry += [f"#### {name}.{own}{call}", _text_of(function)]
    return entry


def _signature(thing: Any) -> str:
    """Names of the arguments and their defaults."""
    is_error = inspect.isclass(thing) and issubclass(thing, Exception)
    if is_error or not (inspect.isclass(thing) or inspect.isroutine(thing)):
        return ""
    signature = inspect.signature(thing)
    plain = [p.replace(annotation=p.empty) for name, p in signature.parameters.items() if name not in ("self", "cls")]
    return re.sub(r"<.*? at 0x\w+>", "...", str(inspect.Signature(plain)))


def _text_of(thing: Any) -> str:
    """A docstring with its sections as lists."""
    if not (inspect.ismodule(thing) or inspect.isclass(thing) or inspect.isroutine(thing)):
        return ""
    lines = inspect.cleandoc(thing.__doc__ or "").splitlines()
    text: list[str] = []
    section = ""
    for line in lines:
        if line.removesuffix(":") in _SECTIONS and line.endswith(":"):
            section = line.removesuffix(":")
            text += ["", f"*{section}*", ""]
        elif section and line and not line.startswith(" "):
            section = ""
            text.append(line)
        elif section and (item := _ITEM.match(line)):
            text.append(f"* `{item.group(1)}`: {line[item.end() :]}")
        elif section and line.startswith(" "):
            text.append(("  " if text[-1].startswith(("*", "  ")) and text[-1][-1] != "*" else "") + line.strip())
        else:
            text.append(line)
    return re.sub(r"\n{3,}", "\n\n", textwrap.dedent("\n".join(text)).strip())
