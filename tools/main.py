"""Runs a configuration: trains a teacher, refines a weight chain, expands and fine-tunes students, reports.

python tools/main.py --config-file configs/oskt_osnet.yaml
python tools/main.py --config-file configs/paper/oskt/res50_chain8_market1501.yaml --dry-run
python tools/main.py --config-file configs/oskt_osnet.yaml -s market1501 -t market1501 --root ~/reid-data KEY VALUE ...
"""

import argparse
import logging
import sys
from pathlib import Path

from tqdm.contrib.logging import logging_redirect_tqdm

import oskt_torchreid
from oskt_torchreid.config import load_config
from oskt_torchreid.pipeline import rehearse, run
from oskt_torchreid.report import text_table


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """torchreid's own flags, and the trailing options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", default="", help="YAML with differences from the defaults")
    parser.add_argument("-s", "--sources", nargs="+", default=[], help="source data sets")
    parser.add_argument("-t", "--targets", nargs="+", default=[], help="target data sets")
    parser.add_argument("--transforms", nargs="+", default=[], help="training transforms")
    parser.add_argument("--root", default="", help="folder that holds the data sets")
    parser.add_argument("--dry-run", action="store_true", help="build all on stand-in data, print the plan, stop")
    parser.add_argument("options", nargs="*", help="KEY VALUE or KEY=VALUE, as in the YAML")
    return parser.parse_intermixed_args(arguments)  # flags may also follow the options


def start_log(folder: Path) -> None:
    """Messages to standard error, and everything to a file in the run's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    logger = logging.getLogger("oskt_torchreid")
    logger.setLevel(logging.INFO)
    screen, file = logging.StreamHandler(), logging.FileHandler(folder / "log.txt")
    screen.addFilter(lambda record: not record.name.startswith("oskt_torchreid.host"))  # torchreid's own messages
    for handler in (screen, file):
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)


def main() -> int:
    """Returns the exit status: 0, 2 for what the user can mend, 130 when interrupted."""
    arguments = parse()
    flags = {
        "data.root": arguments.root,
        "data.sources": arguments.sources,
        "data.targets": arguments.targets,
        "data.transforms": arguments.transforms,
    }
    try:
        config = load_config(arguments.config_file, arguments.options, flags)
        if arguments.dry_run:
            print(rehearse(config).summary())
            return 0
        folder = Path(config.data.save_dir)
        start_log(folder)
        with logging_redirect_tqdm([logging.getLogger("oskt_torchreid")]):
            results = run(config)
    except oskt_torchreid.OsktError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    print(text_table(results.rows))
    print(f"\nwritten to {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
