"""The weight chain: a teacher's channels merged into clusters, one row per cluster, all of the teacher's columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tabulate import tabulate
from torch import Tensor, nn

from .. import files
from ..errors import ChainError, ConfigError, OsktError
from ..graph import ChannelGraph, FeaturePath
from ..graph.routing import describe_code
from ..graph.storage import from_arrays, to_arrays
from ..host.models import ModelSpec
from . import descent, network
from .algebra import average_rows, rows_first
from .clustering import cluster_teacher
from .folding import check_attention
from .layout import Layout
from .widths import Width, full_plan

FORMAT = "oskt-weight-chain"
VERSION = 2


@dataclass(frozen=True, eq=False)
class WeightChain:
    """One teacher's chain; ``expand`` makes students of it. Treat as read-only: every change is a new chain.

    Attributes:
        graph: the teacher's channel graph.
        teacher_to_chain: cluster of each teacher channel per group name, shape ``[N]``.
        rows: chain row of each cluster, per matrix: ``[K, columns, ...]``, rows first however the matrix is stored. The
            columns are the teacher's: they are merged when a student is expanded.
        vectors: norm parameters, biases, statistics, bare parameters along channels, of the teacher's length ``[N]``.
        fixed: tensors without channels, as the teacher has them.
        statistics: the S-student's own running statistics, ``[K]`` each; empty until the chain is refined.
        attention: how students' queries and keys are made, see ``folding.py``; the S-student's are made alike.
        model: the teacher's structure on the meta device.
        spec: the registered name that rebuilds ``model``; ``None`` for an unregistered network. In a chain of a student
            the name of the first teacher.
        origin_to_teacher: in a chain of a student, per group name: the channel that stands for each channel of the
            first teacher; empty in a chain of a first teacher.
    """

    graph: ChannelGraph
    teacher_to_chain: dict[str, np.ndarray]
    rows: dict[str, Tensor]
    vectors: dict[str, Tensor]
    fixed: dict[str, Tensor]
    model: nn.Module
    spec: ModelSpec | None = None
    statistics: dict[str, Tensor] = field(default_factory=dict)
    attention: str = "folded"
    origin_to_teacher: dict[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def from_teacher(
        cls,
        teacher: nn.Module,
        width: Width = 0.25,
        input_size: tuple[int, int, int] | None = None,
        graph: ChannelGraph | None = None,
        normalize_rows: bool | None = None,
        clustering: str = "ward",
        attention: str = "folded",
        seed: int = 0,
    ) -> WeightChain:
        """Clusters a teacher's channels; chain rows are the means of their clusters (paper: chain initialisation).

        Args:
            teacher: left exactly as it was.
            width: ratio of every group's channels, the name of a preset, or the number of clusters per group name
                (others stay whole).
            input_size: for tracing; by default what the backbone is made for.
            graph: the teacher's channel graph, if already traced.
            normalize_rows: cluster rows of unit length; by default where the network has attention, as in the paper.
            clustering: ``ward``, or ``balanced``: equally large clusters under norms over channels, which makes
                students exact at widths that divide the teacher's and are multiples of the chain's. To compare with:
                ``kmeans``, or ``random``: clusters of Ward's sizes with members drawn at random.
            attention: ``folded`` (exact queries and keys) or ``paper``, for the S-student and all students.
            seed: of what is random in ``kmeans`` and ``random``.

        Raises:
            ConfigError: another clustering or attention.
            GraphError: the network cannot be traced.
            WidthError: a width out of range.
            ChainError: weights that are not finite.
        """
        check_attention(attention)
        graph = graph or network.trace(teacher, input_size)
        widths = full_plan(graph, width)
        state = network.state_of(teacher)
        _check_graph_fits(graph, state)
        normalize = bool(graph.attentions) if normalize_rows is None else normalize_rows
        labels = cluster_teacher(graph, state, widths, normalize, clustering, seed)
        return cls.from_labels(teacher, graph, labels, attention)

    @classmethod
    def from_labels(
        cls,
        teacher: nn.Module,
        graph: ChannelGraph,
        teacher_to_chain: Mapping[str, np.ndarray],
        attention: str = "folded",
    ) -> WeightChain:
        """The chain of a given clustering.

        Args:
            teacher: left exactly as it was.
            graph: its channel graph.
            teacher_to_chain: cluster of each channel per group name, shape ``[N]``, every cluster in use.
            attention: see ``from_teacher``.

        Raises:
            ConfigError: another attention.
            ChainError: labels or a graph that do not fit, or weights that are not finite.
        """
        state = network.state_of(teacher)
        _check_graph_fits(graph, state)
        _check_labels(graph, teacher_to_chain)
        labels = {group.name: np.asarray(teacher_to_chain[group.name], np.int64) for group in graph.groups}
        layout = Layout(graph, labels, _cluster_counts(labels))
        tied = {tie.tensor for tie in graph.ties}
        rows = {}
        for name in sorted(graph.matrices):
            tie = graph.row_tie(name)
            rows[name] = average_rows(rows_first(state[name].detach(), tie), layout.axis(tie)).cpu()
        chain = cls(
            graph=graph,
            teacher_to_chain=labels,
            rows=rows,
            vectors={name: _copy(state[name]) for name in state if name in tied and name not in graph.matrices},
            fixed={name: _copy(state[name]) for name in state if name not in tied},
            model=network.skeleton_of(teacher),
            spec=network.models.identify(teacher),
            attention=check_attention(attention),
        )
        chain.validate()
        return chain

    @classmethod
    def from_student(
        cls, student: nn.Module, chain: WeightChain, width: float | Mapping[str, int] = 0.5, **options: Any
    ) -> WeightChain:
        """Clusters a student of a chain: the next, narrower chain of a ladder (paper: "from the last level").

        Args:
            student: expanded from ``chain`` with its features unscaled, and perhaps trained since; left exactly as it
                was.
            chain: not changed.
            width: ratio of the *student's* channels, or the number of clusters per group name (others stay whole).
            options: ``normalize_rows``, ``clustering``, ``attention`` and ``seed`` of ``from_teacher``.

        Returns:
            A chain whose teacher is the student, and which knows what its channels mean to the first teacher.

        Raises:
            ChainError: a student of another chain, or one with scaled features.
            WidthError: a width out of range.
        """
        graph = network.trace(student, chain.input_size)
        teacher_to_student = descent.student_channels(chain.graph, chain.teacher_to_chain, graph)
        descent.check_unscaled(student)
        made = cls.from_teacher(student, width, graph=graph, **{"attention": chain.attention, **options})
        origin = descent.composed(chain.origin_to_teacher, teacher_to_student)
        return replace(made, spec=chain.spec, origin_to_teacher=origin)

    @property
    def origin_to_chain(self) -> dict[str, np.ndarray]:
        """Cluster of each channel of the first teacher per group name: all levels composed."""
        return descent.composed(self.origin_to_teacher, self.teacher_to_chain)

    @cached_property
    def origins_per_channel(self) -> np.ndarray:
        """How many of the first teacher's channels each channel of the graph stands for, shape ``[num_channels]``."""
        return descent.origins_per_channel(self.graph, self.origin_to_teacher)

    @property
    def widths(self) -> dict[str, int]:
        """Number of clusters ``K`` per group name."""
        return _cluster_counts(self.teacher_to_chain)

    @cached_property
    def layout(self) -> Layout:
        """Where everything of the chain's own widths sits; computed once."""
        return Layout(self.graph, self.teacher_to_chain, self.widths)

    @cached_property
    def features(self) -> FeaturePath:
        """What the teacher's feature is made of, and where factors on it can go; traced once."""
        return network.trace_features(self.model, self.graph, {**self.vectors, **self.fixed})

    @property
    def input_size(self) -> tuple[int, ...]:
        """``(channels, height, width)`` of the image that the teacher was traced with."""
        return self.graph.input_size

    def summary(self) -> str:
        """The widths that students can have, per channel group and all together, as a table."""
        rows = []
        for group in self.graph.groups:
            fewest, first = self.widths[group.name], len(self.origin_to_chain[group.name])
            ratios = [f"{width / first:.3g}" for width in (fewest, group.size)]
            rows.append((group.name, fewest, group.size, *ratios, group.fixed))
        fewest, most = sum(self.widths.values()), self.graph.num_channels
        head = f"students have {fewest} to {most} channels in {len(rows)} groups\n"
        return head + tabulate(rows, headers=("group", "narrowest", "widest", "ratio", "to", "fixed"))

    def check_teacher(self, teacher: nn.Module) -> None:
        """Raises ``ChainError`` unless a network has the names and shapes of the chain's teacher."""
        shapes = {name: tuple(tensor.shape) for name, tensor in self.model.state_dict().items()}
        try:
            _check_tensors("teacher tensor", network.state_of(teacher), shapes)
        except ChainError as error:
            raise ChainError(f"the chain was not made of this {type(teacher).__name__}: {error}") from error

    def with_tensors(
        self, rows: Mapping[str, Tensor], vectors: Mapping[str, Tensor], statistics: Mapping[str, Tensor]
    ) -> WeightChain:
        """The same chain with refined tensors (copied to the CPU).

        Raises:
            ChainError: a tensor of another name or shape, or one that is not finite.
        """
        copies = ({name: _copy(t) for name, t in part.items()} for part in (rows, vectors, statistics))
        refined_rows, refined_vectors, refined_statistics = copies
        chain = replace(self, rows=refined_rows, vectors=refined_vectors, statistics=refined_statistics)
        chain.validate()
        return chain

    def validate(self) -> None:
        """Checks every name, shape, label and number.

        Raises:
            ChainError: says which tensor or group, what it is and what it must be.
        """
        state = self.model.state_dict()
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        _check_labels(self.graph, self.teacher_to_chain)
        descent.check_origin(self.graph, self.origin_to_teacher)
        _check_graph_fits(self.graph, state)
        tied = {tie.tensor for tie in self.graph.ties}
        narrow = dict(shapes)
        for tie in self.graph.ties:
            if tie.role == "row":
                axis, is_matrix = self.layout.axis(tie), tie.tensor in self.graph.matrices
                shape = list(rows_first(state[tie.tensor], tie).shape if is_matrix else shapes[tie.tensor])
                shape[0 if is_matrix else tie.axis] = axis.blocks * axis.length
                narrow[tie.tensor] = tuple(shape)
        vectors = [name for name in shapes if name in tied and name not in self.graph.matrices]
        _check_tensors("chain row", self.rows, {name: narrow[name] for name in self.graph.matrices})
        _check_tensors("vector", self.vectors, {name: shapes[name] for name in vectors})
        _check_tensors("fixed tensor", self.fixed, {name: shapes[name] for name in shapes if name not in tied})
        _check_tensors("statistic", self.statistics, {name: narrow[name] for name in self.statistics if name in narrow})

    # ---- files ---------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Writes the chain as one safetensors file, whole or not at all."""
        arrays, description = to_arrays(self.graph)
        labels = np.empty(self.graph.num_channels, np.int32)
        for group in self.graph.groups:
            labels[group.channels] = self.teacher_to_chain[group.name]
        arrays["teacher_to_chain"] = labels
        arrays["origin_to_teacher"], origin_lengths = descent.join_origin(self.graph, self.origin_to_teacher)
        tensors = {f"graph/{name}": torch.from_numpy(array) for name, array in arrays.items()}
        for kind in _KINDS:
            tensors.update({f"{kind}/{name}": tensor for name, tensor in getattr(self, kind).items()})
        spec = asdict(self.spec) if self.spec else None
        metadata = {"format": FORMAT, "version": VERSION, "model": spec, "graph": description, "origin": origin_lengths}
        metadata["attention"] = self.attention
        if self.origin_to_teacher:
            metadata["code"] = describe_code(self.model, self.graph)
        files.save_tensors(path, tensors, metadata)

    @classmethod
    def load(cls, path: str | Path, model: nn.Module | None = None) -> WeightChain:
        """Reads a chain file and checks all of it before anything is returned.

        Args:
            path: a file that ``save`` wrote.
            model: the teacher's network (any weights), needed only if its builder is not registered; left as it is.

        Raises:
            ChainError: missing, truncated, foreign or damaged file, or a chain of another network.
        """
        tensors, metadata = files.load_tensors(path, ChainError)
        said = [metadata.get(key) for key in ("format", "version")] if isinstance(metadata, dict) else [None, None]
        if said != [FORMAT, VERSION]:
            raise ChainError(
                f"'{path}' is no weight chain of version {VERSION} (it says format {said[0]!r}, version {said[1]!r}); "
                "give a file written by WeightChain.save"
            )
        try:
            chain = cls._assemble(path, tensors, metadata, model)
            chain.validate()
        except OsktError as error:
            raise ChainError(f"'{path}' cannot be used as a weight chain: {error}") from error
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"  # metadata of other types than were written
            raise ChainError(f"'{path}' cannot be used as a weight chain: it is damaged ({reason})") from error
        return chain

    @classmethod
    def _assemble(cls, path: str | Path, tensors: dict[str, Tensor], metadata: dict, model: nn.Module | None):
        parts: dict[str, dict[str, Tensor]] = {kind: {} for kind in (*_KINDS, "graph")}
        for key, tensor in tensors.items():
            kind, _, name = key.partition("/")
            if kind not in parts:
                raise ChainError(f"it holds a tensor '{key}' of unknown kind; kinds: {', '.join(parts)}")
            parts[kind][name] = tensor
        arrays = {name: tensor.numpy() for name, tensor in parts.pop("graph").items()}
        graph = from_arrays(arrays, metadata.get("graph") or {})
        labels = arrays.get("teacher_to_chain", np.empty(0, np.int32)).astype(np.int64)
        if labels.shape != (graph.num_channels,):
            raise ChainError(f"it labels {labels.shape} channels, its graph has {graph.num_channels}")
        spec = _spec(metadata.get("model"), needed=model is None)
        if model is None and spec is None:
            raise ChainError(
                "its teacher is not a registered model; pass the teacher's network: WeightChain.load(path, model=...)"
            )
        skeleton = network.skeleton_of(model) if model is not None else network.new_skeleton(spec)
        origin = arrays.get("origin_to_teacher", np.empty(0, np.int32))
        origin = descent.cut_origin(graph, origin, metadata.get("origin") or [])
        if origin:
            others = {**parts["vectors"], **parts["fixed"]}
            skeleton = descent.narrow_skeleton(skeleton, metadata.get("code") or {}, graph, parts["rows"], others)
        teacher_to_chain = {group.name: labels[group.channels] for group in graph.groups}
        attention = check_attention(metadata.get("attention", "folded"))
        return cls(
            graph=graph,
            teacher_to_chain=teacher_to_chain,
            model=skeleton,
            spec=spec,
            attention=attention,
            origin_to_teacher=origin,
            **parts,
        )


