"""Pictures to look at.

oskt visualize synthped -o sheet.png                   contact sheet of the synthetic pedestrians
oskt visualize synthped_video -o sheet.png             contact sheet of their tracklets
oskt visualize gradcam log/vkd_synthped -o maps.png    heat maps of teacher and students of a run of VKD
oskt visualize camera log/vkd_synthped -o camera.png   how well cameras are read off their embeddings
oskt visualize views log/vkd_synthped -o views.png     mAP to sets of views and to tracklets over time
oskt visualize gallery log/vkd_synthped -o sizes.png   mAP against frames per gallery tracklet
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..cli import parse_with_imports, parser_of, positive, say, subcommand
from ..datasets.contact_sheet import contact_sheet, tracklet_sheet
from ..datasets.stripes import stripe_baseline
from ..datasets.synthetic import PRESETS, preset, video_preset
from ..datasets.synthped import SynthPed
from ..errors import DataError
from ..files import atomic
from ..runs import compare_gallery_sizes, compare_views, draw_heat_maps, probe_cameras
from ..runs.vkd.heat_maps import CLASS, SIMILARITY
from ..vkd.analysis import COUNTS, DRAWS
from ..vkd.camera_probe import FOLDS


def show_synthped(arguments: argparse.Namespace) -> None:
    """Writes a contact sheet of the synthetic pedestrians; with --stripes also scores the colour baseline."""
    settings = preset(arguments.preset, **_changes(arguments))
    _write_sheet(arguments, settings, contact_sheet, "a row per person, a column per camera and walk")
    if arguments.stripes:
        dataset = SynthPed(arguments.root, settings, verbose=False)
        for balanced, title in ((False, "statistics per camera"), (True, "also balanced per picture")):
            score = stripe_baseline(dataset, balanced=balanced)
            say(f"colour stripes, {title}: mAP {score.mean_precision:.1%}, rank-1 {score.rank1:.1%}")


def show_synthped_video(arguments: argparse.Namespace) -> None:
    """Writes a contact sheet of the synthetic tracklets."""
    settings = video_preset(arguments.preset, **_changes(arguments))
    _write_sheet(arguments, settings, tracklet_sheet, "a row per person and camera")


def _write_sheet(arguments: argparse.Namespace, settings: Any, draw: Callable[..., np.ndarray], what: str) -> None:
    """Draws a sheet `[height, width, 3]` of some people, writes it and says what is on it."""
    sheet = draw(settings, arguments.rows, arguments.first, split=int(arguments.test))
    out = Path(arguments.out)
    write_picture(out, sheet)
    say(f"wrote {out} ({sheet.shape[1]} x {sheet.shape[0]} pixels, {what})")


def show_heat_maps(arguments: argparse.Namespace) -> None:
    """Writes Grad-CAM of a run's teacher and students on the same frames."""
    sheet = (arguments.out, arguments.identities, arguments.frames, arguments.score)
    draw_heat_maps(arguments.folder, *sheet, options=arguments.options)
    say(f"wrote {arguments.out}")


def show_cameras(arguments: argparse.Namespace) -> None:
    """Prints, and draws, how well cameras are read off the embeddings of a run's networks."""
    probe = (arguments.folder, arguments.out, arguments.folds, arguments.seed)
    _print_table(probe_cameras(*probe, options=arguments.options), arguments.out)


def show_views(arguments: argparse.Namespace) -> None:
    """Prints, and draws, mAP to sets of views and to sets over time."""
    drawn = (arguments.counts, arguments.draws, arguments.seed)
    _print_table(compare_views(arguments.folder, arguments.out, *drawn, options=arguments.options), arguments.out)


def show_gallery_sizes(arguments: argparse.Namespace) -> None:
    """Prints, and draws, mAP against frames per gallery tracklet."""
    sizes = (arguments.counts, arguments.protocol)
    table = compare_gallery_sizes(arguments.folder, arguments.out, *sizes, options=arguments.options)
    _print_table(table, arguments.out)


