"""Odd values of keys, as a command line or a file gives them, and runs with them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import yaml

from oskt_torchreid.config import default_config, leaves, load_config
from oskt_torchreid.runs import run, run_dry

from .data_folders import BASE, FOLDER, OSKT, RUNS, pictures
from .runs import Case, outcome_of, ready

LEAVES = leaves(default_config())
NUMBERS = (-1, 0, 1, 2, 3, 0.5, -0.5, 1e-9, 1e9, float("nan"), float("inf"), 10**20, -(10**20), 10**400)
TEXTS = ("", "x", "a\0b", "y" * 300, "z/" * 3000, "~nobody/x", "ü 図", "auto", "none", "1e")
OTHERS = (*TEXTS, True, False, None, [], [0], [-1], ["x"], [1, 2], [[]], {}, {"a": 1}, [None])
WORK = ("epoch", "num_train", "num_test", "cameras", "tracklets", "frames", "generations", "seeds", "processes")
"""Parts of names of keys that ask for work: of these a large number is no mistake, but a long run."""
FIXED = ("data.root", "data.save_dir", "model.name")
BASES = {"softmax": [*BASE, "engine=softmax"], "triplet": RUNS["triplet"], "oskt": [*BASE, *OSKT], "vkd": RUNS["vkd"]}


def run_case(number: int, seed: int = 0) -> Case:
    """Sets one to three keys to odd values, and runs an engine with them, or its dry run."""
    ready()
    random = Random(f"keys/{seed}/{number}")
    engine, is_dry = random.choice(sorted(BASES)), random.random() < 0.2
    keys = random.sample(sorted(set(LEAVES) - set(FIXED)), random.choice((1, 1, 2, 3)))
    values = {key: _odd(key, random) for key in keys}
    in_file = random.random() < 0.5
    root = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        for path, content in pictures().items():
            (root / FOLDER / path).parent.mkdir(parents=True, exist_ok=True)
            (root / FOLDER / path).write_bytes(content)
        begin = _begin(root, BASES[engine], values, in_file)
        outcome, failure = outcome_of(lambda: (run_dry if is_dry else run)(begin()))
    finally:
        shutil.rmtree(root, ignore_errors=True)
    way = f"{engine}{', dry run' if is_dry else ''}, {'file' if in_file else 'command line'}"
    return Case(number, f"{way}: {values!r}", outcome, failure)


def _begin(root: Path, base: list[str], values: dict[str, Any], in_file: bool) -> Callable[[], Any]:
    """What reads a configuration with the values."""
    places = [*base, f"data.root={root}", f"data.save_dir={root / 'run'}", "data.workers=0"]
    if not in_file:
        return lambda: load_config(options=[*places, *(f"{key}={value}" for key, value in values.items())])
    path = root / "run.yaml"
    words = dict(word.split("=", 1) for word in places if word.split("=", 1)[0] not in values)
    path.write_text(yaml.safe_dump(_nested(values), allow_unicode=True))
    return lambda: load_config(path, [f"{key}={value}" for key, value in words.items()])


def _nested(values: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *nodes, name = key.split(".")
        node = tree
        for part in nodes:
            node = node.setdefault(part, {})
        node[name] = value
    return tree


def _odd(key: str, random: Random) -> Any:
    """A value that a user may write by mistake: mostly of the key's kind, near and far from what is allowed."""
    default = LEAVES[key]
    numbers = [n for n in NUMBERS if not (any(part in key for part in WORK) and isinstance(n, (int, float)) and n > 3)]
    if isinstance(default, (int, float)) and not isinstance(default, bool) and random.random() < 0.8:
        return random.choice(numbers)
    if isinstance(default, list) and random.random() < 0.7:
        pool = [*numbers, *default, "x", ""]
        return random.choices(pool, k=random.randrange(4))
    if isinstance(default, bool) and random.random() < 0.7:
        return not default
    return random.choice([*numbers, *OTHERS])
