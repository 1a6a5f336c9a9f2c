"""The authors' files of a vision transformer's chain ("gene" is their word for a chain row): names and reading.

The teacher is under `base.`, with its necks and classifier outside. A chain's matrix is next to the teacher's as
`*_weight_gene`, its full-length biases and norms as `*_bias_gene` and `norm*_gene.*`; `*s.s1.*` are the S-student's
necks and classifier. Everything else with `s1` or `entire` in its name is scratch of the program, and `fc` is a
classifier that it never calls. The S-student has the chain's bias of `proj`; students take the teacher's.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from torch import Tensor, nn

from ..errors import ZooError
from ..graph import rebuild
from ..host.models import without_memory
from ..models.vit import VisionTransformer
from .account import LabelReader, StateReader
from .content import OfficialContent, RowLabels, spread_columns, widened

TEACHER_PREFIX = "base."
STREAM = "dw_proj_fc2"
DERIVED_NAMES = re.compile(r"\.(s1|entire)\.|^base\.fc\.(weight|bias)$")
TOKENS = ("cls_token", "part_token1", "part_token2", "part_token3")
POSITIONS = ("cls_pos", "part1_pos", "part2_pos", "part3_pos")
NECKS = ("bottleneck", "bottleneck_1", "bottleneck_2", "bottleneck_3")
RUNNING_STATISTICS = ("running_mean", "running_var")
NORM = ("weight", "bias", *RUNNING_STATISTICS)


class Matrix(NamedTuple):
    """One linear layer.

    Attributes:
        name: such as `blocks.0.mlp.fc1`.
        labels: key of its labels.
        rows: its rows, in units of the embedding's width.
        columns: its columns, in the same unit.
        bias: whether it has one, and the chain another one.
    """

    name: str
    labels: str
    rows: int
    columns: int
    bias: bool = True

    @property
    def chain(self) -> str:
        """Beginning of the names of the chain's tensors."""
        return f"{TEACHER_PREFIX}{self.name}_"

    @property
    def takes_teachers_bias(self) -> bool:
        """Whether students take the teacher's bias and only the S-student the chain's."""
        return self.name.endswith(".proj")


def matrices(depth: int) -> Iterator[Matrix]:
    """Every matrix of a vision transformer whose rows are clustered."""
    yield Matrix("dw", STREAM, 1, 1, bias=False)
    for block in (f"blocks.{number}" for number in range(depth)):
        yield Matrix(f"{block}.attn.qkv", f"{block}.attn.qkv", 3, 1)
        yield Matrix(f"{block}.attn.proj", f"{block}.attn.proj", 1, 1)
        yield Matrix(f"{block}.mlp.fc1", f"{block}.mlp.fc1", 4, 1)
        yield Matrix(f"{block}.mlp.fc2", f"{block}.mlp.fc2", 1, 4)


def norms(depth: int) -> Iterator[str]:
    """Every layer norm of a vision transformer."""
    for number in range(depth):
        yield f"blocks.{number}.norm1"
        yield f"blocks.{number}.norm2"
    yield "norm"


def read_vit(reader: StateReader, labels: LabelReader, loss: str, num_heads: int | None) -> OfficialContent:
    """The chain in a vision transformer's files: sizes are read off the shapes, the number of heads off the labels.

    Raises:
        ZooError: a tensor or labels that are missing, unexpected or of another shape, with file and key; heads that do
            not divide the width, or labels that cross heads.
    """
    depth = reader.count(r"base\.blocks\.(\d+)\.")
    if depth == 0:
        raise ZooError(f"'{reader.path}' has no tensor 'base.blocks.0...'; a vision transformer has blocks")
    width = reader.rows("base.patch_embed.proj.weight", 4)
    row_labels = {f"{part.name}.weight": _row_labels(labels, part, width) for part in matrices(depth)}
    heads = count_heads(row_labels, width, num_heads, labels.path)
    tensors = _read_frame(reader, width)
    found = OfficialContent(nn.Identity(), (3, 0, 0), row_labels, {}, attention="paper")
    for part in matrices(depth):
        tensors.update(_read_matrix(reader, part, width, row_labels[f"{part.name}.weight"], found))
    for name in norms(depth):
        for end in ("weight", "bias"):
            tensors[f"{name}.{end}"] = reader.take(f"{TEACHER_PREFIX}{name}.{end}", (width,))
            found.vectors[f"{name}.{end}"] = reader.take(f"{TEACHER_PREFIX}{name}_gene.{end}", (width,))
    tensors.update(_read_head(reader, width, row_labels["dw.weight"].clusters, found))
    reader.close()
    labels.close()
    model, input_size = _skeleton(tensors, depth, heads, loss, reader)
    return replace(found, teacher=rebuild(model, tensors), input_size=input_size)


def _row_labels(labels: LabelReader, part: Matrix, width: int) -> RowLabels:
    """Clusters of one matrix. Of queries, keys and values the file has four lists, which must say the same."""
    rows = labels.take(part.labels, part.rows * width)
    if part.rows != 3:
        return RowLabels(part.labels, rows, rows)
    names = [part.labels.removesuffix("qkv") + letter for letter in "qkv"]
    queries, keys, values = (labels.take(name, width) for name in names)
    count = int(queries.max()) + 1
    for name, own in zip(names, (queries, keys, values), strict=True):
        if not np.array_equal(own, queries):
            raise ZooError(f"'{name}' and '{names[0]}' in '{labels.path}' differ; channels of a head have one cluster")
    if not np.array_equal(rows, np.concatenate([queries, queries + count, queries + 2 * count])):
        raise ZooError(
            f"'{part.labels}' in '{labels.path}' does not follow from '{names[0]}': it must be that list three times, "
            f"with {count} and {2 * count} added to the second and third"
        )
    return RowLabels(part.labels, np.tile(queries, 3), rows)


