"""Reading, merging and saving the configuration tree.

Order of precedence: defaults, configuration file, flags of the command line, trailing options. Every source is checked
against the defaults: an unknown key, a value of another type or out of range is an error that names the nearest key.
"""

import ast
import contextlib
import difflib
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode

from ..errors import ConfigError
from ..files import atomic
from ..registry import nearest
from ..user_code import import_user_code
from .allowed import BetweenOrName, Value
from .checking import check_config, check_value
from .imports import IMPORTS_KEY, RESOLVED_NAME, checked_imports
from .shipped import config_path
from .tree import default_tree, every_key, leaves
from .yaml_files import read_yaml

BASE_KEY = "base"
_KEY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_][\w+]*)*")  # a plus sign, for kd++


def default_config() -> CfgNode:
    """A fresh, mutable copy of the defaults."""
    return CfgNode(default_tree())


def load_config(
    config_file: str | Path = "",
    options: Sequence[str] = (),
    flags: Mapping[str, object] | None = None,
    imports: Sequence[str] = (),
) -> CfgNode:
    """Reads a run's configuration, and imports the user code that it names, before any other key is read.

    Args:
        config_file: YAML with differences from the defaults, or the name of one that comes with the package, see
            `config_path`; empty for none. Its key `base` names one file or several, relative to it, whose values come
            first.
        options: trailing command line words, `KEY VALUE` pairs and `KEY=VALUE` in any mixture; later ones win.
        flags: dotted key -> value, as command line flags give them; None and empty values are skipped.
        imports: files and modules besides those of the key `imports`, see `import_user_code`.

    Returns:
        The frozen tree, its `imports` complete and with absolute paths.

    Raises:
        ConfigError: missing or malformed file, unknown key, wrong type, value out of range, or user code that cannot be
            imported.
    """
    layers = _with_bases(config_path(config_file)) if config_file else []
    import_user_code(imports)
    imported = import_user_code([*_named_imports(layers, options), *imports])
    config = default_config()
    for path, content in layers:
        _merge(config, content, source=f"'{path}'")
    for key, value in (flags or {}).items():
        if value is not None and value != "" and value != []:
            _set(config, key, value, source="the command line")
    for key, value in _pairs(options):
        _set(config, key, value, source="the command line")
    config[IMPORTS_KEY] = imported
    check_config(config)
    config.freeze()
    return config


def _named_imports(layers: Sequence[tuple[Path, Mapping[str, Any]]], options: Sequence[str]) -> list[str]:
    """The value of the key `imports`: the last of the command line, or else of the files."""
    node = CfgNode({IMPORTS_KEY: []})
    given = [value for key, value in _pairs(options) if key == IMPORTS_KEY]
    named = [(path, content[IMPORTS_KEY]) for path, content in layers if IMPORTS_KEY in content]
    if given:
        _assign(node, IMPORTS_KEY, given[-1], IMPORTS_KEY, "the command line")
    elif named:
        path, value = named[-1]
        _assign(node, IMPORTS_KEY, value, IMPORTS_KEY, f"'{path}'")
    return node[IMPORTS_KEY]


def merged(config: CfgNode, changes: Mapping[str, object], source: str = "the changes") -> CfgNode:
    """A frozen copy of a tree, some of its values changed.

    Args:
        config: not changed.
        changes: dotted key -> value, or the word for it as on the command line.
        source: where the changes come from, for messages.

    Raises:
        ConfigError: unknown key, wrong type, value out of range.
    """
    changed = config.clone()
    changed.defrost()
    for key, value in changes.items():
        _set(changed, key, value, source)
    check_config(changed)
    changed.freeze()
    return changed


def get(config: CfgNode, key: str) -> Any:
    """Value of a dotted key such as 'oskt.refine.lambda' (a Python keyword, so no attribute path reaches it)."""
    for name in key.split("."):
        config = config[name]
    return config


def save_resolved(config: CfgNode, folder: str | Path) -> Path:
    """Writes the whole tree as `config.yaml` in `folder` and returns its path; `load_config` reads it back."""
    path = Path(folder) / RESOLVED_NAME
    with atomic(path) as temporary:
        temporary.write_text(config.dump(), encoding="utf-8")
    return path


def load_resolved(folder: str | Path, options: Sequence[str] = ()) -> CfgNode:
    """Reads the configuration in a run's folder; options and errors as of `load_config`.

    User code that may have come with the folder is refused, unless it was imported already or the options name it.
    """
    path = Path(folder) / RESOLVED_NAME
    if IMPORTS_KEY not in given_keys(options):
        checked_imports(path)
    return load_config(path, options)


