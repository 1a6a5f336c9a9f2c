"""Reading YAML with unique keys: YAML's own reader silently takes the last of two equal keys."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from ..errors import ConfigError

_MERGE = "tag:yaml.org,2002:merge"


class _OnceLoader(yaml.SafeLoader):
    """Refuses a mapping that has a key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key = None if key_node.tag == _MERGE else self.construct_object(key_node, deep=True)
            if key is None or not isinstance(key, Hashable):  # what cannot be a key is an error below
                continue
            if key in seen:
                problem = f"the key '{key}' occurs twice in one group; put its values together"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Any:
    """The content of a YAML file, plain values only.

    Raises:
        ConfigError: no such file, no YAML, or a key that occurs twice.
    """
    if not path.is_file():
        raise ConfigError(f"no configuration file at '{path}' (looked in '{path.parent.absolute()}')")
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_OnceLoader)
    except (yaml.YAMLError, OSError, ValueError, RecursionError) as reason:  # bytes that are no text, endless numbers
        raise ConfigError(f"'{path}' is not valid YAML: {reason}") from reason
