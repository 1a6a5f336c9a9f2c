"""Writes a network into a file for ONNX Runtime, OpenVINO or TorchScript, and checks that the file computes the same.

python tools/export.py log/oskt_osnet/students/width=0.5/student.pth -o student.onnx
python tools/export.py my_teacher.pth.tar --model osnet_x1_0 -o teacher.xml --precision fp16
python tools/export.py student.pth -o student-int8.onnx --precision int8 --config-file configs/oskt_osnet.yaml
python tools/export.py --table -o docs/export.md

A network of your own is registered by a file that --import names; the folder of a run remembers it.
With a configuration or a data set (-t NAME --root FOLDER) the mAP of network and file are printed, and int8 is
calibrated with its training images.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import oskt_torchreid as oskt  # noqa: E402
from oskt_torchreid.cli import parse_with_imports, positive  # noqa: E402
from oskt_torchreid.config import import_for_file, load_config  # noqa: E402
from oskt_torchreid.deploy.export import FORMATS, OPSET, PRECISIONS, check_request  # noqa: E402
from oskt_torchreid.deploy.lifting import FEATURES  # noqa: E402
from oskt_torchreid.deploy.quantization import CALIBRATION_IMAGES  # noqa: E402
from oskt_torchreid.host.models import builder_of  # noqa: E402
from oskt_torchreid.host.termination import status_of  # noqa: E402
from oskt_torchreid.lab.exports import export_rows, markdown, update_document  # noqa: E402
from oskt_torchreid.models import backbone_names  # noqa: E402
from oskt_torchreid.runs.exporting import ExportReport, export_with_data, load_network  # noqa: E402
from oskt_torchreid.user_code import import_user_code  # noqa: E402


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", help="student's file, checkpoint, or registered model's name")
    parser.add_argument("-o", "--output", help="file to write: .onnx, .xml (OpenVINO, with .bin) or .torchscript")
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
    parser.add_argument("--size", type=positive, nargs=2, metavar=("H", "W"), help="default: the network's own")
    parser.add_argument("--opset", type=positive, default=OPSET, help=f"of ONNX's operators (default: {OPSET})")
    data = parser.add_argument_group("data set, for mAP and for int8")
    data.add_argument("--config-file", default="", help="of a run: its data, its test settings, its network")
    data.add_argument("--root", default="", help="folder that holds the data sets")
    data.add_argument("-t", "--target", default="", help="data set by name, instead of a configuration's")
    data.add_argument("--options", nargs="*", default=[], help="KEY VALUE or KEY=VALUE, as in the YAML")
    data.add_argument("--calibration-images", type=positive, default=CALIBRATION_IMAGES, help="default: 128")
    table = parser.add_argument_group("table")
    table.add_argument(
        "--table", nargs="*", metavar="NAME", help="try every backbone, or these; with -o: update a file"
    )
    parsed = parse_with_imports(parser, arguments)
    if parsed.table is None and not (parsed.source and parsed.output):
        parser.error("give a network and where it goes, such as: student.pth -o student.onnx")
    return parsed


def configured(arguments: argparse.Namespace) -> object:
    """The configuration that says what data there is; `None` without any."""
    if not (arguments.config_file or arguments.target or arguments.options):
        return None
    flags = {"data.root": arguments.root}
    if arguments.target:
        flags |= {"data.sources": [arguments.target], "data.targets": [arguments.target]}
    if arguments.size:
        flags |= {"data.height": arguments.size[0], "data.width": arguments.size[1]}
    return load_config(arguments.config_file, arguments.options, flags, arguments.imports)


def run_export(arguments: argparse.Namespace) -> None:
    """Exports one network and prints the result."""
    import_for_file(arguments.source, arguments.imports)
    check_request(Path(arguments.output), arguments.format, arguments.precision, arguments.opset)
    config = configured(arguments)
    network = load_network(arguments.source, arguments.model, config)
    options = {name: getattr(arguments, name) for name in ("format", "precision", "feature", "normalize", "opset")}
    options["output"] = "scores" if arguments.scores else "feature"
    if config is None:
        size = (3, *arguments.size) if arguments.size else None
        report = ExportReport(oskt.export(network, arguments.output, input_size=size, **options))
    else:
        report = export_with_data(network, arguments.output, config, arguments.calibration_images, **options)
    print(f"wrote {report.exported}")
    if report.map_before is not None:
        change = 100 * (report.map_after - report.map_before)
        numbers = f"{100 * report.map_before:.2f} of the network, {100 * report.map_after:.2f} of the file"
        print(f"mAP (%) on {config.data.targets[0]}: {numbers} ({change:+.2f})")


def run_table(arguments: argparse.Namespace) -> None:
    """Tries backbones and prints the table, or puts one row after the other into a file."""
    import_user_code(arguments.imports)
    names = arguments.table or backbone_names()
    for name in names:
        builder_of(name)
    rows = export_rows(names)
    if not arguments.output:
        print(markdown(rows))
        return
    for row in rows:
        update_document(arguments.output, row)
    print(f"wrote {len(names)} rows to {arguments.output}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 for errors that the user can fix."""
    parsed = parse_arguments(arguments)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        (run_export if parsed.table is None else run_table)(parsed)
    except oskt.OsktError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(status_of(main))
