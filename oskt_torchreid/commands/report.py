"""Writes the page of a run again, or a page that shows runs side by side. Every run ends with its own page.

oskt report log/oskt_osnet
oskt report log/oskt_osnet log/mine -o both.html
"""

import argparse
from collections.abc import Sequence

from ..cli import carried_out, parse_with_imports, parser_of, say
from ..runs.page import write_comparison_page, write_run_page
from ..user_code import import_user_code


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = parser_of("report", __doc__)
    parser.add_argument("folders", nargs="+", metavar="folder", help="of a run; of several, they are compared")
    parser.add_argument("-o", "--output", default="", help="HTML file (default: report.html in the run's folder)")
    return parser


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The words of a command line."""
    return parse_with_imports(make_parser(), arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes a page; returns the exit status."""
    parsed = parse_arguments(arguments)
    return carried_out(lambda: _write(parsed))


def _write(parsed: argparse.Namespace) -> None:
    import_user_code(parsed.imports)
    if len(parsed.folders) == 1:
        path = write_run_page(parsed.folders[0], parsed.output)
    else:
        path = write_comparison_page(parsed.folders, parsed.output or "comparison.html")
    say(f"wrote {path}")
