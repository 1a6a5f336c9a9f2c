"""The list of rooms: what each part of the package may import, and what it must not know."""

import ast
import functools
import graphlib
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

PACKAGE = "oskt_torchreid"
ROOT = Path(__file__).resolve().parents[1] / PACKAGE
FOUNDATIONS = {
    "errors",
    "files",
    "registry",
    "networks",
    "batches",
    "user_code",
    "on_demand",
    "needs_torchreid",
    "made_classes",
    "printing",
}
TORCH_ONLY = {"graph", "chain", "deploy", "config", "files", "networks", "batches"}
ROOMS = {
    "errors": set(),
    "cli": {"errors", "user_code"},
    "files": {"errors", "networks"},
    "registry": {"errors", "on_demand", "user_code"},
    "user_code": {"errors"},
    "on_demand": {"errors"},
    "needs_torchreid": {"on_demand"},
    "made_classes": set(),
    "printing": set(),
    "networks": {"errors", "on_demand"},
    "batches": {"errors"},
    "config": FOUNDATIONS,
    "graph": FOUNDATIONS,
    "deploy": {"graph"} | FOUNDATIONS,
    "chain": {"graph", "deploy"} | FOUNDATIONS,
    "vkd": {"graph", "host", "models"} | FOUNDATIONS,
    "host": {"config", "graph", "chain", "vkd"} | FOUNDATIONS,
    "models": {"graph", "host"} | FOUNDATIONS,
    "datasets": {"host", "vkd"} | FOUNDATIONS,
    "zoo": {"graph", "chain", "vkd", "host", "models"} | FOUNDATIONS,
    "baselines": {"graph", "chain", "host"} | FOUNDATIONS,
    "report": {"config", "vkd"} | FOUNDATIONS,
    "integration": {"vkd", "host", "models", "datasets", "zoo", "baselines"} | FOUNDATIONS,
    "runs": {"config", "graph", "chain", "vkd", "host", "models", "datasets", "deploy", "baselines", "report"}
    | FOUNDATIONS,
    "lab": {"config", "graph", "chain", "vkd", "host", "models", "datasets", "deploy", "baselines", "report", "runs"}
    | FOUNDATIONS,
    "commands": {"cli", "config", "graph", "chain", "vkd", "host", "models", "datasets", "deploy", "zoo", "report"}
    | {"runs", "lab"}
    | FOUNDATIONS,
    "__init__": {"graph", "chain", "deploy", "integration", "baselines", "models", "vkd", "zoo"} | FOUNDATIONS,
    "__main__": {"commands"},
}
"""Rooms of the package, and the rooms that each may import."""
FILES = sorted(ROOT.rglob("*.py"))


def part_of(path: Path) -> str:
    """Name of the part of the package (a key of ROOMS) that a file belongs to."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def absolute_name(path: Path, node: ast.ImportFrom) -> str:
    """Dotted module name of a `from ... import`, with leading dots resolved against the file's package."""
    if node.level == 0:
        return node.module or ""
    package = (PACKAGE, *path.relative_to(ROOT).parent.parts)
    base = package[: len(package) - node.level + 1]
    return ".".join((*base, node.module)) if node.module else ".".join(base)


