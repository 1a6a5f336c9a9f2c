"""Every key of a configuration, with its default, what is allowed and what it means.

oskt config
oskt config oskt.refine
oskt config train.lr
oskt config --files
"""

import argparse
import shutil
import textwrap
from collections.abc import Mapping, Sequence

from ..cli import carried_out, parse_with_imports, parser_of, say
from ..config import shipped_configs
from ..config.keys import Key
from ..config.tree import every_key
from ..errors import ConfigError
from ..registry import nearest
from ..user_code import import_user_code


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = parser_of("config", __doc__)
    parser.add_argument("key", nargs="?", default="", help="a key, or a group of keys such as oskt.refine")
    parser.add_argument("--files", action="store_true", help="the configurations that come with the package")
    return parser


def chosen_keys(name: str) -> dict[str, Key]:
    """The keys of a group, or one key; all of them for an empty name.

    Raises:
        ConfigError: neither a key nor a group.
    """
    keys = every_key()
    chosen = {key: row for key, row in keys.items() if not name or key == name or key.startswith(f"{name}.")}
    if not chosen:
        groups = {key.rsplit(".", count)[0] for key in keys for count in range(key.count(".") + 1)}
        hint = nearest(name, groups) or "; `oskt config` lists all"
        raise ConfigError(f"there is no key and no group of keys '{name}'{hint}")
    return chosen


def described(keys: Mapping[str, Key], width: int) -> str:
    """A paragraph for each key: `oskt.width = 0.5`, what it means, what is allowed."""
    paragraphs = []
    for name, key in keys.items():
        allowed = f" Allowed: {key.allowed.in_words()}." if key.allowed else ""
        text = f"{key.meaning[:1].upper()}{key.meaning[1:]}.{allowed}"
        lines = textwrap.wrap(text, width, initial_indent="    ", subsequent_indent="    ")
        paragraphs.append("\n".join([f"{name} = {key.default!r}", *lines]))
    return "\n".join(paragraphs)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The words of a command line."""
    return parse_with_imports(make_parser(), arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints keys; returns the exit status."""
    parsed = parse_arguments(arguments)
    return carried_out(lambda: _show(parsed))


def _show(parsed: argparse.Namespace) -> None:
    import_user_code(parsed.imports)
    if parsed.files:
        say("\n".join(f"{name:<44}{path}" for name, path in shipped_configs().items()))
    else:
        say(described(chosen_keys(parsed.key), min(shutil.get_terminal_size().columns, 100)))
