"""Published weights: the catalogue, their sources, fetching and converting.

oskt zoo list
oskt zoo info osnet_x1_0_msmt17
oskt zoo download osnet_x1_0_msmt17
oskt zoo convert osnet_x1_0_msmt17 -o osnet_x1_0_msmt17.pth
oskt zoo convert oskt_resnet50_chains --part 8/Market1501 -o chain.safetensors
"""

import argparse
import logging
from collections.abc import Sequence

from tabulate import tabulate

from ..cli import parse_with_imports, parser_of, say, subcommand
from ..zoo import convert, download
from ..zoo.catalogue import catalogue, entry_named
from ..zoo.downloads import by_hand, place_of

NOT_STATED = "not stated"


def show_list(arguments: argparse.Namespace) -> None:
    """Prints every entry in a line."""
    entries = [e for e in catalogue().values() if arguments.collection in ("", e.collection)]
    rows = [
        (e.name, e.collection, e.model, e.note, "yes" if place_of(e, arguments.cache).exists() else "") for e in entries
    ]
    say(tabulate(rows, headers=("name", "collection", "network", "trained on", "here")))


def show_info(arguments: argparse.Namespace) -> None:
    """Prints all that is known of one entry."""
    entry = entry_named(arguments.name)
    facts = {
        "network": entry.model,
        "trained on": entry.note,
        "contents": entry.expected,
        "link": entry.link or "none is known",
        "link taken from": entry.source,
        "page": entry.page,
        "licence": entry.licence or NOT_STATED,
        "SHA-256": entry.sha256 or f"{NOT_STATED}; recorded when it is fetched first",
        "place": place_of(entry, arguments.cache),
    }
    say(tabulate(facts.items(), tablefmt="plain"))
    say(by_hand(entry, arguments.cache))


def run_download(arguments: argparse.Namespace) -> None:
    """Fetches entries, or checks those that are there."""
    for name in arguments.names:
        entry = entry_named(name)
        say(f"{name}: licence {entry.licence or NOT_STATED}, see {entry.page}")
        say(download(name, arguments.cache, arguments.timeout))


def run_convert(arguments: argparse.Namespace) -> None:
    """Writes an entry in this package's own form."""
    say(f"wrote {convert(arguments.name, arguments.output, arguments.part, arguments.cache)}")


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = parser_of("zoo", __doc__)
    parser.add_argument("--cache", default="", help="folder of the files (default: $OSKT_ZOO, or the user's cache)")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    shown = commands.add_parser("list", help="what there is")
    shown.add_argument("--collection", default="", help="of one collection alone")
    shown.set_defaults(run=show_list)
    info = commands.add_parser("info", help="all that is known of one entry, and how to get it by hand")
    info.add_argument("name")
    info.set_defaults(run=show_info)
    fetched = commands.add_parser("download", help="fetch and check; resumes where it was interrupted")
    fetched.add_argument("names", nargs="+", metavar="name")
    fetched.add_argument("--timeout", type=float, default=30.0, help="seconds that a server may be silent")
    fetched.set_defaults(run=run_download)
    converted = commands.add_parser("convert", help="write as a chain file, or as a plain state dict")
    converted.add_argument("name")
    converted.add_argument("-o", "--output", required=True, help="file to write")
    converted.add_argument("--part", default="", help="of an entry with several chains or networks, which")
    converted.set_defaults(run=run_convert)
    return parser


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line of all subcommands; `run` is the chosen one."""
    return parse_with_imports(make_parser(), arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a subcommand; returns the exit status."""
    parsed = parse_arguments(arguments)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    return subcommand(parsed)