def count_heads(labels: Mapping[str, RowLabels], width: int, asked: int | None, path: object) -> int:
    """Number of heads: the most equal parts that clusters do not cross, in most of the blocks.

    Args:
        labels: per tensor name; those of queries, keys and values count.
        width: of queries.
        asked: the required number; `None`: read it from the labels.
        path: file of the labels, for messages.

    Returns:
        Example: queries of 4 channels with the labels `[1, 0, 2, 3]` have 2 heads.

    Raises:
        ZooError: the width or the chain's cannot be divided by the heads, or clusters cross them.
    """
    queries = {own.key: own.clusters[:width] for own in labels.values() if len(own.rows) == 3 * width}
    if asked is not None and (asked < 1 or width % asked):
        raise ZooError(f"embed dim {width} of the chain in '{path}' is not divisible by {asked} heads; give a divisor")
    finest = {key: _parts(clusters) for key, clusters in queries.items()}
    counts = Counter(finest.values())
    heads = asked or max(counts, key=lambda number: (counts[number], number))
    crossing = [key for key, number in finest.items() if number % heads]
    if crossing:
        raise ZooError(
            f"'{crossing[0]}' in '{path}' has clusters that cross heads: {heads} heads of embed dim {width} "
            f"are heads of {width // heads} channels, which need clusters of their own, equally many in each; if the "
            "number of heads is another one, give it as num_heads"
        )
    return heads


def _parts(clusters: np.ndarray) -> int:
    """The largest number of equal parts, in order, that have equally many clusters each, in order, and share none."""
    width, count = len(clusters), int(clusters.max()) + 1
    fitting = [
        number
        for number in range(1, count + 1)
        if width % number == 0
        and count % number == 0
        and np.array_equal(clusters // (count // number), np.arange(width) // (width // number))
    ]
    return fitting[-1]


def _read_frame(reader: StateReader, width: int) -> dict[str, Tensor]:
    """Tensors that keep the teacher's width: patches, tokens, positions."""
    patch = reader.state["base.patch_embed.proj.weight"].shape[-1]
    tensors = {"patch_embed.proj.weight": (width, 3, patch, patch), "patch_embed.proj.bias": (width,)}
    tensors.update(dict.fromkeys((*TOKENS, *POSITIONS), (1, 1, width)))
    positions = reader.shape("base.pos_embed", 3)[1]
    tensors["pos_embed"] = (1, positions, width)
    return {name: reader.take(TEACHER_PREFIX + name, shape) for name, shape in tensors.items()}


def _read_matrix(
    reader: StateReader, part: Matrix, width: int, labels: RowLabels, found: OfficialContent
) -> dict[str, Tensor]:
    """The teacher's weight and bias; the chain's rows, and its bias where students take it, go to `found`."""
    weight, bias = f"{part.name}.weight", f"{part.name}.bias"
    rows, columns = part.rows * width, part.columns * width
    tensors = {weight: reader.take(TEACHER_PREFIX + weight, (rows, columns))}
    found.rows[weight] = reader.take(f"{part.chain}weight_gene", (int(labels.rows.max()) + 1, columns))
    if part.bias:
        tensors[bias] = reader.take(TEACHER_PREFIX + bias, (rows,))
        own = reader.take(f"{part.chain}bias_gene", (rows,))
        (found.sstudent_vectors if part.takes_teachers_bias else found.vectors)[bias] = own
    return tensors


def _read_head(reader: StateReader, width: int, clusters: np.ndarray, found: OfficialContent) -> dict[str, Tensor]:
    """Necks and classifier of the teacher; those of the S-student, of the chain's width, are spread over clusters."""
    num_classes, narrow = reader.rows("classifier.weight", 2), int(clusters.max()) + 1
    tensors = {"classifier.weight": reader.take("classifier.weight", (num_classes, 2 * width))}
    for neck in NECKS:
        for name in NORM:
            tensors[f"{neck}.{name}"] = reader.take(f"{neck}.{name}", (width,))
            own = widened(reader.take(f"{neck}s.s1.{name}", (narrow,)), clusters)
            (found.statistics if name in RUNNING_STATISTICS else found.vectors)[f"{neck}.{name}"] = own
        tensors[f"{neck}.num_batches_tracked"] = reader.take(f"{neck}.num_batches_tracked", ())
        reader.take(f"{neck}s.s1.num_batches_tracked", ())
    own = reader.take("classifiers.s1.weight", (num_classes, 2 * narrow))
    both = np.concatenate([clusters, clusters + narrow])  # the class token's feature, then the parts'
    found.rows["classifier.weight"] = spread_columns(own, both)
    return tensors


def _skeleton(
    tensors: Mapping[str, Tensor], depth: int, heads: int, loss: str, reader: StateReader
) -> tuple[nn.Module, tuple[int, int, int]]:
    """The network on the meta device, and the size of its images.

    The grid of patches is twice as high as wide, as people are, or a square.
    """
    width, _, _, patch = tensors["patch_embed.proj.weight"].shape
    count = tensors["pos_embed"].shape[1]
    columns, side = math.isqrt(count // 2), math.isqrt(count)
    if 2 * columns * columns == count:
        size = (2 * columns * patch, columns * patch)
    elif side * side == count:
        size = (side * patch, side * patch)
    else:
        raise reader.error("base.pos_embed", f"has positions of {count} patches: neither a 2:1 grid nor a square")
    num_classes = len(tensors["classifier.weight"])
    model = without_memory(
        lambda: VisionTransformer(num_classes, loss, width, depth, heads, patch_size=patch, image_size=size)
    )
    return model, (3, *size)
