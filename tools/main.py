"""Runs a configuration: trains a teacher, refines a weight chain, expands and fine-tunes students, reports.

python tools/main.py --config-file configs/oskt_osnet.yaml
python tools/main.py --config-file configs/paper/oskt/res50_chain8_market1501.yaml --dry-run
python tools/main.py --import mine.py -s mine -t mine --root ~/reid-data --dry-run
torchrun --nproc_per_node 2 tools/main.py --config-file configs/oskt_osnet.yaml
python tools/main.py --config-file configs/oskt_osnet.yaml -s market1501 -t market1501 --root ~/reid-data KEY VALUE ...
"""

import argparse
import contextlib
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm.contrib.logging import logging_redirect_tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import oskt_torchreid  # noqa: E402
from oskt_torchreid.cli import parse_with_imports  # noqa: E402
from oskt_torchreid.config import given_keys, load_config  # noqa: E402
from oskt_torchreid.errors import Terminated  # noqa: E402
from oskt_torchreid.host.distributed import is_rank_zero, joined_processes  # noqa: E402
from oskt_torchreid.host.termination import on_termination, status_of, terminate  # noqa: E402
from oskt_torchreid.report import text_table  # noqa: E402
from oskt_torchreid.runs import run, run_dry  # noqa: E402

LISTS = ("sources", "targets", "transforms")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """torchreid's own flags and the options, which may also follow the names of a list directly."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", default="", help="YAML with differences from the defaults")
    parser.add_argument("-s", "--sources", nargs="+", default=[], help="source data sets")
    parser.add_argument("-t", "--targets", nargs="+", default=[], help="target data sets")
    parser.add_argument("--transforms", nargs="+", default=[], help="training transforms")
    parser.add_argument("--root", default="", help="folder that holds the data sets")
    parser.add_argument("--resume", default="", help="auto (the default): resume where it stopped; or a checkpoint")
    parser.add_argument("--dry-run", action="store_true", help="build all on stand-in data, print the plan, stop")
    parser.add_argument("options", nargs="*", help="KEY VALUE or KEY=VALUE, as in the YAML")
    parsed = parse_with_imports(parser, arguments, intermixed=True)  # flags may also follow the options
    for name in LISTS:
        words = getattr(parsed, name)
        end = next((place for place, word in enumerate(words) if "=" in word or "." in word), len(words))
        if words and end == 0:
            parser.error(f"--{name} is followed by '{words[0]}', which is an option; give a name first")
        setattr(parsed, name, words[:end])
        parsed.options = [*words[end:], *parsed.options]
    return parsed


@contextlib.contextmanager
def logged(folder: Path) -> Iterator[None]:
    """Messages to standard error above the bars, and everything, what stops the run included, to a file in its folder.

    Of several processes the first one logs; the others' warnings go to standard error.

    Raises:
        ConfigError: the folder cannot be written.
    """
    if not is_rank_zero():
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = logging.FileHandler(folder / "log.txt")
    except OSError as reason:
        raise oskt_torchreid.errors.ConfigError(
            f"data.save_dir '{folder}' cannot be written ({reason.strerror}); give another folder"
        ) from reason
    screen = logging.StreamHandler()
    screen.addFilter(lambda record: not record.name.startswith("oskt_torchreid.host"))  # torchreid's own messages
    logger = logging.getLogger("oskt_torchreid")
    logger.setLevel(logging.INFO)
    for handler in (screen, file):
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)
    try:
        with logging_redirect_tqdm([logger]):
            yield
    except (oskt_torchreid.OsktError, KeyboardInterrupt) as stop:
        file.handle(logging.makeLogRecord({"msg": _said(stop)}))  # the screen gets it at the end
        raise
    finally:
        for handler in (screen, file):
            logger.removeHandler(handler)
            handler.close()


def _said(stop: BaseException) -> str:
    """The message about the end of a run that was stopped."""
    if isinstance(stop, Terminated):
        return f"{stop}; run the same command again to resume"
    if isinstance(stop, KeyboardInterrupt):
        return "interrupted; run the same command again to resume"
    return f"{type(stop).__name__}: {stop}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the job; returns the exit status: 0, 2 for a user's error, 130 when interrupted, 143 by SIGTERM."""
    parsed = parse_arguments(arguments)
    flags = {f"data.{name}": getattr(parsed, name) for name in ("root", *LISTS)} | {"model.resume": parsed.resume}
    try:
        config = load_config(parsed.config_file, parsed.options, flags, parsed.imports)
        if parsed.dry_run:
            print(run_dry(config, given=given_keys(parsed.options)).summary())
            return 0
        folder = Path(config.data.save_dir)
        with joined_processes(config.use_gpu), logged(folder), on_termination(terminate):
            results, shown = run(config, given_keys(parsed.options)), is_rank_zero()
    except (oskt_torchreid.OsktError, KeyboardInterrupt) as stop:
        print(_said(stop), file=sys.stderr)
        if isinstance(stop, Terminated):
            return 143
        return 130 if isinstance(stop, KeyboardInterrupt) else 2
    if shown:
        print(text_table(results.rows))
        print(f"\nwritten to {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(status_of(main))
