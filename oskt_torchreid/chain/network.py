"""Networks for the method: traced as their training code runs them, built by name, compared with a chain."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from .. import graph
from ..errors import ChainError, GraphError
from ..graph import ChannelGraph, FeaturePath
from ..graph.keeping import Keep, in_words
from ..graph.plans import parameters_left, ratio_plan
from ..graph.structure import structure_of
from ..networks import DEFAULT_INPUT_SIZE, ModelSpec, compare, resolver, unwrapped
from .proof import Proof, prove_graph, prove_once

logger = logging.getLogger(__name__)
WORTH_SAYING = 0.01  # of the parameters


def trace(
    model: nn.Module,
    input_size: tuple[int, ...] | None = None,
    prove: bool = True,
    keep: Keep = (),
    unknown: str = "keep",
) -> ChannelGraph:
    """The channel graph of a re-id network: `graph.trace_module` with the classifiers, and only them, as results.

    Args:
        model: a torchreid model, or any module that maps an image batch to a feature (and class scores in training).
            Not changed.
        input_size: `(channels, height, width)`; by default the size that the registered backbone is made for, else
            3x256x128.
        prove: prove the graph, as `oskt_torchreid.prove` does, once per structure in a process; torchreid's own
            backbones, which the test suite proves, are left out, and networks with tied weights, which have no chain.
        keep: modules that stay whole, with the channels that they are given and give: modules of the network, their
            names, or patterns of names.
        unknown: of channels where it cannot be followed what code does to them: `keep` (they stay whole) or `refuse`.

    Raises:
        ConfigError: `keep` names what the network does not have, or an `unknown` that there is not.
        GraphError: see `graph.trace_module`, and `prove`.

    What no student will be rid of is logged as a warning: parts that stay whole (`kept` of the graph), parameters that
    neither training nor evaluation touched (`unseen`), and channels that cannot be merged (`immovable`), with their
    shares of the parameters.
    """
    model = unwrapped(model)
    traced = traced_alone(model, input_size, keep, unknown)
    _report(model, traced)
    if prove and not (_is_stock(model) and not traced.keep) and not shared_tensors(model):
        with _logits_only(model):
            prove_once(model, traced)
    return traced


def traced_alone(
    model: nn.Module, input_size: tuple[int, ...] | None = None, keep: Keep = (), unknown: str = "keep"
) -> ChannelGraph:
    """`trace` without its proof and its warnings, for a network that was traced, or is a student of one that was."""
    model = unwrapped(model)
    graph.check_model(model)
    if input_size is None:
        spec = resolver().identify(model)
        input_size = resolver().input_size(spec.name) if spec else DEFAULT_INPUT_SIZE
    with _logits_only(model):
        return graph.trace_module(model, input_size, keep, unknown)


def _report(model: nn.Module, traced: ChannelGraph) -> None:
    """Warns of what every student of a network has."""
    if traced.kept:
        logger.warning(
            "parts of %s stay whole: %s; %.0f %% of the parameters are in them, or make or read their channels "
            "(unknown='refuse' makes an error of parts that were not asked for; "
            "oskt_torchreid.graph.register_rule says what an operator does to channels)",
            type(model).__name__,
            in_words(traced.kept),
            100 * traced.kept_share,
        )
    if traced.unseen:
        numbers = sum(traced.parameters[name] for name in traced.unseen)
        more = f" and {len(traced.unseen) - 3} more" if len(traced.unseen) > 3 else ""
        logger.warning(
            "%s never uses %d of its parameters (%s%s): every student keeps their %d numbers; delete them to be rid "
            "of them",
            type(model).__name__,
            len(traced.unseen),
            ", ".join(traced.unseen[:3]),
            more,
            numbers,
        )
    if traced.immovable_share >= WORTH_SAYING:
        shares = 100 * traced.immovable_share, 100 * parameters_left(traced, ratio_plan(traced, 0.5))
        if not traced.immovable.any():
            logger.warning(
                "%.0f %% of the parameters of %s belong to positions instead of channels: a student of half the width "
                "has %.0f %% of the parameters",
                shares[0],
                type(model).__name__,
                shares[1],
            )
            return
        logger.warning(
            "%d of the %d channels of %s cannot be merged, whatever width is asked for, and %.0f %% of the parameters "
            "make or read them: a student of half the width has %.0f %% of the parameters (graph.summary() lists "
            "groups of one channel, and fixed ones)",
            traced.immovable.sum(),
            traced.num_channels,
            type(model).__name__,
            *shares,
        )


def _is_stock(model: nn.Module) -> bool:
    """Whether a network is one that the test suite knows, as its name builds it."""
    spec = resolver().identify(model)
    if spec is None or not resolver().is_stock(spec.name):
        return False
    return structure_of(model) == structure_of(resolver().skeleton(spec.name, spec.num_classes, spec.loss))


def prove(model: nn.Module, input_size: tuple[int, ...] | None = None, keep: Keep = (), unknown: str = "keep") -> Proof:
    """Proves that students of a network compute what it does, where rows are equal inside every cluster.

    A copy of random weights and equal rows is made, and students of it of three widths, which must give the copy's
    outputs in training and in evaluation, with memory of their own; see `proof.py`.

    Args:
        model: see `trace`.
        input_size: see `trace`.
        keep: see `trace`.
        unknown: see `trace`.

    Raises:
        ConfigError: see `trace`.
        GraphError: a network that cannot be traced, whose students differ, fail, or use its memory; the message names
            the first such module.
    """
    model = unwrapped(model)
    traced = traced_alone(model, input_size, keep, unknown)
    absent = [name for name, tensor in state_of(model).items() if tensor.is_meta]
    if absent:
        raise GraphError(f"'{absent[0]}' is on the meta device, where nothing can run; give a network with weights")
    with _logits_only(model):
        return prove_graph(model, traced)


def trace_features(skeleton: nn.Module, channels: ChannelGraph, tensors: Mapping[str, Tensor]) -> FeaturePath:
    """The channels of the feature of a network on the meta device, see `graph.feature_path`.

    Args:
        skeleton: its structure; not changed.
        channels: its channel graph.
        tensors: those of its tensors whose values its code may read; the others are zeros.
    """
    state = skeleton.state_dict()
    zeros = {name: torch.zeros(t.shape, dtype=t.dtype) for name, t in state.items() if name not in tensors}
    model = graph.rebuild(skeleton, {**zeros, **tensors})
    with _logits_only(model):
        return graph.feature_path(model, channels)


def check_blocks(
    model: nn.Module, blocks: Mapping[str, int], input_size: tuple[int, ...], keep: tuple[str, ...] = ()
) -> None:
    """Raises `GraphError` unless modules have the heads and norm blocks of another network of the same shapes.

    Args:
        model: traced if there is anything to compare; on the meta device with zeros for its tensors. Not changed.
        blocks: of the other network, see `ChannelGraph.module_blocks`.
        input_size: `(channels, height, width)` of an image that it runs on.
        keep: names of the modules that stay whole.
    """
    if not blocks:
        return
    state = model.state_dict()
    if any(tensor.is_meta for tensor in state.values()):
        model = graph.rebuild(model, {name: torch.zeros(t.shape, dtype=t.dtype) for name, t in state.items()})
    found = traced_alone(model, input_size, keep).module_blocks
    wrong = next((name for name in (*blocks, *found) if found.get(name) != blocks.get(name)), None)
    if wrong is not None:
        raise GraphError(
            f"module '{wrong}' of {type(model).__name__} splits its channels into {found.get(wrong, 'no')} heads or "
            f"norm blocks, the teacher's into {blocks.get(wrong, 'no')}; build the network with the same number"
        )


@contextlib.contextmanager
def _logits_only(model: nn.Module) -> Iterator[None]:
    """Inside this block a model built for the triplet loss returns class scores alone.

    Otherwise it also returns features in the form that its loss needs, some of them normalised over channels.
    """
    loss = getattr(model, "loss", None)
    if isinstance(loss, str):
        vars(model)["loss"] = "softmax"
    try:
        yield
    finally:
        if isinstance(loss, str):
            vars(model)["loss"] = loss


def skeleton_of(model: nn.Module) -> nn.Module:
    """A copy of a network on the meta device: its structure without its weights."""
    return graph.rebuild(model, {name: t.detach().to("meta") for name, t in state_of(model).items()})


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """The state dict's tensors themselves, parameters as parameters.

    Raises:
        ChainError: two names share one tensor (tied weights).
    """
    if shared := shared_tensors(model):
        raise ChainError(
            f"'{shared[0]}' and '{shared[1]}' are one shared tensor; a chain needs separate ones, so clone one"
        )
    return model.state_dict(keep_vars=True)


def shared_tensors(model: nn.Module) -> tuple[str, str] | None:
    """Two names of a state dict that share one tensor (tied weights), such as a chain cannot have; else `None`."""
    owners: dict[int, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if (owner := owners.setdefault(id(tensor), name)) != name:
            return owner, name
    return None


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """`state_of` a network that has weights.

    Raises:
        ChainError: no network, a wrapped one, one on the meta device, or tied weights.
    """
    if not isinstance(model, nn.Module):
        raise ChainError(f"teacher is {model!r:.100}; give a trained network")
    state = state_of(model)
    absent = [name for name, tensor in state.items() if tensor.is_meta]
    if absent:
        raise ChainError(f"'{absent[0]}' is on the meta device, without values; load the teacher's weights first")
    return state


def new_skeleton(spec: ModelSpec) -> nn.Module:
    """The registered model's structure, on the meta device."""
    return copy.deepcopy(resolver().skeleton(spec.name, spec.num_classes, spec.loss))  # other chains share it