@functools.cache
def nodes_of(path: Path) -> tuple[ast.AST, ...]:
    """Everything that a file's text consists of."""
    return tuple(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


@functools.cache
def imports_of(path: Path) -> tuple[str, ...]:
    """Dotted names that a file imports anywhere, functions included."""
    names: list[str] = []
    for node in nodes_of(path):
        if isinstance(node, ast.Import):
            names += (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = absolute_name(path, node)
            # `from .. import graph` names a part where `from ..graph import trace_module` names a module's content.
            names += (f"{module}.{alias.name}" for alias in node.names)
    return tuple(names)


def parts_imported(path: Path) -> set[str]:
    """Parts of the package that a file imports; '' is the package's own __init__."""
    names = [name.split(".") for name in imports_of(path) if name.split(".")[0] == PACKAGE]
    return {name[1] if len(name) > 1 and name[1] in ROOMS else "" for name in names}


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_every_file_belongs_to_a_room():
    assert FILES, f"no Python files under {ROOT}"
    assert {part_of(path) for path in FILES} <= set(ROOMS)


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_imports_are_on_the_list(path):
    own = part_of(path)
    imported = parts_imported(path) - {own}
    assert "" not in imported and "__init__" not in imported, "nothing inside the package imports the package itself"
    assert imported <= ROOMS[own], f"{own} imports {sorted(imported - ROOMS[own])}, which is not on its list"


def test_the_list_has_no_unused_entries():
    used = {own: set() for own in ROOMS}
    for path in FILES:
        used[part_of(path)] |= parts_imported(path)
    for own, allowed in ROOMS.items():
        if own not in ("lab", "__init__"):
            assert allowed - used[own] <= FOUNDATIONS, f"{own} does not import {sorted(allowed - used[own])}"


def test_the_page_says_what_the_list_says():
    """The table of docs/architecture.md; "all above" are its rows so far."""
    page = (ROOT.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    shown = {}
    for room, _, allowed in re.findall(r"^\| `(\w+)` \| (.*) \| (.*) \|$", page, re.MULTILINE):
        further, _, left_out = allowed.partition("all above")
        named, but = (set(re.findall(r"`(\w+)`", words)) for words in (further, left_out))
        shown[room] = named | (set(shown) - but if "all above" in allowed else set())
    listed = {room: allowed - FOUNDATIONS for room, allowed in ROOMS.items()}
    assert shown == {room: listed[room] for room in shown} and len(shown) == 14


def test_the_method_needs_torch_alone():
    """Without torchreid each room can be imported, before any other, and what needs torchreid says so."""
    script = f"""
        import importlib, sys
        sys.modules["torchreid"] = None
        for room in {sorted(TORCH_ONLY)}:
            for name in [name for name in sys.modules if name.partition(".")[0] == "oskt_torchreid"]:
                del sys.modules[name]
            importlib.import_module("oskt_torchreid." + room)
            package = importlib.import_module("oskt_torchreid")
            assert not [name for name in sys.modules if name.startswith("oskt_torchreid.runs")]
            print(room, package.WeightChain.__name__)
            try:
                package.OSKTEngine
            except package.errors.ConfigError as reason:
                print(room, reason)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT.parent, check=False)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines[::2]] == sorted(TORCH_ONLY)
    assert all(line.endswith(" WeightChain") for line in lines[::2])
    assert all("run `pip install torchreid`" in line for line in lines[1::2])


def test_rooms_that_need_torchreid_begin_with_it():
    """Whichever is imported first, everything is registered before it runs; the others do without."""
    needing = {part_of(path) for path in FILES if "needs_torchreid" in parts_imported(path)}
    registered = parts_imported(ROOT / "integration.py") - {"registry"}
    assert needing == registered and not needing & TORCH_ONLY
    for room in needing:
        assert imports_of(ROOT / room / "__init__.py")[0] == f"{PACKAGE}.needs_torchreid"


def test_no_files_import_one_another_in_a_circle():
    names = {path: ".".join((PACKAGE, *path.relative_to(ROOT).with_suffix("").parts)) for path in FILES}
    names = {path: name.removesuffix(".__init__") for path, name in names.items()}
    known = set(names.values())
    needs = {
        name: {_file_of(target, known) for target in imports_of(path)} - {name, ""} for path, name in names.items()
    }
    try:
        order = list(graphlib.TopologicalSorter(needs).static_order())
    except graphlib.CycleError as error:
        pytest.fail(f"files import one another in a circle: {' -> '.join(error.args[1])}")
    assert set(order) == known, "every file is looked at"


def test_a_circle_would_be_noticed():
    with pytest.raises(graphlib.CycleError):
        list(graphlib.TopologicalSorter({"a": {"b"}, "b": {"a"}}).static_order())
    assert _file_of(f"{PACKAGE}.chain.chain.WeightChain", {f"{PACKAGE}.chain.chain"}) == f"{PACKAGE}.chain.chain"


def _file_of(target: str, known: set[str]) -> str:
    while target and target not in known:
        target = target.rpartition(".")[0]
    return target


def test_torchreid_is_imported_in_host_alone():
    importers = {relative(path) for path in FILES for name in imports_of(path) if name.split(".")[0] == "torchreid"}
    assert {name for name in importers if not name.startswith("host/")} == set()


def test_host_reaches_torchreid_through_attributes():
    dotted = [name for path in FILES for name in imports_of(path) if name.startswith("torchreid.")]
    assert not dotted, "a dotted import works with one of torchreid's two distributions only"


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_no_prints_and_no_asserts(path):
    nodes = nodes_of(path)
    calls = [node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    assert "print" not in calls, "the package logs; commands say"
    assert not any(isinstance(node, ast.Assert) for node in nodes), "asserts vanish under -O: raise a typed error"


def test_the_method_names_no_layer_of_any_network():
    named = [
        relative(path)
        for path in FILES
        if part_of(path) == "chain" and re.search("layer1|downsample|conv1", path.read_text(encoding="utf-8"))
    ]
    assert not named
