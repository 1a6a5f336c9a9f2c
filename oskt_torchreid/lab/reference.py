"""Reference pages in Markdown, from the table of the configuration's keys and from docstrings."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Mapping
from functools import cached_property
from types import ModuleType
from typing import Any

from ..config.keys import Key
from ..config.tree import every_key

_SECTIONS = ("Args", "Attributes", "Example", "Raises", "Returns", "Yields")
_WRAPPED = ("__func__", "fget", "func")  # what methods of classes and properties keep their function in
_ITEM = re.compile(r"^ {4}(\*{0,2}\w+): ")


# ---- configuration ---------------------------------------------------------------------------------------------------


def configuration_reference() -> str:
    """Every key with its default, what it may be, what it shapes, and its meaning."""
    parts = [
        "# Configuration reference",
        "Every key with its default, made by `python tools/docs.py`. A YAML file, and the words of a command line,\n"
        "hold differences from these; torchreid's own keys have torchreid's meaning.",
        "What a key *shapes* says what a run does that is started again with another value: where it shapes weights,\n"
        "what follows from it is trained anew, and what was there is kept aside; where it shapes numbers, finished\n"
        "networks are evaluated again; all else changes nothing that is there.",
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
