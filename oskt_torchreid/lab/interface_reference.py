"""The reference of the public interface in Markdown, from signatures and docstrings."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib import import_module
from types import ModuleType
from typing import Any, ForwardRef

from .definitions import Definition, definition_of

PUBLIC_PARTS = [
    "chain",
    "graph",
    "deploy",
    "errors",
    "registry",
    "models",
    "baselines",
    "vkd",
    "host.engine",
    "host.losses",
    "host.ranking",
    "zoo",
]
"""Modules whose public names belong to the package, besides its top-level names."""

_SECTIONS = ("Args", "Attributes", "Example", "Raises", "Returns", "Yields")
_WRAPPED = ("__func__", "fget", "func")  # attributes in which methods of classes and properties keep their function
_ITEM = re.compile(r"^ {4}(\*{0,2}\w+): ")
_OWN_MODULES = re.compile(rf"\b{__package__.partition('.')[0]}\.([a-z_]+\.)+")
_LONGEST_LINE = 100


def interface_reference(package: ModuleType) -> str:
    """Every public name of a package and of `PUBLIC_PARTS`, with its signature and its docstring.

    A name that several modules have is described in the first, and the others link to it. Types in signatures that no
    public module has are described at the end.
    """
    described: dict[Definition, list[str]] = {}
    parts = [
        "# API reference",
        f"The public names of `{package.__name__}`, made of their docstrings by `python tools/docs.py`.",
    ]
    for module in [package, *(import_module(f"{package.__name__}.{name}") for name in PUBLIC_PARTS)]:
        names = [name for name in _public_names(module) if not inspect.ismodule(getattr(module, name))]
        found = {name: _defined(name, module.__name__) for name in sorted(names, key=str.lower)}
        known = [f"[`{name}`](#{_anchor(name)})" for name, definition in found.items() if definition in described]
        parts += [f"## {module.__name__}", _text_of(module), f"Described above: {', '.join(known)}." if known else ""]
        for name, definition in found.items():
            if definition not in described:
                described[definition] = _entry_of(name, getattr(module, name), definition)
                parts += described[definition]
    parts += ["## Other types in signatures", *_other_types(described)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _other_types(described: Mapping[Definition, list[str]]) -> list[str]:
    """Entries of the package's types that other entries name, and of those that these name in turn, without methods."""
    entries, waiting = dict(described), list(described)
    while waiting:
        definition = waiting.pop()
        for name in _types_in(entries[definition]):
            other = definition_of(name, definition.module)
            if other is not None and other not in entries:
                thing = getattr(import_module(other.module), other.name)
                heading, *text = _entry_of(other.name, thing, other, getattr(thing, "_is_protocol", False))
                entries[other] = [heading, f"Defined in `{other.module}`.", *text]
                waiting.append(other)
    added = sorted((entries.keys() - described.keys()), key=lambda each: (each.name.lower(), each.module))
    return [text for definition in added for text in entries[definition]]


def _types_in(entry: Sequence[str]) -> set[str]:
    """Names in its blocks of code and in the types of its properties that may be those of types."""
    typed = [text for text in entry if text.startswith("```")]
    typed += [text.partition(": ")[2] for text in entry if text.startswith("####")]
    return set(re.findall(r"(?<![.\w'])[A-Z]\w+", " ".join(typed)))


def _defined(name: str, module: str) -> Definition:
    return definition_of(name, module) or Definition(module, name)


def _anchor(heading: str) -> str:
    """Of a heading of one word, as GitHub makes it."""
    return heading.lower()


def _public_names(module: ModuleType) -> list[str]:
    """What a module lists, else the functions and classes that it defines itself."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    defined = (name for name, thing in vars(module).items() if getattr(thing, "__module__", "") == module.__name__)
    return [name for name in defined if not name.startswith("_") and callable(getattr(module, name))]


def _entry_of(name: str, thing: Any, definition: Definition, methods: bool = True) -> list[str]:
    if definition.source:
        return [f"### {name}", f"```python\n{definition.source}\n```", definition.meaning]
    entry = [f"### {name}", _signature(name, thing), _text_of(thing)]
    if methods and inspect.isclass(thing) and not issubclass(thing, BaseException):
        for own, member in vars(thing).items():
            function = next((getattr(member, key) for key in _WRAPPED if getattr(member, key, None)), member)
            if not own.startswith("_") and inspect.isfunction(function) and function.__doc__:
                is_value = isinstance(member, (property, cached_property))
                call = f": {_annotation(function, 'return')}" if is_value else ""
                entry += [f"#### {name}.{own}{call}", "" if is_value else _signature(own, function), _text_of(function)]
    return entry


class _Annotation:
    """An annotation that `inspect.Signature` shows as it is written in the source."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


def _annotation(function: Any, name: str) -> str:
    return _written(inspect.get_annotations(function).get(name, ""))


def _signature(name: str, thing: Any) -> str:
    """A call with names, types and defaults of the arguments, as a block of code; where it is long, a line for each."""
    is_error = inspect.isclass(thing) and issubclass(thing, BaseException)
    if is_error or getattr(thing, "_is_protocol", False) or not (inspect.isclass(thing) or inspect.isroutine(thing)):
        return ""
    signature = inspect.signature(thing)
    typed = [
        p if p.annotation is p.empty else p.replace(annotation=_Annotation(_written(p.annotation)))
        for p in signature.parameters.values()
        if p.name not in ("self", "cls")
    ]
    result = "" if inspect.isclass(thing) else _written(signature.return_annotation)
    end = f" -> {result}" if result else ""
    text = f"{name}{inspect.Signature(typed)}{end}"
    if len(text) > _LONGEST_LINE:
        lines = _one_per_line(typed)
        text = f"{name}(\n{lines}\n){end}"
    return "```python\n" + re.sub(r"<.*? at 0x\w+>", "...", text) + "\n```"


def _one_per_line(parameters: Sequence[inspect.Parameter]) -> str:
    lines = [str(parameter) for parameter in parameters]
    keywords = [number for number, parameter in enumerate(parameters) if parameter.kind is parameter.KEYWORD_ONLY]
    if keywords and not any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        lines.insert(keywords[0], "*")
    return "\n".join(f"    {line}," for line in lines)


def _written(annotation: Any) -> str:
    if annotation is inspect.Signature.empty:
        return ""
    if isinstance(annotation, ForwardRef):
        return annotation.__forward_arg__
    if isinstance(annotation, str):
        return annotation
    return _OWN_MODULES.sub("", inspect.formatannotation(annotation))


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