def digest(*parts: object) -> str:
    """Short digest of configuration nodes and plain values; equal content in any key order gives equal digests."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _with_bases(path: Path, including: tuple[Path, ...] = ()) -> list[tuple[Path, dict[str, Any]]]:
    """A file's content behind that of its bases: later ones win.

    Args:
        path: file to read.
        including: the files that led here, outermost first.
    """
    if any(path.resolve() == earlier.resolve() for earlier in including):
        circle = " -> ".join(f"'{file}'" for file in (*including, path))
        raise ConfigError(f"base goes round in a circle: {circle}; take one of them out")
    if including and not path.is_file():
        raise ConfigError(f"no file at '{path}', which is a base of '{including[-1]}'; paths are relative to that file")
    content = read_yaml(path)
    if content is not None and not isinstance(content, dict):
        raise ConfigError(f"'{path}' holds a {type(content).__name__}; expected keys and values")
    content = content or {}
    bases = content.pop(BASE_KEY, [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(f"{BASE_KEY} in '{path}' is {bases!r}; expected the path of a YAML file, or a list of paths")
    layers = [layer for base in bases for layer in _with_bases(path.parent / base, (*including, path))]
    return [*layers, (path, content)]


def given_keys(options: Sequence[str]) -> list[str]:
    """The keys that the trailing words of a command line name, in order."""
    return [key for key, _ in _pairs(options)]


def _pairs(options: Sequence[str]) -> list[tuple[str, str]]:
    """Splits `KEY VALUE` and `KEY=VALUE` words into pairs, in order."""
    pairs, words = [], iter(options)
    for word in words:
        key, equals, value = word.partition("=")
        if equals and _KEY.fullmatch(key):
            pairs.append((key, value))
            continue
        following = next(words, None)
        if following is None:
            raise ConfigError(f"option '{word}' has no value; write '{word} VALUE' or '{word}=VALUE'")
        pairs.append((word, following))
    return pairs


def _merge(config: CfgNode, content: Mapping[str, object], source: str, prefix: str = "") -> None:
    """Merges nested keys of a file into `config`, which changes."""
    for name, value in content.items():
        key = f"{prefix}{name}"
        if "." in str(name) and key in leaves(default_config()):
            raise ConfigError(f"{key} in {source} is written with a dot; a file has groups: {_nested(key, value)}")
        if name in config and isinstance(config[name], CfgNode) and isinstance(value, Mapping):
            _merge(config[name], value, source, prefix=f"{key}.")
        else:
            _assign(config, str(name), value, key, source)


def _nested(key: str, value: object) -> str:
    """A dotted key as YAML has it: `train: {lr: 0.1}`."""
    *groups, name = key.split(".")
    shown = yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()
    return "".join(f"{group}: {{" for group in groups) + f"{name}: {shown}" + "}" * len(groups)


def _set(config: CfgNode, key: str, value: object, source: str) -> None:
    """Sets a dotted key of `config`, which changes."""
    node, *names = config, *key.split(".")
    for name in names[:-1]:
        if not isinstance(node.get(name), CfgNode):
            _unknown(key, source)
        node = node[name]
    _assign(node, names[-1], value, key, source)


def _assign(node: CfgNode, name: str, value: object, key: str, source: str) -> None:
    if name not in node:
        _unknown(key, source)
    if isinstance(node[name], CfgNode):
        raise ConfigError(f"{key} in {source} is {value!r}; it is a group of keys: {', '.join(node[name])}")
    node[name] = _coerce(value, node[name], key, source)


def _unknown(key: str, source: str) -> None:
    known = list(leaves(default_config()))
    *_, last = key.split(".")
    # The right name under the wrong parent is as common a slip as a mistyped name.
    moved = [leaf for leaf in known if leaf.split(".")[-1] == last]
    moved.sort(key=lambda leaf: difflib.SequenceMatcher(None, leaf, key).ratio(), reverse=True)
    hint = f"; did you mean {' or '.join(map(repr, moved[:3]))}?" if moved else nearest(key, known)
    raise ConfigError(f"unknown key '{key}' in {source}{hint or '; `oskt config` lists them'}")


def _coerce(value: Any, default: Value, key: str, source: str) -> Value:
    """`value` as the type of `default`; words of the command line and YAML's '3e-4' are read as Python literals."""
    if isinstance(value, str) and not isinstance(default, str):
        # A value that is not a literal stays a string, which the type check below reports.
        with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            value = ast.literal_eval(value)
    check_value(value, key, source)
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if isinstance(default, list) and isinstance(value, tuple):
        value = list(value)
    if isinstance(default, list) and isinstance(value, list) and default:
        value = [_coerce(item, default[0], f"{key}[{index}]", source) for index, item in enumerate(value)]
    if type(value) is not type(default) and not (isinstance(value, str) and _may_be_name(key)):
        raise ConfigError(
            f"{key} in {source} is {value!r} ({type(value).__name__}); expected {type(default).__name__} such as "
            f"{default!r}"
        )
    return value


def _may_be_name(key: str) -> bool:
    row = every_key().get(key)
    return row is not None and isinstance(row.allowed, BetweenOrName)