# ---- checks ----------------------------------------------------------------------------------------------------------


def check_labels(graph: ChannelGraph, teacher_to_chain: Mapping[str, np.ndarray]) -> None:
    """Raises `ChainError` unless every channel of every group has a label, and every cluster is in use."""
    for group in graph.groups:
        labels = teacher_to_chain.get(group.name)
        if labels is None or np.shape(labels) != (group.size,):
            raise ChainError(
                f"group '{group.name}' of {group.size} channels has no label for each of them; give {group.size}"
            )
        if labels.dtype.kind not in "iu" or labels.min() < 0 or len(np.unique(labels)) != labels.max() + 1:
            raise ChainError(
                f"labels of group '{group.name}' are not whole numbers 0..K-1, each in use; number the clusters again"
            )


def check_graph_fits(graph: ChannelGraph, state: Mapping[str, Tensor]) -> None:
    """Raises `ChainError` unless a network has the tensors and lengths that a graph ties."""
    for tie in graph.ties:
        expected = tie.shaped(tie.channels.shape[1])
        found = state[tie.tensor].shape if tie.tensor in state else None
        if found is None or len(found) <= tie.dimension or found[tie.dimension] != expected:
            raise ChainError(
                f"the channel graph belongs to another network: axis {tie.dimension} of '{tie.tensor}' must be "
                f"{expected} long, the network has {'no such tensor' if found is None else tuple(found)}"
            )
    for name in sorted(graph.matrices | graph.heads):
        if name not in graph.matrices or name not in graph.row_ties:
            raise ChainError(f"the channel graph is damaged: '{name}' is no matrix with rows in it")


def check_tensors(kind: str, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raises `ChainError` unless tensors have the expected names, shapes and kinds of numbers, and finite values.

    Args:
        kind: what they are, for messages.
        tensors: of a chain.
        expected: tensors of the expected names, shapes and kinds; they may have no memory.
    """
    found = compare(tensors, expected)
    if found.missing or found.unexpected:
        raise ChainError(
            f"{len(found.missing)} {kind}s are missing {sorted(found.missing)[:3]} and {len(found.unexpected)} "
            f"unexpected {sorted(found.unexpected)[:3]}"
        )
    for name in found.misshaped:
        shape, must = tuple(tensors[name].shape), tuple(expected[name].shape)
        raise ChainError(f"{kind} '{name}' has shape {shape}, it must be {must}")
    for name, fault in found.unusable.items():
        raise ChainError(f"{kind} '{name}' {fault}")
