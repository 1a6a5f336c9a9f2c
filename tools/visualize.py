"""Pictures to look at: `python tools/visualize.py synthped --out sheet.png`, `... synthped_video --out sheet.png`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from oskt_torchreid.data.contact_sheet import contact_sheet, tracklet_sheet  # noqa: E402
from oskt_torchreid.data.stripes import stripe_baseline  # noqa: E402
from oskt_torchreid.data.synthetic import PRESETS, preset, video_preset  # noqa: E402
from oskt_torchreid.data.synthped import SynthPed  # noqa: E402
from oskt_torchreid.errors import DataError, OsktError  # noqa: E402
from oskt_torchreid.files import atomic  # noqa: E402


def show_synthped(arguments: argparse.Namespace) -> None:
    """Writes a contact sheet of the synthetic pedestrians; with --stripes also scores the colour baseline."""
    settings = preset(arguments.preset, **_changes(arguments))
    sheet = contact_sheet(settings, arguments.rows, arguments.first, split=int(arguments.test))
    out = Path(arguments.out)
    write_picture(out, sheet)
    print(f"wrote {out} ({sheet.shape[1]} x {sheet.shape[0]} pixels, a row per person, a column per camera and walk)")
    if arguments.stripes:
        dataset = SynthPed(arguments.root, settings, verbose=False)
        for balanced, title in ((False, "statistics per camera"), (True, "also balanced per picture")):
            score = stripe_baseline(dataset, balanced=balanced)
            print(f"colour stripes, {title}: mAP {score.mean_precision:.1%}, rank-1 {score.rank1:.1%}")


def show_synthped_video(arguments: argparse.Namespace) -> None:
    """Writes a contact sheet of the synthetic tracklets."""
    settings = video_preset(arguments.preset, **_changes(arguments))
    sheet = tracklet_sheet(settings, arguments.rows, arguments.first, split=int(arguments.test))
    out = Path(arguments.out)
    write_picture(out, sheet)
    print(f"wrote {out} ({sheet.shape[1]} x {sheet.shape[0]} pixels, a row per person and camera)")


def _changes(arguments: argparse.Namespace) -> dict[str, int]:
    """Settings that the command line changes."""
    chosen = {name: getattr(arguments, name) for name in ("seed", "height", "width")}
    return {name: value for name, value in chosen.items() if value is not None}


def write_picture(path: Path, picture: np.ndarray) -> None:
    """Writes a picture atomically.

    Raises:
        DataError: The path cannot be written or has another ending than .png or .jpg.
    """
    if path.suffix.lower() not in (".png", ".jpg"):
        raise DataError(f"--out '{path}' ends in '{path.suffix}'; give a path that ends in .png or .jpg")
    try:
        with atomic(path) as temporary:
            temporary.write_bytes(cv2.imencode(path.suffix, picture)[1].tobytes())
    except OSError as reason:
        raise DataError(f"--out '{path}' cannot be written ({reason.strerror}); give another path") from reason


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not 1 or more")
    return value


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line of all subcommands; `run` is the chosen one."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    synthped = commands.add_parser("synthped", help="contact sheet of the synthetic pedestrians")
    _add_sheet(synthped, rows=8)
    synthped.add_argument("--stripes", action="store_true", help="also score the colour-stripe baseline")
    synthped.add_argument("--root", default="reid-data", help="where --stripes draws the set (default: reid-data)")
    synthped.set_defaults(run=show_synthped)
    video = commands.add_parser("synthped_video", help="contact sheet of their tracklets")
    _add_sheet(video, rows=2)
    video.set_defaults(run=show_synthped_video)
    return parser.parse_args(arguments)


def _add_sheet(parser: argparse.ArgumentParser, rows: int) -> None:
    parser.add_argument("--preset", default="quick", help=f"one of {', '.join(PRESETS)} (default: quick)")
    parser.add_argument("--seed", type=int, help="data seed (default: as in the preset)")
    parser.add_argument("--height", type=int, help="height of a picture in pixels")
    parser.add_argument("--width", type=int, help="width of a picture in pixels")
    parser.add_argument("--rows", type=_positive, default=rows, help=f"number of people (default: {rows})")
    parser.add_argument("--first", type=int, default=0, help="number of the first person (default: 0)")
    parser.add_argument("--test", action="store_true", help="people of the test split instead of train")
    parser.add_argument("--out", default="sheet.png", help="picture to write (default: sheet.png)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a subcommand; returns the exit status."""
    parsed = parse_arguments(arguments)
    try:
        parsed.run(parsed)
    except OsktError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
