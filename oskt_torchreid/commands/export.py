"""Writes a network into a file for ONNX Runtime, OpenVINO or TorchScript, and checks that the file computes the same.

oskt export log/oskt_osnet/students/width=0.5/student.pth -o student.onnx
oskt export my_teacher.pth.tar --model osnet_x1_0 -o teacher.xml --precision fp16
oskt export student.pth -o student-int8.onnx --precision int8 --config-file configs/oskt_osnet.yaml
oskt export student.pth -o student.onnx --client ultralytics
oskt export log/oskt_osnet/chain.safetensors --grid 0.25 0.5 0.75 1.0 -o widths
oskt export --table -o docs/export.md

A network of your own is registered by a file that --import names; the folder of a run remembers it.
With a configuration or data (--data crops/, or -t NAME --root FOLDER) the mAP of network and file are printed, and
int8 is calibrated with its training images.
"""

import argparse
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from ..cli import carried_out, parse_with_imports, parser_of, positive, say
from ..config import import_for_file, load_config
from ..config.allowed import LONGEST_SIDE
from ..datasets.crops import keys_of_run
from ..deploy import export
from ..deploy.eight_bits import EightBits
from ..deploy.export import FORMATS, OPSET, PRECISIONS, check_request
from ..deploy.feeding import INPUTS
from ..deploy.lifting import FEATURES
from ..deploy.quantization import CALIBRATION_IMAGES, RANGES
from ..errors import ConfigError
from ..host.models import builder_of
from ..lab.exports import export_rows, markdown, update_document
from ..models import backbone_names
from ..runs.clients import CLIENTS, export_for_client
from ..runs.exporting import GRID_NAME, ExportReport, export_grid, export_with_data, load_network
from ..user_code import import_user_code


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = parser_of("export", __doc__)
    parser.add_argument("source", nargs="?", help="student's file, checkpoint, registered model's name; or a chain")
    parser.add_argument("-o", "--output", help="file to write: .onnx, .xml (OpenVINO, with .bin) or .torchscript")
    parser.add_argument(
        "--grid",
        type=float,
        nargs="+",
        metavar="WIDTH",
        help="of a chain: a file per width into the folder -o, and a CSV for what a device takes for each",
    )
    parser.add_argument("--client", default="", choices=CLIENTS, help="a program that the file is made for")
    parser.add_argument("--format", default="", choices=FORMATS, help="default: by the suffix")
    parser.add_argument(
        "--model",
        default="",
        help="registered model whose checkpoint it is; students need none, if their teacher was registered",
    )
    parser.add_argument("--precision", default="fp32", choices=PRECISIONS, help="default: fp32")
    parser.add_argument("--scores", action="store_true", help="class scores of a network that gives them in evaluation")
    parser.add_argument(
        "--feature",
        default=FEATURES[0],
        choices=FEATURES,
        help="teacher: lifted, so that students of all widths share one gallery (default: own)",
    )
    parser.add_argument("--normalize", action="store_true", help="divide features by their L2 norm inside of the file")
    parser.add_argument(
        "--input",
        default=INPUTS[0],
        choices=INPUTS,
        help="what the file is fed with: float, normalised images; unit, images of 0 to 1; uint8, pixels [batch, "
        "height, width, channels] (default: float)",
    )
    parser.add_argument(
        "--inputs", default="free", choices=("free", "static"), help="static: a fixed number of images (default: free)"
    )
    parser.add_argument("--batch", type=positive, default=0, help="that number (default: 1)")
    parser.add_argument("--size", type=positive, nargs=2, metavar=("H", "W"), help="default: the network's own")
    parser.add_argument("--opset", type=positive, default=OPSET, help=f"of ONNX's operators (default: {OPSET})")
    data = parser.add_argument_group("data set, for mAP and for int8")
    data.add_argument("--config-file", default="", help="of a run: its data, its test settings, its network")
    data.add_argument("--root", default="", help="folder that holds the data sets")
    data.add_argument("--data", default="", help="folder with a folder of crops per identity, or a CSV of them")
    data.add_argument("-t", "--target", default="", help="data set by name, instead of a configuration's")
    data.add_argument("--options", nargs="*", default=[], help="KEY VALUE or KEY=VALUE, as in the YAML")
    data.add_argument("--calibration-images", type=positive, default=CALIBRATION_IMAGES, help="default: 128")
    eight = parser.add_argument_group("int8")
    eight.add_argument("--max-drop", type=float, help="points of mAP; the fewest layers stay in fp16 for it")
    eight.add_argument("--keep", nargs="+", default=[], metavar="LAYER", help="these stay in fp16, see --layers")
    eight.add_argument("--ranges", default=RANGES[0], choices=RANGES, help="of activations (default: largest)")
    eight.add_argument("--no-equalize", action="store_true", help="leave ranges of channels as they are")
    eight.add_argument("--layers", action="store_true", help="print what each layer loses in eight bits by itself")
    table = parser.add_argument_group("table")
    table.add_argument(
        "--table", nargs="*", metavar="NAME", help="try every backbone, or these; with -o: update a file"
    )
    return parser


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = make_parser()
    parsed = parse_with_imports(parser, arguments)
    if parsed.size and max(parsed.size) > LONGEST_SIDE:
        parser.error(f"--size is {parsed.size[0]} {parsed.size[1]}; allowed: up to {LONGEST_SIDE} pixels each")
    if parsed.table is None and not (parsed.source and parsed.output):
        parser.error("give a network and where it goes, such as: student.pth -o student.onnx")
    return parsed


