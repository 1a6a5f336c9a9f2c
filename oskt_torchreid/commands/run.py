"""Runs a configuration: trains a teacher, refines a weight chain, expands and fine-tunes students, reports.

oskt run oskt_osnet
oskt run configs/paper/oskt/res50_chain8_market1501.yaml --dry-run
oskt run oskt_osnet -s market1501 -t market1501 --root ~/reid-data KEY VALUE ...
oskt run oskt_market1501 --data crops/ oskt.teacher=teacher.pth
oskt run --import mine.py -s mine -t mine --root ~/reid-data --dry-run
torchrun --nproc_per_node 2 -m oskt_torchreid run oskt_osnet

A configuration is a file, or the name of one that comes with the package (`oskt config --files`).
"""

import argparse
import contextlib
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm.contrib.logging import logging_redirect_tqdm

from ..cli import parse_with_imports, parser_of, say
from ..config import default_config, given_keys, load_config
from ..datasets.crops import keys_of_run
from ..errors import ConfigError, OsktError, Terminated
from ..host.distributed import is_rank_zero, joined_processes
from ..host.termination import on_termination, terminate
from ..report import text_table
from ..runs import run, run_dry

LOG_NAME = "log.txt"
LISTS = ("sources", "targets", "transforms")


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = parser_of("run", __doc__)
    parser.add_argument("--config-file", default="", help="YAML with differences from the defaults")
    parser.add_argument("-s", "--sources", nargs="+", default=[], help="source data sets")
    parser.add_argument("-t", "--targets", nargs="+", default=[], help="target data sets")
    parser.add_argument("--transforms", nargs="+", default=[], help="training transforms")
    parser.add_argument("--data", default="", help="folder with a folder of crops per identity, or a CSV of them")
    parser.add_argument("--root", default="", help="folder that holds the data sets")
    parser.add_argument("--resume", default="", help="auto (the default): resume where it stopped; or a checkpoint")
    parser.add_argument("--dry-run", action="store_true", help="build all on stand-in data, print the plan, stop")
    parser.add_argument("options", nargs="*", help="KEY VALUE or KEY=VALUE, as in the YAML")
    return parser


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """torchreid's own flags and the options, which may also follow the names of a list directly."""
    parser = make_parser()
    parsed = parse_with_imports(parser, arguments, intermixed=True)  # flags may also follow the options
    if parsed.options and not parsed.config_file and _names_file(parsed.options[0]):
        parsed.config_file, *parsed.options = parsed.options
    for name in LISTS:
        words = getattr(parsed, name)
        end = next((place for place, word in enumerate(words) if "=" in word or "." in word), len(words))
        if words and end == 0:
            parser.error(f"--{name} is followed by '{words[0]}', which is an option; give a name first")
        setattr(parsed, name, words[:end])
        parsed.options = [*words[end:], *parsed.options]
    return parsed


def _names_file(word: str) -> bool:
    """Whether the first word after the command is a configuration, not a key: `oskt_osnet`, `mine.yaml`."""
    return word.endswith((".yaml", ".yml")) or not ("=" in word or "." in word or word in default_config())


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
    new = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = logging.FileHandler(folder / LOG_NAME)
    except OSError as reason:
        raise ConfigError(
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
    except (OsktError, KeyboardInterrupt) as stop:
        file.handle(logging.makeLogRecord({"msg": _said(stop)}))  # the screen gets it at the end
        raise
    finally:
        for handler in (screen, file):
            logger.removeHandler(handler)
            handler.close()
        _remove_unused(new)


def _remove_unused(new: Sequence[Path]) -> None:
    """Removes the folders that a run made, if it was refused before it wrote anything but its log."""
    if new and [path.name for path in new[0].iterdir()] == [LOG_NAME]:
        (new[0] / LOG_NAME).unlink()
        for place in new:
            with contextlib.suppress(OSError):  # somebody else has written into it
                place.rmdir()


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
    flags = keys_of_run(parsed.data, parsed.sources, parsed.targets)
    flags |= {"data.root": parsed.root, "data.transforms": parsed.transforms, "model.resume": parsed.resume}
    try:
        config = load_config(parsed.config_file, parsed.options, flags, parsed.imports)
        if parsed.dry_run:
            say(run_dry(config, given=given_keys(parsed.options)).summary())
            return 0
        folder = Path(config.data.save_dir)
        with joined_processes(config.use_gpu), logged(folder), on_termination(terminate):
            results, first = run(config, given_keys(parsed.options)), is_rank_zero()
    except (OsktError, KeyboardInterrupt) as stop:
        sys.stderr.write(f"{_said(stop)}\n")
        if isinstance(stop, Terminated):
            return 143
        return 130 if isinstance(stop, KeyboardInterrupt) else 2
    if first:
        say(text_table(results.rows))
        say(f"\nwritten to {folder}")
    return 0