def _print_table(table: str, out: str) -> None:
    say(table)
    if out:
        say(f"wrote {out}")


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


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = parser_of("visualize", __doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    synthped = commands.add_parser("synthped", help="contact sheet of the synthetic pedestrians")
    _add_sheet(synthped, rows=8)
    synthped.add_argument("--stripes", action="store_true", help="also score the colour-stripe baseline")
    synthped.add_argument("--root", default="reid-data", help="where --stripes draws the set (default: reid-data)")
    synthped.set_defaults(run=show_synthped)
    video = commands.add_parser("synthped_video", help="contact sheet of their tracklets")
    _add_sheet(video, rows=2)
    video.set_defaults(run=show_synthped_video)
    _add_analyses(commands)
    return parser


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line of all subcommands; `run` is the chosen one."""
    return parse_with_imports(make_parser(), arguments)


def _add_analyses(commands: argparse._SubParsersAction) -> None:
    """Subcommands that look into a finished run of VKD."""
    maps = _add_analysis(
        commands, "gradcam", "heat maps of a run's teacher and students", show_heat_maps, "gradcam.png"
    )
    maps.add_argument("--identities", type=positive, default=4, help="rows (default: 4)")
    maps.add_argument("--frames", type=positive, default=2, help="frames of each one's tracklet (default: 2)")
    maps.add_argument("--score", choices=(SIMILARITY, CLASS), default=SIMILARITY, help="what the maps explain")
    camera = _add_analysis(commands, "camera", "how well cameras are read off embeddings", show_cameras)
    camera.add_argument("--folds", type=positive, default=FOLDS, help=f"of identities (default: {FOLDS})")
    views = _add_analysis(commands, "views", "mAP to sets of views and to tracklets over time", show_views)
    views.add_argument("--draws", type=positive, default=DRAWS, help=f"that are averaged (default: {DRAWS})")
    for command in (camera, views):
        command.add_argument("--seed", type=int, default=0, help="of random draws (default: 0)")
    gallery = _add_analysis(commands, "gallery", "mAP against frames per gallery tracklet", show_gallery_sizes)
    gallery.add_argument("--protocol", choices=("I2V", "V2V"), default="I2V", help="queries (default: I2V, images)")
    for command in (views, gallery):
        command.add_argument("--counts", type=positive, nargs="+", default=list(COUNTS), help="numbers of frames")


def _add_analysis(
    commands: argparse._SubParsersAction, name: str, help: str, run: Callable[..., None], out: str = ""
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=help)
    command.add_argument("folder", help="of a run of VKD, such as log/vkd_synthped")
    command.add_argument("-o", "--out", default=out, help=f"PNG to write (default: {out or 'none'})")
    command.add_argument("--options", nargs="*", default=[], help="KEY VALUE or KEY=VALUE, such as data.root=PATH")
    command.set_defaults(run=run)
    return command


def _add_sheet(parser: argparse.ArgumentParser, rows: int) -> None:
    parser.add_argument("--preset", default="quick", help=f"one of {', '.join(PRESETS)} (default: quick)")
    parser.add_argument("--seed", type=int, help="data seed (default: as in the preset)")
    parser.add_argument("--height", type=int, help="height of a picture in pixels")
    parser.add_argument("--width", type=int, help="width of a picture in pixels")
    parser.add_argument("--rows", type=positive, default=rows, help=f"number of people (default: {rows})")
    parser.add_argument("--first", type=int, default=0, help="number of the first person (default: 0)")
    parser.add_argument("--test", action="store_true", help="people of the test split instead of train")
    parser.add_argument("-o", "--out", default="sheet.png", help="picture to write (default: sheet.png)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a subcommand; returns the exit status."""
    parsed = parse_arguments(arguments)
    return subcommand(parsed)
