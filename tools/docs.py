"""Makes the pages of docs/ that follow from the code: docs/configuration.md and docs/api.md.

python tools/docs.py            writes them
python tools/docs.py --check    says whether they are current, writes nothing
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import oskt_torchreid as oskt  # noqa: E402
from oskt_torchreid.files import atomic  # noqa: E402
from oskt_torchreid.lab.interface_reference import interface_reference  # noqa: E402
from oskt_torchreid.lab.reference import configuration_reference  # noqa: E402

PAGES: dict[str, Callable[[], str]] = {
    "configuration.md": configuration_reference,
    "api.md": lambda: interface_reference(oskt),
}


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, or 1 if a page is not current."""
    parsed = parse_arguments(arguments)
    old = []
    for name, make in PAGES.items():
        path, text = ROOT / "docs" / name, make()
        current = path.is_file() and path.read_text(encoding="utf-8") == text
        if parsed.check and not current:
            old.append(name)
        elif not current:
            with atomic(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
            print(f"wrote docs/{name}")
    if old:
        print(f"not current: {', '.join(old)}; run `python tools/docs.py`", file=sys.stderr)
    return 1 if old else 0


if __name__ == "__main__":
    sys.exit(main())
