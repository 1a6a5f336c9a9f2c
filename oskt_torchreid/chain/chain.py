"""The weight chain: a teacher's channels merged into clusters, one row per cluster, all of the teacher's columns."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tabulate import tabulate
from torch import Tensor, nn

from ..errors import ChainError, ConfigError, GraphError, OsktError, WidthError, expect
from ..graph import ChannelGraph, FeaturePath
from ..graph.keeping import Keep, check_unknown, in_words
from ..graph.plans import Width, check_plan, full_plan, show_ratio
from ..graph.surgery.rebuild import check_code_fits
from ..graph.tracer import check_model
from ..networks import ModelSpec, resolver, unwrapped
from . import chain_file, lineage, network
from .clustering import Clustering, cluster_teacher, cluster_trees
from .contributions import Contributions, check_contributions
from .layout import Layout
from .narrowing import average_rows, check_attention, check_vectors_over, rows_first
from .nesting import Tree, check_nesting, cut_trees


@dataclass(frozen=True, eq=False, repr=False)
class WeightChain:
    """One teacher's chain; `expand` makes students from it. Treat as read-only: every change makes a new chain.

    Attributes:
        graph: the teacher's channel graph.
        teacher_to_chain: cluster of each teacher channel per group name, shape `[N]`.
        rows: chain row of each cluster, per matrix: `[K, columns, ...]`, rows first however the matrix is stored. The
            columns are the teacher's: they are merged when a student is expanded.
        vectors: norm parameters, biases, statistics and bare parameters along channels, of the teacher's length `[N]`.
        fixed: tensors without channels, as the teacher has them.
        statistics: the S-student's own running statistics, `[K]` each; empty until the chain is refined.
        attention: how students' queries and keys are made, see `narrowing.py`; the same for the S-student.
        model: the teacher's structure on the meta device.
        spec: the registered name that rebuilds `model`; `None` for an unregistered network. In a chain of a student
            the name of the first teacher.
        origin_to_teacher: in a chain of a student, per group name: the channel that stands for each channel of the
            first teacher; empty in a chain of a first teacher.
        trees: in a nested chain (see `nesting.py`), per group name: the hierarchy whose cuts are slots. Its `rows` are
            the teacher's then, `[N, columns, ...]`; empty in the paper's chain.
        own: of a nested chain, the S-student's rows, `[K, columns, ...]`, and vectors that it does not share, `[K]`.
        importance: of a nested chain whose slots have leaders, per group name: of each channel, `[N]`. A slot has the
            rows and vectors of its most important member then, instead of means; empty if it has means.
        vectors_over: whose mean of norm parameters and biases a slot of a student has: its `clusters`', which makes
            students of all widths the S-student's function (under layer and group norms, where all slots have equally
            many members); or its own members', `slots`, as in the authors' code. A nested chain's students are between
            S-student and teacher in any case.
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
    trees: dict[str, Tree] = field(default_factory=dict)
    own: dict[str, Tensor] = field(default_factory=dict)
    importance: dict[str, np.ndarray] = field(default_factory=dict)
    vectors_over: str = "clusters"

    @classmethod
    def from_teacher(
        cls,
        teacher: nn.Module,
        width: Width = 0.25,
        input_size: tuple[int, int, int] | None = None,
        graph: ChannelGraph | None = None,
        normalize_rows: bool | None = None,
        clustering: str | Clustering = "ward",
        attention: str = "folded",
        nested: bool = False,
        contributions: Mapping[str, Contributions] | None = None,
        vectors_over: str = "clusters",
        keep: Keep = (),
        unknown: str = "keep",
    ) -> WeightChain:
        """Clusters a teacher's channels; chain rows are the means of their clusters (paper: chain initialisation).

        Args:
            teacher: not changed.
            width: ratio of every group's channels, the name of a preset, or the number of clusters per group name
                (others stay whole).
            input_size: for tracing; by default the size that the backbone is made for.
            graph: the teacher's channel graph, if already traced.
            normalize_rows: cluster rows of unit length; by default where the network has attention, as in the paper.
            clustering: `ward`, or `balanced`: equally large clusters under norms over channels, which makes
                students exact at widths that divide the teacher's and are multiples of the chain's; or a function that
                maps rows `[N, columns]` and a number of clusters to labels `[N]`.
            attention: `folded` (exact queries and keys) or `paper`, for the S-student and all students.
            nested: students are cuts of Ward's tree, and wide ones keep what narrow ones merge, see `nesting.py`; the
                paper's chain has even parts of its clusters.
            contributions: of a nested chain, what channels are clustered by instead of their rows, as
                `measure_contributions` gives it; each slot then has the rows of the member that contributes
                most, instead of the mean of its members'.
            vectors_over: `clusters` or `slots`, see the attribute.
            keep: modules that stay whole, with the channels that they are given and give: modules of the teacher, their
                names, or patterns of names.
            unknown: of channels where it cannot be followed what code does to them: `keep` them whole, or `refuse`.

        Raises:
            ConfigError: an unknown clustering, attention, vectors_over or unknown, a nested chain with a clustering
                other than Ward's, or something to keep that the teacher does not have, or next to a graph.
            GraphError: the network cannot be traced, or a graph of another input size.
            WidthError: a width out of range.
            ChainError: weights that are absent or not finite.
        """
        teacher = unwrapped(teacher)
        _check_choices(attention, vectors_over, nested, clustering, contributions)
        state = network.weights_of(teacher)
        if graph is None:
            graph = network.trace(teacher, input_size, keep=keep, unknown=unknown)
        else:
            _check_graph(graph, input_size, keep, unknown)
        if contributions is not None:
            check_contributions(graph, contributions)
        widths = full_plan(graph, width)
        network.check_graph_fits(graph, state)
        normalize = bool(graph.attentions) if normalize_rows is None else normalize_rows
        trees, importance = cluster_trees(graph, state, normalize, contributions) if nested else ({}, {})
        labels = _cut(trees, widths) if trees else cluster_teacher(graph, state, widths, normalize, clustering)
        return cls.from_labels(teacher, graph, labels, attention, trees, importance, vectors_over)

    @classmethod
    def from_labels(
        cls,
        teacher: nn.Module,
        graph: ChannelGraph,
        teacher_to_chain: Mapping[str, np.ndarray],
        attention: str = "folded",
        trees: Mapping[str, Tree] | None = None,
        importance: Mapping[str, np.ndarray] | None = None,
        vectors_over: str = "clusters",
    ) -> WeightChain:
        """The chain of a given clustering.

        Args:
            teacher: not changed.
            graph: its channel graph.
            teacher_to_chain: cluster of each channel per group name, shape `[N]`, every cluster in use.
            attention: see `from_teacher`.
            trees: of a nested chain per group name, of which the clusters are cuts.
            importance: of each channel per group name, for a nested chain whose slots have leaders.
            vectors_over: see the attribute.

        Raises:
            ConfigError: an unknown attention or vectors_over.
            ChainError: labels or a graph that do not fit, or weights that are not finite.
        """
        teacher = unwrapped(teacher)
        state = network.weights_of(teacher)
        network.check_graph_fits(graph, state)
        if not isinstance(teacher_to_chain, Mapping):
            raise ChainError(f"labels are {teacher_to_chain!r:.100}; give an array per channel group")
        teacher_to_chain = {name: np.asarray(labels) for name, labels in teacher_to_chain.items()}
        network.check_labels(graph, teacher_to_chain)
        labels = {group.name: teacher_to_chain[group.name].astype(np.int64) for group in graph.groups}
        if trees or importance:
            check_nesting(graph, labels, trees or {}, importance or {})
        layout = Layout(graph, labels, _cluster_counts(labels), trees, importance)
        tied = {tie.tensor for tie in graph.ties}
        whole = {name: rows_first(state[name].detach(), graph.row_ties[name]) for name in sorted(graph.matrices)}
        rows = {name: average_rows(weight, layout.axis(graph.row_ties[name])).cpu() for name, weight in whole.items()}
        chain = cls(
            graph=graph,
            teacher_to_chain=labels,
            rows={name: _copy(weight) for name, weight in whole.items()} if trees else rows,
            own=rows if trees else {},
            vectors={name: _copy(state[name]) for name in state if name in tied and name not in graph.matrices},
            fixed={name: _copy(state[name]) for name in state if name not in tied},
            model=network.skeleton_of(teacher),
            spec=resolver().identify(teacher),
            attention=check_attention(attention),
            trees=dict(trees or {}),
            importance=dict(importance or {}),
            vectors_over=check_vectors_over(vectors_over),
        )
        chain.validate()
        return chain

    @classmethod
    def from_student(
        cls, student: nn.Module, chain: WeightChain, width: float | Mapping[str, int] = 0.5, **options: Any
    ) -> WeightChain:
        """Clusters a student of a chain: the next, narrower chain of a ladder (paper: "from the last level").

        Args:
            student: expanded from `chain` with its features unscaled, possibly trained since; not changed.
            chain: not changed.
            width: ratio of the *student's* channels, or the number of clusters per group name (others stay whole).
            options: those of `from_teacher` but for `input_size` and `graph`.

        Returns:
            A chain whose teacher is the student, with the map from the first teacher's channels to the student's.

        Raises:
            ChainError: a student of another chain, or one with scaled features.
            ConfigError: an option that `from_teacher` has and this has not.
            WidthError: a width out of range.
        """
        expect(cls, chain, "chain", "give the chain that the student was expanded from", ChainError)
        allowed = ("normalize_rows", "clustering", "attention", "nested", "contributions", "vectors_over")
        if unknown := options.keys() - {*allowed}:
            raise ConfigError(f"{sorted(unknown)} cannot be given; allowed: {', '.join(allowed)}")
        student = unwrapped(student)
        graph = network.traced_alone(student, chain.input_size, chain.graph.keep)
        teacher_to_student = lineage.student_channels(chain.graph, chain.layout_of, graph)
        lineage.check_unscaled(student)
        inherited: dict[str, Any] = {"attention": chain.attention, "vectors_over": chain.vectors_over}
        made = cls.from_teacher(student, width, graph=graph, **{**inherited, **options})
        origin = lineage.composed(chain.origin_to_teacher, teacher_to_student)
        return replace(made, spec=chain.spec, origin_to_teacher=origin)

    @property
    def origin_to_chain(self) -> dict[str, np.ndarray]:
        """Cluster of each channel of the first teacher per group name: all levels composed."""
        return lineage.composed(self.origin_to_teacher, self.teacher_to_chain)

    @cached_property
    def origins_per_channel(self) -> np.ndarray:
        """How many of the first teacher's channels each channel of the graph stands for, shape `[num_channels]`."""
        return lineage.origins_per_channel(self.graph, self.origin_to_teacher)

    @cached_property
    def widths(self) -> dict[str, int]:
        """Number of clusters `K` per group name; counted once."""
        return _cluster_counts(self.teacher_to_chain)

    @cached_property
    def layout(self) -> Layout:
        """The layout of the chain's own widths; computed once."""
        return self.layout_of(self.widths)

    def layout_of(self, widths: Mapping[str, int]) -> Layout:
        """The layout of a student of these widths."""
        return Layout(self.graph, self.teacher_to_chain, widths, self.trees, self.importance)

    @property
    def cluster_rows(self) -> dict[str, Tensor]:
        """Chain row of each cluster per matrix, `[K, columns, ...]`."""
        return {name: self.own.get(name, rows) for name, rows in self.rows.items()}

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that tell this chain from others: of its labels, and of all that is trained in it.

        Features of students of two chains cannot be compared, even if both have one teacher: each chain was refined
        with an S-student of its own.
        """
        digest = hashlib.sha256()
        for name, labels in sorted(self.teacher_to_chain.items()):
            digest.update(name.encode() + labels.astype(np.int64).tobytes())
        for tensors in (self.rows, self.vectors, self.own, self.fixed):
            for name, tensor in sorted(tensors.items()):
                digest.update(name.encode() + tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    @cached_property
    def features(self) -> FeaturePath:
        """The channels of the teacher's feature, and where factors on it can be folded; traced once."""
        return network.trace_features(self.model, self.graph, {**self.vectors, **self.fixed})

    @property
    def input_size(self) -> tuple[int, ...]:
        """`(channels, height, width)` of the image that the teacher was traced with."""
        return self.graph.input_size

    def __repr__(self) -> str:
        name = self.spec.name if self.spec else type(self.model).__name__
        channels, refined = self.graph.num_channels, "refined" if self.statistics else "not refined"
        kind = "nested, " if self.trees else ""
        return f"<WeightChain of {name}: {sum(self.widths.values())} of {channels} channels, {kind}{refined}>"

    def summary(self) -> str:
        """The widths that students can have, per channel group and in total, as a table."""
        rows = []
        for group in self.graph.groups:
            fewest, first = self.widths[group.name], len(self.origin_to_chain[group.name])
            ratios = [f"{width / first:.3g}" for width in (fewest, group.size)]
            rows.append((group.name, fewest, group.size, *ratios, group.fixed))
        fewest, most = sum(self.widths.values()), self.graph.num_channels
        head = f"students have {fewest} to {most} channels in {len(rows)} groups\n"
        return head + tabulate(rows, headers=("group", "narrowest", "widest", "ratio", "to", "fixed"))

    def check_range(self, plan: Mapping[str, int]) -> None:
        """Raises `WidthError` unless a plan is legal, and every width between the chain's and the teacher's."""
        check_plan(self.graph, plan)
        narrower = [(name, plan[name], width) for name, width in self.widths.items() if plan[name] < width]
        if narrower:
            name, got, least = narrower[0]
            ratio = max(least / self.graph.sizes[group] for group, _, least in narrower)
            raise WidthError(
                f"width {got} of group '{name}' is outside of [{least}, {self.graph.sizes[name]}], from the chain's to "
                f"the teacher's ({len(narrower)} groups are too narrow); ask for a ratio of at least "
                f"{show_ratio(ratio)}, or refine a narrower chain"
            )

    def check_teacher(self, teacher: nn.Module) -> None:
        """Raises `ChainError` unless a network has names, shapes, heads and norm blocks of the chain's teacher."""
        teacher = unwrapped(teacher)
        try:
            network.check_tensors("teacher tensor", network.state_of(teacher), self.model.state_dict())
            network.check_blocks(teacher, self.graph.module_blocks, self.input_size, self.graph.keep)
        except OsktError as error:
            raise ChainError(f"the chain was not made of this {type(teacher).__name__}: {error}") from error

    def with_tensors(
        self,
        rows: Mapping[str, Tensor],
        vectors: Mapping[str, Tensor],
        statistics: Mapping[str, Tensor],
        own: Mapping[str, Tensor] | None = None,
        fixed: Mapping[str, Tensor] | None = None,
    ) -> WeightChain:
        """The same chain with refined tensors (copied to the CPU).

        Raises:
            ChainError: a tensor with a wrong name or shape, or with values that are not finite.
        """
        parts = (rows, vectors, statistics, own or {}, self.fixed if fixed is None else fixed)
        rows, vectors, statistics, own, fixed = ({name: _copy(t) for name, t in part.items()} for part in parts)
        chain = replace(self, rows=rows, vectors=vectors, statistics=statistics, own=own, fixed=fixed)
        chain.validate()
        return chain

    def validate(self) -> None:
        """Checks every name, shape, label and number.

        Raises:
            ChainError: the message names the tensor or group, what it is and what it must be.
        """
        check_vectors_over(self.vectors_over)
        network.check_labels(self.graph, self.teacher_to_chain)
        if self.trees or self.importance:
            check_nesting(self.graph, self.teacher_to_chain, self.trees, self.importance)
        if self.origin_to_teacher:
            lineage.check_origin(self.graph, self.origin_to_teacher)
        state = self.model.state_dict()
        network.check_graph_fits(self.graph, state)
        check_code_fits(self.model, self.graph)
        for kind, expected in self._expected(state).items():
            network.check_tensors(chain_file.TENSOR_KINDS[kind], getattr(self, kind), expected)

    def _expected(self, state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """Tensors of the expected shapes for each kind, without memory, from the teacher's."""
        graph, narrow, whole = self.graph, dict(state), dict(state)
        for name, tie in graph.row_ties.items():
            is_matrix, axis = name in graph.matrices, self.layout.axis(tie)
            whole[name] = rows_first(state[name], tie) if is_matrix else state[name]
            shape = list(whole[name].shape)
            shape[0 if is_matrix else tie.dimension] = axis.blocks * axis.length
            narrow[name] = state[name].new_empty(shape)
        tied = {tie.tensor for tie in graph.ties}
        return {
            "rows": {name: (whole if self.trees else narrow)[name] for name in graph.matrices},
            "vectors": {name: tensor for name, tensor in state.items() if name in tied - graph.matrices},
            "fixed": {name: tensor for name, tensor in state.items() if name not in tied},
            "statistics": {name: narrow[name] for name in self.statistics if name in narrow},
            "own": self._expected_own(narrow),
        }

    def _expected_own(self, narrow: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of a nested chain every matrix, and the vectors that it says; of the paper's nothing."""
        if not self.trees:
            return {}
        return {name: narrow[name] for name in {*self.graph.matrices, *self.own} if name in self.graph.row_ties}

    # ---- files ---------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Writes the chain as one safetensors file, whole or not at all."""
        chain_file.write(path, {field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def load(cls, path: str | Path, model: nn.Module | str | None = None) -> WeightChain:
        """Reads a chain file and checks all of it before anything is returned.

        Args:
            path: a file that `save` wrote.
            model: the teacher's network (any weights, not changed), or the name that its builder is registered under;
                needed only if it was not registered when the chain was made.

        Raises:
            ChainError: a missing, truncated, unrelated or damaged file, or a chain of another network.
            GraphError: a model that can never be traced.
        """
        if model is not None:
            expect((nn.Module, str), model, "model", "give the teacher's network, or its registered name", ChainError)
        if isinstance(model, nn.Module):
            network = unwrapped(model)
            check_model(network)
            model = network
        tensors, metadata = chain_file.read(path)
        with chain_file.damage_named(path):
            chain = cls(**chain_file.attributes_of(tensors, metadata, model))
            chain.validate()
        return chain


def _check_graph(graph: ChannelGraph, input_size: tuple[int, ...] | None, keep: Keep, unknown: str) -> None:
    """Checks that what is asked for beside a graph does not contradict it."""
    check_unknown(unknown)
    if keep:
        raise ConfigError("keep is given with a graph, which says already what stays whole; trace it with keep=")
    if unknown == "refuse" and any(part.operator for part in graph.kept):
        raise ConfigError(
            f"unknown is 'refuse', and the graph that is given keeps parts whole: {in_words(graph.kept)}; trace it "
            "with unknown='refuse', or give no graph"
        )
    if input_size is not None and graph.input_size != input_size:
        raise GraphError(f"input_size is {input_size!r}, but the graph was traced at {graph.input_size}; give one")


def _cut(trees: Mapping[str, Tree], widths: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Cluster of each channel per group name, `[N]`: the cuts of trees at some widths."""
    return dict(zip(trees, cut_trees(list(trees.values()), [widths[name] for name in trees]), strict=True))


def _check_choices(
    attention: str,
    vectors_over: str,
    nested: bool,
    clustering: str | Clustering,
    contributions: Mapping[str, Contributions] | None,
) -> None:
    """Raises a typed error for choices that there are not, and for a clustering that does not go with the others."""
    check_attention(attention)
    check_vectors_over(vectors_over)
    if nested and clustering != "ward":
        raise ConfigError(f"clustering of a nested chain is {clustering!r}; it needs a tree, so give 'ward'")
    if contributions is not None and not nested:
        raise ChainError("contributions are given, and only the clusters of a nested chain follow them; nested=True")


def _cluster_counts(teacher_to_chain: Mapping[str, np.ndarray]) -> dict[str, int]:
    return {name: int(labels.max()) + 1 for name, labels in teacher_to_chain.items()}


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone()
