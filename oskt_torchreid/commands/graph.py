"""Which channels of a network belong together, which widths it can have, and whether students of it are exact.

oskt graph osnet_x1_0
oskt graph my_net --import mine.py --prove
oskt graph --support "osnet*"
"""

import argparse
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from ..chain import prove, trace
from ..cli import carried_out, parse_with_imports, parser_of, positive, say
from ..graph.keeping import UNKNOWN
from ..host import models
from ..lab.support import exactness, family_table, support_table, unchanging, width_grid
from ..models import backbone_names
from ..user_code import import_user_code
from ..vkd.model import set_model_table

NUM_CLASSES = 751  # as in Market-1501; only the last group depends on it


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = parser_of("graph", __doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("name", metavar="NAME", nargs="?", help="name of a registered model, such as osnet_x1_0")
    what.add_argument(
        "--support",
        nargs="*",
        metavar="PATTERN",
        help="tables of all registered backbones and of the families of "
        "networks that the test suite knows (default: all, or those that patterns choose), in Markdown",
    )
    what.add_argument(
        "--sets", nargs="*", metavar="NAME", help="what vkd_<backbone> changes in backbones (default: all), in Markdown"
    )
    parser.add_argument(
        "--prove", action="store_true", help="try that students of it compute what it does, on copies of random weights"
    )
    parser.add_argument(
        "--size", nargs=2, type=positive, metavar=("H", "W"), help="image to trace (default: the backbone's own)"
    )
    parser.add_argument(
        "--keep", nargs="+", default=[], metavar="MODULE", help="modules that stay whole: names, or patterns"
    )
    parser.add_argument(
        "--unknown",
        choices=UNKNOWN,
        default="keep",
        help="channels of operators without a rule stay whole, or are an error",
    )
    return parser


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = make_parser()
    parsed = parse_with_imports(parser, arguments)
    if parsed.prove and not parsed.name:
        parser.error("--prove needs the name of a model")
    return parsed


def print_support(patterns: Sequence[str]) -> None:
    """Prints the table of registered backbones, then that of families, each if a pattern chooses any of it."""
    names = [name for name in backbone_names() if _chosen(name, patterns)]
    families = {name: family for name, family in _known_families().items() if _chosen(name, patterns)}
    tables = [support_table(names)] if names else []
    tables += [family_table(families)] if families else []
    say("\n\n".join(tables))


def _known_families() -> dict[str, Any]:
    """The families of networks that the test suite knows, which a clone has beside the package; else none."""
    try:
        from families import FAMILIES
    except ImportError:
        return {}
    return dict(FAMILIES)


def _chosen(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def main(arguments: Sequence[str] | None = None) -> int:
    """Traces the backbone and prints its groups; returns the exit status."""
    parsed = parse_arguments(arguments)
    return carried_out(lambda: _show(parsed))


def _show(parsed: argparse.Namespace) -> None:
    import_user_code(parsed.imports)
    if parsed.support is not None:
        print_support(parsed.support or ["*"])
    elif parsed.sets is not None:
        say(set_model_table(parsed.sets))
    else:
        show_graph(parsed)


def show_graph(parsed: argparse.Namespace) -> None:
    """Traces a network and prints its groups, widths and exactness."""
    model, size = models.build(parsed.name, NUM_CLASSES), (3, *parsed.size) if parsed.size else None
    graph = trace(model, size, False, parsed.keep, parsed.unknown)
    say(graph.summary())
    say(f"width grid: {width_grid(graph)}\nstudents: {exactness(graph)}")
    say(f"in every student: {unchanging(graph)}")
    if parsed.prove:
        say(f"proof: {prove(model, size, parsed.keep, parsed.unknown)}")
