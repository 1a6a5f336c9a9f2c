"""Where the package defines a name that its modules use, read from the source: aliases of types know no module."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec, resolve_name
from itertools import zip_longest
from pathlib import Path


@dataclass(frozen=True)
class Definition:
    """One name.

    Attributes:
        module: that defines it.
        name: in that module.
        source: the assignment, of a name that is assigned; empty for classes and functions.
        meaning: the text below the assignment, or empty.
    """

    module: str
    name: str
    source: str = ""
    meaning: str = ""


@cache
def definition_of(name: str, module: str) -> Definition | None:
    """The definition of a name as a module of the package sees it; `None` for names of other packages."""
    path, is_package = _file_of(module)
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    for node, following in zip_longest(tree.body, tree.body[1:]):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == name:
            return Definition(module, name)
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and name in _targets(node):
            return Definition(module, name, ast.get_source_segment(text, node) or "", _text(following))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            package = module if is_package else module.rpartition(".")[0]
            source = resolve_name("." * node.level + (node.module or ""), package)
            for alias in node.names:
                if name == (alias.asname or alias.name):
                    return definition_of(alias.name, source)
    return None


def _file_of(module: str) -> tuple[Path, bool]:
    """A module's file, and whether it is that of a package."""
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{module} has no source")
    return Path(spec.origin), spec.submodule_search_locations is not None


def _targets(node: ast.Assign | ast.AnnAssign) -> Iterator[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return (target.id for target in targets if isinstance(target, ast.Name))


def _text(node: ast.stmt | None) -> str:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return node.value.value
    return ""
