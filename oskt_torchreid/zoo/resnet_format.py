"""The authors' files of a ResNet chain ("gene" is their word for a chain row): names, reading and writing.

The teacher is under `base.`, with its neck and classifier outside. Chain rows are under `base.GeneChain.` and, block by
block, a second time under `base.layer*.*.Gene_Bottleneck.` (one tensor in the authors' program). The statistics next to
the chain rows are the S-student's, of full length; its norm parameters there repeat the teacher's. `trans_*` are
matrices made of the labels; `GeneNet_*` is the S-student's head.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor, nn

from ..errors import ZooError
from ..graph import rebuild
from ..host import models
from ..networks import DEFAULT_INPUT_SIZE, set_feature_dim
from .account import LabelReader, StateReader
from .content import OfficialContent, RowLabels, spread_columns, widened

BACKBONE = "oskt_resnet50"
STAGES = 4
OURS, TEACHER_PREFIX, CHAIN_PREFIX, HEAD_PREFIX = "backbone.", "base.", "base.GeneChain.", "GeneNet_"
RUNNING_STATISTICS = ("running_mean", "running_var")
NORM = ("weight", "bias", *RUNNING_STATISTICS)
DERIVED_NAMES = re.compile(r"\.trans_(conv|bn|downsample)\d\.weight$")
_COPY = re.compile(r"base\.(layer\d\.\d+)\.Gene_Bottleneck\.(?!trans_)(.+)$")


class Convolution(NamedTuple):
    """One convolution of a ResNet and the norm behind it, by their names inside the backbone.

    Attributes:
        name: such as `layer1.0.conv3`, as in the file of labels.
        weight: the convolution's module; of `layer1.0.downsample` it is `layer1.0.downsample.0`.
        norm: the norm's module.
        reads: name of the convolution whose channels it reads; empty for the stem, which reads the image.
        joins: name of the first convolution whose output its own is added to; empty where nothing is added.
    """

    name: str
    weight: str
    norm: str
    reads: str
    joins: str = ""


def convolutions(depths: Sequence[int]) -> Iterator[Convolution]:
    """Every convolution of a ResNet of bottleneck blocks, each after the one that it reads.

    Args:
        depths: blocks per stage.
    """
    yield Convolution("conv1", "conv1", "bn1", "")
    before = "conv1"
    for stage, depth in enumerate(depths, 1):
        total = f"layer{stage}.0.conv3"
        for number in range(depth):
            block = f"layer{stage}.{number}"
            first, second, third = (f"{block}.conv{index}" for index in (1, 2, 3))
            yield Convolution(first, first, f"{block}.bn1", before)
            yield Convolution(second, second, f"{block}.bn2", first)
            yield Convolution(third, third, f"{block}.bn3", second, total if number else "")
            if number == 0:
                name = f"{block}.downsample"
                yield Convolution(name, f"{name}.0", f"{name}.1", before, total)
            before = third


@dataclass
class _Found:
    """The content read so far; attributes as in `OfficialContent`, `widths` by name of a convolution."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    rows: dict[str, Tensor] = field(default_factory=dict)
    vectors: dict[str, Tensor] = field(default_factory=dict)
    statistics: dict[str, Tensor] = field(default_factory=dict)
    labels: dict[str, RowLabels] = field(default_factory=dict)
    widths: dict[str, int] = field(default_factory=lambda: {"": 3})


def read_resnet(reader: StateReader, labels: LabelReader, loss: str) -> OfficialContent:
    """The chain in a ResNet's files, with every size read off the shapes.

    Raises:
        ZooError: a tensor or labels that are missing, unexpected or of another shape, with file and key.
    """
    depths = [reader.count(rf"base\.layer{stage}\.(\d+)\.") for stage in range(1, STAGES + 1)]
    num_classes = reader.rows("classifier.weight", 2)
    skeleton = _skeleton(depths, num_classes, loss, reader)
    kernels = {name: tensor.shape[2:] for name, tensor in skeleton.state_dict().items()}
    found = _Found()
    for part in convolutions(depths):
        _read_convolution(reader, labels, part, kernels[f"{OURS}{part.weight}.weight"], found)
    feature = f"layer{STAGES}.{depths[-1] - 1}.conv3"
    _read_head(reader, num_classes, found.labels[f"{OURS}{feature}.weight"], found)
    _check_copies(reader)
    reader.close()
    labels.close()
    teacher = rebuild(skeleton, found.tensors)
    for module in (teacher, teacher.get_submodule("backbone")):
        set_feature_dim(module, found.widths[feature])
    return OfficialContent(teacher, DEFAULT_INPUT_SIZE, found.labels, found.rows, found.vectors, found.statistics)


