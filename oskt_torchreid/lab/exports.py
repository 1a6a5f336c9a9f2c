"""Which backbone can be exported to what, found by trying: size of the file and parity, as a Markdown table."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from tabulate import tabulate
from torch import Tensor
from tqdm.auto import tqdm

from ..deploy.deployment import Deployment
from ..deploy.export import FORMATS, write_checked
from ..deploy.parity import pictures
from ..deploy.writing import Conversion
from ..errors import ConfigError, ExportError
from ..files import atomic
from ..host import models
from ..report.tables import human_count

HEADERS = ("backbone", "input", "parameters", "feature", *FORMATS, "onnx, int8")
SUFFIX = {"onnx": ".onnx", "openvino": ".xml", "torchscript": ".torchscript"}
BEGIN, END = "<!-- exports:begin -->", "<!-- exports:end -->"
_REASON = 90  # characters of a refusal


def export_rows(names: Iterable[str]) -> Iterator[tuple[str, ...]]:
    """Cells of each backbone: every format is written, run and compared at the size that the backbone is made for.

    A cell is the size of the file and the largest difference of a feature as a share of the largest entry; of eight
    bits, size and least cosine with the network's feature; or the first words of why there is no file. Parameters are
    those of the network with a classifier of one class, weights are initial, and pictures made up, those that calibrate
    too.
    """
    yield from map(_row, tqdm(list(names), disable=None, unit="backbone", leave=False))


def _row(name: str) -> tuple[str, ...]:
    torch.manual_seed(0)
    model = models.build(name, 1)
    size = models.input_size(name)
    params = human_count(sum(parameter.numel() for parameter in model.parameters()))
    deployment = Deployment.of(model, size)
    images = pictures(deployment.feeding)
    conversion = Conversion(deployment, images)  # single precision is not calibrated
    del model
    with TemporaryDirectory() as folder:
        cells = [_cell(conversion, Path(folder) / f"network{SUFFIX[kind]}", kind, images) for kind in FORMATS]
        cells.append(_cell(conversion, Path(folder) / "eight_bits.onnx", "onnx", images, "int8"))
    gc.collect()  # large networks, one after the other
    return name, "x".join(map(str, size[1:])), params, str(deployment.feature_dim), *cells


def _cell(conversion: Conversion, path: Path, kind: str, images: Sequence[Tensor], precision: str = "fp32") -> str:
    try:
        exported = write_checked(conversion, path, kind, precision, images)
    except ExportError as error:
        reason = str(error).replace(f"'{path}' ", "")
        return f"no: {re.split(r' [(;]', reason)[0][:_REASON]}"
    parity = exported.parity
    difference = f"cosine {parity.cosine:.4f}" if precision == "int8" else f"{parity.relative:.0e}"
    return f"{exported.size / 1e6:.2f} MB, {difference}"


def markdown(rows: Iterable[Sequence[str]]) -> str:
    """The table in Markdown."""
    alignment = ("left", "left", *["right"] * (len(HEADERS) - 2))
    return tabulate(list(rows), headers=HEADERS, tablefmt="github", colalign=alignment, disable_numparse=True)


def update_document(path: str | Path, row: Sequence[str]) -> None:
    """Puts a row into the table of a Markdown file, atomically; rows of other backbones stay.

    Args:
        path: file with the two markers; the table between them is replaced.
        row: cells of a backbone.

    Raises:
        ConfigError: a file without markers.
    """
    path = Path(path)
    text = path.read_text(encoding="utf-8") if path.is_file() else f"{BEGIN}\n{END}\n"
    if not (BEGIN in text and text.index(BEGIN) < text.find(END)):
        raise ConfigError(f"'{path}' has no lines '{BEGIN}' and '{END}' for the table to stand between; add them")
    head, rest = text.split(BEGIN, 1)
    old, tail = rest.split(END, 1)
    together = {**parsed_rows(old), row[0]: tuple(row)}
    order = {name: place for place, name in enumerate(models.model_names())}
    ordered = [together[name] for name in sorted(together, key=lambda name: order.get(name, len(order)))]
    with atomic(path) as temporary:
        temporary.write_text(f"{head}{BEGIN}\n{markdown(ordered)}\n{END}{tail}", encoding="utf-8")


def parsed_rows(table: str) -> dict[str, tuple[str, ...]]:
    """Cells per backbone of a Markdown table that this module wrote."""
    lines = [line for line in table.splitlines() if line.startswith("|")][2:]
    cells = [tuple(re.split(r"\s*\|\s*", line.strip().strip("|").strip())) for line in lines]
    return {row[0]: row for row in cells}