_KINDS = ("rows", "vectors", "fixed", "statistics")


def _cluster_counts(teacher_to_chain: Mapping[str, np.ndarray]) -> dict[str, int]:
    return {name: int(labels.max()) + 1 for name, labels in teacher_to_chain.items()}


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone()


def _spec(model: dict | None, needed: bool) -> ModelSpec | None:
    if model is None:
        return None
    try:
        spec = ModelSpec(str(model["name"]), int(model["num_classes"]), str(model["loss"]))
        network.models.builder_of(spec.name)
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        if not needed and isinstance(error, ConfigError):
            return None  # registered where the chain was made, not here; the network itself is given
        raise ChainError(f"its teacher's model {model!r} cannot be built here: {error}") from error
    return spec


def _check_labels(graph: ChannelGraph, teacher_to_chain: Mapping[str, np.ndarray]) -> None:
    for group in graph.groups:
        labels = teacher_to_chain.get(group.name)
        if labels is None or np.shape(labels) != (group.size,):
            raise ChainError(f"group '{group.name}' of {group.size} channels has no label for each of them")
        if labels.min() < 0 or len(np.unique(labels)) != labels.max() + 1:
            raise ChainError(f"labels of group '{group.name}' are not 0..K-1 with every cluster in use")


def _check_graph_fits(graph: ChannelGraph, state: Mapping[str, Tensor]) -> None:
    for tie in graph.ties:
        expected = tie.shaped(tie.channels.shape[1])
        found = state[tie.tensor].shape if tie.tensor in state else None
        if found is None or len(found) <= tie.axis or found[tie.axis] != expected:
            raise ChainError(
                f"the channel graph belongs to another network: axis {tie.axis} of '{tie.tensor}' must be {expected} "
                f"long, the network has {'no such tensor' if found is None else tuple(found)}"
            )
    for name in sorted(graph.matrices | graph.heads):
        if name not in graph.matrices or graph.row_tie(name) is None:
            raise ChainError(f"the channel graph is damaged: '{name}' is no matrix with rows in it")


def _check_tensors(kind: str, tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple]) -> None:
    missing = sorted(shapes.keys() - tensors.keys())
    unexpected = sorted(tensors.keys() - shapes.keys())
    if missing or unexpected:
        raise ChainError(
            f"{len(missing)} {kind}s are missing {missing[:3]} and {len(unexpected)} unexpected {unexpected[:3]}"
        )
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != tuple(shapes[name]):
            raise ChainError(f"{kind} '{name}' has shape {tuple(tensor.shape)}, it must be {tuple(shapes[name])}")
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ChainError(f"{kind} '{name}' has values that are NaN or infinite")