def _read_convolution(
    reader: StateReader, labels: LabelReader, part: Convolution, kernel: Sequence[int], found: _Found
) -> None:
    weight = f"{part.weight}.weight"
    size = found.widths[part.joins] if part.joins else reader.rows(TEACHER_PREFIX + weight, 4)
    shape = (size, found.widths[part.reads], *kernel)
    found.widths[part.name] = size
    found.tensors[OURS + weight] = reader.take(TEACHER_PREFIX + weight, shape)
    found.tensors.update(_read_norm(reader, TEACHER_PREFIX + part.norm, OURS + part.norm, size))
    clusters = labels.take(TEACHER_PREFIX + part.name, size)
    found.labels[OURS + weight] = RowLabels(TEACHER_PREFIX + part.name, clusters, clusters)
    found.rows[OURS + weight] = reader.take(CHAIN_PREFIX + weight, (int(clusters.max()) + 1, *shape[1:]))
    own = _read_norm(reader, CHAIN_PREFIX + part.norm, OURS + part.norm, size)
    found.statistics.update({name: tensor for name, tensor in own.items() if name.endswith(RUNNING_STATISTICS)})


def _read_head(reader: StateReader, num_classes: int, feature: RowLabels, found: _Found) -> None:
    """Neck and classifier of the teacher; those of the S-student, of the chain's width, spread over the clusters."""
    size, clusters = len(feature.clusters), feature.clusters
    width = int(clusters.max()) + 1
    found.tensors.update(_read_norm(reader, "bottleneck", "neck", size))
    found.tensors["classifier.weight"] = reader.take("classifier.weight", (num_classes, size))
    for name, narrow in _read_norm(reader, f"{HEAD_PREFIX}bottleneck", "neck", width).items():
        kind = found.statistics if name.endswith(RUNNING_STATISTICS) else found.vectors
        if narrow.dim():  # the count of batches is the teacher's
            kind[name] = widened(narrow, clusters)
    narrow = reader.take(f"{HEAD_PREFIX}classifier.weight", (num_classes, width))
    found.rows["classifier.weight"] = spread_columns(narrow, clusters)


def _read_norm(reader: StateReader, theirs: str, ours: str, size: int) -> dict[str, Tensor]:
    tensors = {f"{ours}.{name}": reader.take(f"{theirs}.{name}", (size,)) for name in NORM}
    tensors[f"{ours}.num_batches_tracked"] = reader.take(f"{theirs}.num_batches_tracked", ())
    return tensors


def _check_copies(reader: StateReader) -> None:
    """Checks that the copies of chain rows in a block equal the chain's."""
    for match in reader.names(_COPY):
        original = f"{CHAIN_PREFIX}{match.group(1)}.{match.group(2)}"
        if original not in reader or not _equal(reader.state[original], reader.state[match.group()]):
            raise reader.error(match.group(), f"repeats '{original}' but is not equal to it; one of them is damaged")
        reader.skip(match.group())


def _equal(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors are the same; NaN, which is refused later by its own name, equals NaN."""
    return first.shape == second.shape and first.allclose(second, rtol=0, atol=0, equal_nan=True)


def _skeleton(depths: Sequence[int], num_classes: int, loss: str, reader: StateReader) -> nn.Module:
    """A stock ResNet with last stride 1 and a neck, on the meta device, with this many blocks per stage."""
    if 0 in depths:
        stage = depths.index(0) + 1
        raise ZooError(
            f"'{reader.path}' has no tensor 'base.layer{stage}.0...'; a ResNet has {STAGES} stages of blocks"
        )
    model = copy.deepcopy(models.skeleton(BACKBONE, num_classes, loss))
    for stage, depth in enumerate(depths, 1):
        blocks = list(getattr(model.backbone, f"layer{stage}"))
        repeated = [copy.deepcopy(blocks[-1]) for _ in range(depth - len(blocks))]
        setattr(model.backbone, f"layer{stage}", nn.Sequential(*blocks[:depth], *repeated))
    return model
