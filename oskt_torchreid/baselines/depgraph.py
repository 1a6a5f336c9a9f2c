"""DepGraph (Fang et al., CVPR 2023): structural pruning by the L2 norm of whole dependency groups.

The package `torch_pruning` finds the groups and gives each channel its importance: the mean, over all layers coupled
by the channel, of the squared L2 norm of its weights there (rows, columns, norm scales). The most important channels of
each channel group are kept. torch_pruning's groups are compared with the channel graph position by position: where they
differ it would cut the wrong channels, and the backbone is refused.
"""

from __future__ import annotations

import contextlib
import copy
import sys
import time
from collections.abc import Iterator, Mapping
from types import FrameType, ModuleType
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import ConfigError, GraphError
from ..graph import ChannelGraph
from ..graph.plans import check_plan
from ..graph.tracer import tracing_mode
from .selection import by_score, select_channels

TIME_LIMIT = 120.0  # seconds; on some networks (many gates) torch_pruning's walk has no end in sight
INSTALL = "pip install 'oskt_torchreid[baselines]'"


def prune_by_depgraph(teacher: nn.Module, graph: ChannelGraph, widths: Mapping[str, int]) -> nn.Module:
    """Keeps the channels of each group with the largest group L2 norm, with exactly the teacher's numbers.

    Args:
        teacher: not changed.
        graph: its channel graph.
        widths: width per group name.

    Raises:
        ConfigError: torch_pruning is not installed.
        GraphError: a network that torch_pruning does not understand, or misunderstands.
        WidthError: widths that the graph does not allow.
    """
    check_plan(graph, widths)
    return select_channels(teacher, graph, widths, by_score(group_norms(teacher, graph)))


def check_depgraph(teacher: nn.Module, graph: ChannelGraph) -> None:
    """Raises `ConfigError` or `GraphError` unless `prune_by_depgraph` can prune a network of this structure."""
    group_norms(teacher, graph)


def group_norms(teacher: nn.Module, graph: ChannelGraph) -> np.ndarray:
    """DepGraph's importance of each channel, `[num_channels]`; 0 for channels that keep their width.

    Channels that occur several times in one layer (queries, keys and values) get the mean of their importances there.

    Example: `Linear(1, 2)` with the rows 3 and 1, then `Linear(2, 1)` with the columns 1 and 2, couple two channels
    of importances `(9 + 1) / 2 = 5` and `(1 + 4) / 2 = 2.5`.

    Raises:
        ConfigError: torch_pruning is not installed.
        GraphError: a network that torch_pruning does not understand, or misunderstands.
    """
    pruning = _torch_pruning()
    model = copy.deepcopy(teacher).cpu()
    coverage = _Coverage(model, graph)
    importance = pruning.importance.GroupMagnitudeImportance(p=2, group_reduction="mean", normalizer=None)
    score = np.zeros(graph.num_channels)
    try:
        with _time_limit(TIME_LIMIT):
            for group in _groups(pruning, model, graph):
                channels = coverage.add(group)
                occurrences = np.bincount(channels, minlength=len(score))
                np.add.at(score, channels, importance(group).double().numpy() / occurrences[channels])
    except GraphError:
        raise
    except Exception as error:  # another library's tracer may raise anything
        reason = f"{type(error).__name__}: {error}"
        raise GraphError(
            f"torch_pruning cannot follow {type(teacher).__name__} ({reason}); use another baseline for this backbone"
        ) from error
    coverage.check()
    return score


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raises `TimeoutError` in the code inside, at its next call of a function, when its time is up."""
    deadline = time.monotonic() + seconds
    profiler = sys.getprofile()

    def look_at_clock(frame: FrameType, event: str, argument: Any) -> None:
        if time.monotonic() > deadline:
            raise TimeoutError(f"no end after {seconds:g} s")

    sys.setprofile(look_at_clock)
    try:
        yield
    finally:
        sys.setprofile(profiler)


def _torch_pruning() -> ModuleType:
    try:
        import torch_pruning
    except ImportError as error:
        raise ConfigError(f"the baseline 'depgraph' needs the package torch_pruning; install it: {INSTALL}") from error
    return torch_pruning


def _groups(pruning: ModuleType, model: nn.Module, graph: ChannelGraph) -> Iterator[Any]:
    """torch_pruning's groups, each a list of (dependency, positions), the layer that produces the channels first."""
    for parameter in model.parameters():
        parameter.requires_grad_(True)  # it follows the gradients' graph
    dependencies = pruning.DependencyGraph()
    with torch.enable_grad():
        image = torch.randn(1, *graph.input_size)
        dependencies.build_dependency(model, image, forward_fn=_training_outputs, verbose=False)
    yield from dependencies.get_all_groups()


