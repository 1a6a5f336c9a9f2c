"""The layer list: imports point downward only, and each part keeps to what it may know."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "oskt_torchreid"
ROOT = Path(__file__).resolve().parents[1] / PACKAGE
LAYERS = {
    "arguments": 0,
    "errors": 0,
    "file_checks": 0,
    "files": 0,
    "registry": 1,
    "config": 1,
    "graph": 2,
    "host": 2,
    "models": 3,
    "data": 3,
    "oskt": 3,
    "vkd": 3,
    "baselines": 3,
    "zoo": 3,
    "deploy": 3,
    "report": 3,
    "pipeline": 4,
    "__init__": 4,
}
STRANGERS = [("graph", "host"), ("oskt", "vkd")]
FILES = sorted(ROOT.rglob("*.py"))


def part_of(path: Path) -> str:
    """Name of the part of the package (a key of LAYERS) that a file belongs to."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def absolute_name(path: Path, node: ast.ImportFrom) -> str:
    """Dotted module name of a `from ... import`, with leading dots resolved against the file's package."""
    if node.level == 0:
        return node.module or ""
    package = (PACKAGE, *path.relative_to(ROOT).parent.parts)
    base = package[: len(package) - node.level + 1]
    return ".".join((*base, node.module)) if node.module else ".".join(base)


def imports_of(path: Path) -> Iterator[str]:
    """Dotted names that a file imports anywhere, functions included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = absolute_name(path, node)
            # `from .. import graph` names a part where `from ..graph import trace` names a module's content.
            yield from (f"{module}.{alias.name}" for alias in node.names)


def parts_imported(path: Path) -> set[str]:
    """Parts of the package that a file imports; '' stands for the package's own __init__."""
    names = [name.split(".") for name in imports_of(path) if name.split(".")[0] == PACKAGE]
    return {name[1] if len(name) > 1 and name[1] in LAYERS else "" for name in names}


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_every_file_belongs_to_a_layer():
    assert FILES, f"no Python files under {ROOT}"
    assert {part_of(path) for path in FILES} <= set(LAYERS)


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_imports_point_downward(path):
    own = part_of(path)
    if own == "__init__":
        return
    imported = parts_imported(path) - {own}
    assert "" not in imported and "__init__" not in imported, "nothing inside the package imports the package itself"
    # data/ and models/ are used by the methods beside them, never the other way round.
    uphill = {part for part in imported if LAYERS[part] > LAYERS[own]}
    assert not uphill, f"{own} (layer {LAYERS[own]}) imports {sorted(uphill)} from above"


@pytest.mark.parametrize(("first", "second"), STRANGERS + [(b, a) for a, b in STRANGERS])
def test_strangers_do_not_know_each_other(first, second):
    meetings = [relative(path) for path in FILES if part_of(path) == first and second in parts_imported(path)]
    assert not meetings, f"{first} must not import {second}"


def test_torchreid_is_imported_in_host_alone():
    importers = {relative(path) for path in FILES for name in imports_of(path) if name.split(".")[0] == "torchreid"}
    assert {name for name in importers if not name.startswith("host/")} == set()


def test_host_reaches_torchreid_through_attributes():
    dotted = [name for path in FILES for name in imports_of(path) if name.startswith("torchreid.")]
    assert not dotted, "a dotted import works with one of torchreid's two distributions only"


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_no_prints_and_no_asserts(path):
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    calls = [node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    assert "print" not in calls, "the package logs; tools print"
    assert not any(isinstance(node, ast.Assert) for node in nodes), "asserts vanish under -O: raise a typed error"


def test_the_method_names_no_layer_of_any_network():
    named = [
        relative(path)
        for path in FILES
        if part_of(path) == "oskt" and re.search("layer1|downsample|conv1", path.read_text(encoding="utf-8"))
    ]
    assert not named