def configured(arguments: argparse.Namespace) -> Any:
    """The configuration that says what data there is; `None` without any."""
    if not (arguments.config_file or arguments.data or arguments.target or arguments.options):
        return None
    named = [arguments.target] if arguments.target else []
    flags = keys_of_run(arguments.data, named, named) | {"data.root": arguments.root}
    if arguments.size:
        flags |= {"data.height": arguments.size[0], "data.width": arguments.size[1]}
    return load_config(arguments.config_file, arguments.options, flags, arguments.imports)


def run_export(arguments: argparse.Namespace) -> None:
    """Exports one network and prints the result."""
    import_for_file(arguments.source, arguments.imports)
    batch = (arguments.batch or 1) if arguments.inputs == "static" else None
    check_request(Path(arguments.output), arguments.format, arguments.precision, arguments.opset, batch)
    config = configured(arguments)
    if arguments.max_drop is not None and config is None:
        raise ConfigError(
            "--max-drop is measured on a data set; give a configuration, --data crops/, or -t NAME --root FOLDER"
        )
    network = load_network(arguments.source, arguments.model, config)
    named = ("format", "precision", "feature", "normalize", "opset", "input")
    options = {name: getattr(arguments, name) for name in named}
    options["output"] = "scores" if arguments.scores else "feature"
    options["batch"] = batch
    kept = tuple(arguments.keep)
    options["eight_bits"] = EightBits(arguments.ranges, not arguments.no_equalize, kept, report=arguments.layers)
    if config is None and arguments.precision == "int8":
        raise ConfigError(
            "--precision int8 needs real images to find the range of every activation; give --data crops/, a "
            "configuration of a run (--config-file), or -t NAME --root FOLDER"
        )
    if config is None:
        size = (3, *arguments.size) if arguments.size else None
        report = ExportReport(export(network, arguments.output, input_size=size, **options))
    else:
        limits = (arguments.calibration_images, arguments.max_drop)
        report = export_with_data(network, arguments.output, config, *limits, **options)
    say(f"wrote {report.exported}")
    if report.exported.layers:
        rows = [(name, f"{100 * relative:.2f}", f"{cosine:.5f}") for name, relative, cosine in report.exported.layers]
        say(tabulate(rows, ("layer in eight bits", "change of features (%)", "least cosine"), disable_numparse=True))
    if config is not None and report.map_before is not None and report.map_after is not None:
        change = 100 * (report.map_after - report.map_before)
        numbers = f"{100 * report.map_before:.2f} of the network, {100 * report.map_after:.2f} of the file"
        say(f"mAP (%) on {config.data.targets[0]}: {numbers} ({change:+.2f})")


def run_client(arguments: argparse.Namespace) -> None:
    """Writes a network as another program takes it."""
    import_for_file(arguments.source, arguments.imports)
    if arguments.precision == "int8" or arguments.scores:
        raise ConfigError("--client takes features in fp32 or fp16; leave out --scores and --precision int8")
    config = configured(arguments)
    network = load_network(arguments.source, arguments.model, config)
    named = ("precision", "feature", "normalize", "opset")
    options = {name: getattr(arguments, name) for name in named}
    options["batch"] = (arguments.batch or 1) if arguments.inputs == "static" else None
    if config is not None:
        data = config.data
        options |= {"input_size": (3, data.height, data.width), "mean": data.norm_mean, "std": data.norm_std}
    elif arguments.size:
        options["input_size"] = (3, *arguments.size)
    made = export_for_client(network, arguments.client, arguments.output, **options)
    if made.exported:
        say(f"wrote {made.exported}")
    say(f"wrote {made.given}, which {arguments.client} is given")


def run_grid(arguments: argparse.Namespace) -> None:
    """Exports students of several widths, and writes the table that their latencies on a device go into."""
    import_for_file(arguments.source, arguments.imports)
    named = ("precision", "feature", "normalize", "opset", "input")
    options = {name: getattr(arguments, name) for name in named}
    options["batch"] = (arguments.batch or 1) if arguments.inputs == "static" else None
    written = export_grid(arguments.source, arguments.grid, arguments.output, arguments.format or "onnx", **options)
    for exported in written:
        say(f"wrote {exported}")
    say(f"wrote {Path(arguments.output) / GRID_NAME}: fill in milliseconds, then oskt expand --measured takes it")


def run_table(arguments: argparse.Namespace) -> None:
    """Tries backbones and prints the table, or puts one row after the other into a file."""
    import_user_code(arguments.imports)
    names = arguments.table or backbone_names()
    for name in names:
        builder_of(name)
    rows = export_rows(names)
    if not arguments.output:
        say(markdown(rows))
        return
    for row in rows:
        update_document(arguments.output, row)
    say(f"wrote {len(names)} rows to {arguments.output}")


def _chosen(parsed: argparse.Namespace) -> Callable[[argparse.Namespace], None]:
    if parsed.table is not None:
        return run_table
    return run_grid if parsed.grid else run_client if parsed.client else run_export


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 for errors that the user can fix."""
    parsed = parse_arguments(arguments)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    return carried_out(lambda: _chosen(parsed)(parsed))
