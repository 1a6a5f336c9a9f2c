"""The channel graph of a backbone as a table: `python tools/graph.py osnet_x1_0`."""

import argparse
import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import oskt_torchreid as oskt  # noqa: E402
from oskt_torchreid.cli import parse_with_imports, positive  # noqa: E402
from oskt_torchreid.graph.keeping import UNKNOWN  # noqa: E402
from oskt_torchreid.host import models  # noqa: E402
from oskt_torchreid.lab.support import exactness, family_table, support_table, unchanging, width_grid  # noqa: E402
from oskt_torchreid.models import backbone_names  # noqa: E402
from oskt_torchreid.user_code import import_user_code  # noqa: E402
from oskt_torchreid.vkd.model import set_model_table  # noqa: E402

NUM_CLASSES = 751  # as in Market-1501; only the last group depends on it


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
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
    parsed = parse_with_imports(parser, arguments)
    if parsed.prove and not parsed.name:
        parser.error("--prove needs the name of a model")
    return parsed


def print_support(patterns: Sequence[str]) -> None:
    """Prints the table of registered backbones, then that of families, each if a pattern chooses any of it."""
    from families import FAMILIES  # of the test suite, which needs timm and torchvision

    names = [name for name in backbone_names() if _chosen(name, patterns)]
    families = {name: family for name, family in FAMILIES.items() if _chosen(name, patterns)}
    tables = [support_table(names)] if names else []
    tables += [family_table(families)] if families else []
    print("\n\n".join(tables))


def _chosen(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def main(arguments: Sequence[str] | None = None) -> int:
    """Traces the backbone and prints its groups; returns the exit status."""
    parsed = parse_arguments(arguments)
    try:
        import_user_code(parsed.imports)
        if parsed.support is not None:
            print_support(parsed.support or ["*"])
            return 0
        if parsed.sets is not None:
            print(set_model_table(parsed.sets))
            return 0
        model, size = models.build(parsed.name, NUM_CLASSES), (3, *parsed.size) if parsed.size else None
        graph = oskt.trace(model, size, False, parsed.keep, parsed.unknown)
        print(graph.summary())
        print(f"width grid: {width_grid(graph)}\nstudents: {exactness(graph)}")
        print(f"in every student: {unchanging(graph)}")
        if parsed.prove:
            print(f"proof: {oskt.prove(model, size, parsed.keep, parsed.unknown)}")
    except oskt.OsktError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