def _training_outputs(model: nn.Module, image: Tensor) -> Any:
    """All outputs of a network in training, so that its classifiers are included; norms do not change."""
    with tracing_mode(model):
        return model(image)


class _Coverage:
    """Compares torch_pruning's groups with the channel graph.

    Args:
        model: the network that is pruned.
        graph: its channel graph.
    """

    def __init__(self, model: nn.Module, graph: ChannelGraph) -> None:
        self._graph = graph
        self._model = model
        self._name_of = {id(module): name for name, module in model.named_modules()}
        self._name_of.update({id(parameter): name for name, parameter in model.named_parameters()})
        self._seen: dict[tuple[str, str], np.ndarray] = {
            (tie.tensor, tie.role): np.zeros(tie.channels.size, bool)
            for tie in graph.ties
            if tie.tensor in graph.matrices
        }
        self._rooted = np.zeros(graph.num_channels, bool)

    def add(self, group: Any) -> np.ndarray:
        """Channels of a group in the order of its importances.

        Raises:
            GraphError: it couples positions that the channel graph does not, or has been met before.
        """
        root = self._tie(group[0].dep)
        if root is None:
            self._refuse(str(group[0].dep), "one of its groups begins where the network has no channels")
        channels = root[1][np.array(group[0].root_idxs)]
        if self._rooted[channels].any():
            self._refuse(root[0], "some of its channels belong to several of torch_pruning's groups")
        self._rooted[channels] = True
        for number in range(len(group)):
            found = self._tie(group[number].dep)
            if found is None:
                continue
            tensor, role_channels, role = found
            positions, roots = np.array(group[number].idxs), group[number].root_idxs
            if any(place is None for place in roots) or positions.max(initial=0) >= len(role_channels):
                self._refuse(tensor, "positions of torch_pruning's group are unknown")
            if (role_channels[positions] != root[1][np.array(roots)]).any():
                self._refuse(tensor, "torch_pruning couples other channels here than the network does")
            if (tensor, role) in self._seen:
                self._seen[tensor, role][positions] = True
        return channels

    def check(self) -> None:
        """Raises `GraphError` where an axis of channels that may be narrowed was left out."""
        fixed = np.array([bool(group.fixed) for group in self._graph.groups])
        for tie in self._graph.ties:
            seen = self._seen.get((tie.tensor, tie.role))
            flexible = ~fixed[self._graph.group_of_channel[tie.channels.reshape(-1)]]
            if seen is not None and not seen[flexible].all():
                self._refuse(tie.tensor, "torch_pruning leaves some of its channels out")

    def _tie(self, dependency: Any) -> tuple[str, np.ndarray, str] | None:
        """Tensor that a dependency cuts, the channels along that axis, and its role; `None` if it cuts none."""
        module = dependency.target.module
        name = self._name_of.get(id(module))
        if name is None:
            return None
        role = "column" if "in_channels" in dependency.handler.__name__ else "row"
        tensors = [name] if isinstance(module, Tensor) else [f"{name}.weight", f"{name}.running_mean"]
        ties = self._graph.column_ties if role == "column" else self._graph.row_ties
        tie = next((ties[tensor] for tensor in tensors if tensor in ties), None)
        return None if tie is None else (tie.tensor, tie.channels.reshape(-1), role)

    def _refuse(self, tensor: str, reason: str) -> NoReturn:
        raise GraphError(
            f"torch_pruning misunderstands {type(self._model).__name__} at '{tensor}': {reason}; use another baseline "
            "for this backbone"
        )
