"""What docstrings and pages name in backticks exists: modules, what they define, members of classes, files."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from oskt_torchreid.config.tree import every_key

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "oskt_torchreid"
MADE = {"api", "configuration", "changelog"}  # of docstrings and of keys; the last one has names that are gone
PAGES = [path for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")) if path.stem not in MADE]
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}
NODES = {key.rsplit(".", count)[0] for key in every_key() for count in range(key.count(".") + 1)}
OTHER_FILES = ("csv", "html", "jpg", "json", "md", "png", "safetensors", "txt", "yaml")


def name_of(path: Path) -> str:
    """`graph/plans.py` -> `oskt.graph.plans`, `graph/__init__.py` -> `oskt.graph`: pages call the package `oskt`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(("oskt", *(part for part in parts if part != "__init__")))


def names_in(body: list[ast.stmt]) -> Iterator[str]:
    """What statements define, with `Class.member` for members of classes, those that methods set included."""
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from (alias.asname or alias.name for alias in node.names)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                yield ast.unparse(target).removeprefix("self.")
        elif isinstance(node, ast.Try):
            yield from names_in(node.body)
        if isinstance(node, ast.ClassDef):
            inner = [each for part in node.body for each in ast.walk(part) if isinstance(each, ast.stmt)]
            yield from (f"{node.name}.{name}" for name in names_in(inner))


DEFINED = {name_of(path): set(names_in(tree.body)) for path, tree in TREES.items()}
KNOWN = set(DEFINED) | {f"{module}.{name}" for module, names in DEFINED.items() for name in names}
ANYWHERE = set.union(*DEFINED.values())
CLASSES = {name.partition(".")[0] for name in ANYWHERE if re.match(r"[A-Z]\w*\.", name)}
PARTS = {part for module in DEFINED for part in module.split(".")}


def is_missing(name: str, folder: Path) -> bool:
    """Whether a name, as it is read in `folder`, is a file or begins with a part or class, and there is no such thing.

    Names are looked up from the folder, from those that it lies in, and from the package.
    """
    if name.endswith(".py"):
        return not any((above / name).is_file() for above in (folder, *folder.parents, PACKAGE))
    first = name.partition(".")[0]
    if name in NODES or name.endswith(OTHER_FILES):
        return False
    if first in CLASSES:
        return name not in ANYWHERE
    if first not in PARTS:
        return False
    rooms = ("oskt", *(folder.relative_to(PACKAGE).parts if folder.is_relative_to(PACKAGE) else ()))
    return not any(".".join((*rooms[:depth], name)) in KNOWN for depth in range(len(rooms) + 1))


def missing(text: str, folder: Path) -> list[str]:
    names = re.findall(r"`([\w/]+(?:\.\w+)+)(?:\([^`]*\))?`", text)
    return [name for name in names if is_missing(name, folder)]


def test_what_docstrings_name_exists():
    found = {}
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Expr)
                and isinstance(node.value, ast.Constant)
                and isinstance(node.value.value, str)
            ):
                found.setdefault(name_of(path), []).extend(missing(node.value.value, path.parent))
    assert {name: wrong for name, wrong in found.items() if wrong} == {}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_what_pages_name_exists(page):
    assert missing(page.read_text(encoding="utf-8"), page.parent) == []


@pytest.mark.parametrize(
    ("name", "room", "there"),
    [
        ("graph.surgery.rebuild.describe_code", "chain", True),
        ("graph.routing.describe_code", "chain", False),
        ("losses.lambda_schedule", "chain", True),
        ("losses.lambda_schedule", "host", False),
        ("WeightChain.from_teacher", "", True),
        ("WeightChain.from_nothing", "", False),
        ("oskt.students", "runs", True),
        ("oskt.expand", "chain", True),
        ("oskt.contract", "chain", False),
        ("trial.py", "graph/surgery", True),
        ("trial.py", "chain", False),
        ("torch.nothing", "chain", True),
    ],
)
def test_names_are_looked_up_from_where_they_are_read(name, room, there):
    assert is_missing(name, PACKAGE / room) != there
