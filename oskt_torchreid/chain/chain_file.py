"""The file of a weight chain: one safetensors file with all tensors, index arrays and a description."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import files
from ..errors import ChainError, ConfigError, OsktError
from ..files.checks import is_possible_model
from ..graph import ChannelGraph
from ..graph.storage import from_arrays, to_arrays
from ..graph.surgery.rebuild import describe_code
from ..networks import ModelSpec, resolver
from . import lineage, network
from .narrowing import check_attention, check_vectors_over
from .nesting import Tree

FORMAT = "oskt-weight-chain"
VERSION, NESTED_VERSION = 2, 3
Attributes = dict[str, Any]
TENSOR_KINDS = {
    "rows": "chain row",
    "vectors": "vector",
    "fixed": "fixed tensor",
    "statistics": "statistic",
    "own": "own tensor",
}
"""Kinds of a chain's tensors, and what one tensor of each kind is called in messages."""


def write(path: str | Path, chain: Attributes) -> None:
    """Writes a chain, given by its attributes, whole or not at all."""
    graph, origin, spec = chain["graph"], chain["origin_to_teacher"], chain["spec"]
    arrays, description = to_arrays(graph)
    labels = np.empty(graph.num_channels, np.int32)
    for group in graph.groups:
        labels[group.channels] = chain["teacher_to_chain"][group.name]
    arrays["teacher_to_chain"] = labels
    if trees := chain["trees"]:
        for kind in Tree._fields:
            arrays[f"tree_{kind}"] = joined = np.empty(graph.num_channels, np.int32)
            for group in graph.groups:
                joined[group.channels] = getattr(trees[group.name], kind)
    if importance := chain["importance"]:
        arrays["importance"] = joined = np.empty(graph.num_channels, np.float32)
        for group in graph.groups:
            joined[group.channels] = importance[group.name]
    arrays["origin_to_teacher"], origin_lengths = lineage.join_origin(graph, origin)
    tensors = {f"graph/{name}": torch.from_numpy(array) for name, array in arrays.items()}
    for kind in TENSOR_KINDS:
        tensors.update({f"{kind}/{name}": tensor for name, tensor in chain[kind].items()})
    metadata = {
        "format": FORMAT,
        "version": NESTED_VERSION if trees else VERSION,
        "model": asdict(spec) if spec else None,
        "graph": description,
        "origin": origin_lengths,
        "attention": chain["attention"],
        "vectors_over": chain["vectors_over"],
        "own": sorted(chain["own"]),
    }
    if origin:
        metadata["code"] = describe_code(chain["model"], graph)
    files.save_tensors(path, tensors, metadata)


def read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and description of a chain file, not yet checked against each other.

    Raises:
        ChainError: a missing, truncated or unrelated file.
    """
    tensors, metadata = files.load_tensors(path, ChainError)
    said = [metadata.get(key) for key in ("format", "version")] if isinstance(metadata, dict) else [None, None]
    if said not in ([FORMAT, VERSION], [FORMAT, NESTED_VERSION]):
        raise ChainError(
            f"'{path}' is no weight chain of version {VERSION} or {NESTED_VERSION} (it says format {said[0]!r}, "
            f"version {said[1]!r}); give a file written by WeightChain.save"
        )
    return tensors, metadata


@contextmanager
def damage_named(path: str | Path) -> Iterator[None]:
    """Reports every error that is raised inside as damage of a chain file."""
    try:
        yield
    except OsktError as error:
        raise ChainError(f"'{path}' cannot be used as a weight chain: {error}") from error
    except (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"  # metadata of other types than those written
        raise ChainError(f"'{path}' cannot be used as a weight chain: it is damaged ({reason})") from error


def attributes_of(tensors: dict[str, Tensor], metadata: dict[str, Any], model: nn.Module | str | None) -> Attributes:
    """Attributes of the chain that a file describes.

    Args:
        tensors: of the file.
        metadata: of the file.
        model: the teacher's network, not changed, or its registered name; needed only if the file does not name it.

    Raises:
        ChainError: a chain of another network.
        Exception: any error that damage leads to, see `damage_named`.
    """
    parts = _sorted_by_kind(tensors)
    arrays: dict[str, np.ndarray] = {name: tensor.numpy() for name, tensor in parts.pop("graph").items()}
    if sorted(parts["own"]) != metadata.get("own", []):
        raise ChainError(f"it has {len(parts['own'])} own tensors, others than it says")
    importance = arrays.pop("importance", None)
    graph = from_arrays(arrays, metadata.get("graph") or {})
    labels = arrays.get("teacher_to_chain", np.empty(0, np.int32)).astype(np.int64)
    if labels.shape != (graph.num_channels,):
        raise ChainError(f"it labels {labels.shape} channels, its graph has {graph.num_channels}")
    named = metadata.get("model")
    if isinstance(model, str):
        named, model = {"name": model, "num_classes": _class_count(graph), "loss": "softmax"}, None
    spec = _spec(named, needed=model is None)
    skeleton = _skeleton(spec, model, graph)
    joined = arrays.get("origin_to_teacher", np.empty(0, np.int32))
    origin = lineage.cut_origin(graph, joined, metadata.get("origin") or [])
    if origin:
        others = {**parts["vectors"], **parts["fixed"]}
        skeleton = lineage.narrow_skeleton(skeleton, metadata.get("code") or {}, graph, parts["rows"], others)
    return {
        "graph": graph,
        "teacher_to_chain": {group.name: labels[group.channels] for group in graph.groups},
        "model": skeleton,
        "spec": spec,
        "attention": check_attention(metadata.get("attention", "folded")),
        "vectors_over": check_vectors_over(metadata.get("vectors_over", "slots")),  # of files that do not say it
        "origin_to_teacher": origin,
        "trees": _trees(arrays, graph) if metadata["version"] == NESTED_VERSION else {},
        "importance": _importance(importance, graph),
        **parts,
    }


def _trees(arrays: dict[str, np.ndarray], graph: ChannelGraph) -> dict[str, Tree]:
    """The hierarchies of a nested chain; their soundness is checked with the chain."""
    order, rank = (arrays[f"tree_{kind}"].astype(np.int64) for kind in Tree._fields)
    if not order.shape == rank.shape == (graph.num_channels,):
        raise ChainError(f"its hierarchies have {order.shape} and {rank.shape} places, its graph {graph.num_channels}")
    return {group.name: Tree(order[group.channels], rank[group.channels]) for group in graph.groups}


def _importance(joined: np.ndarray | None, graph: ChannelGraph) -> dict[str, np.ndarray]:
    """The importance of channels, of a chain whose slots have leaders."""
    if joined is None:
        return {}
    if joined.shape != (graph.num_channels,):
        raise ChainError(f"it has the importance of {joined.shape} channels, its graph has {graph.num_channels}")
    return {group.name: joined[group.channels] for group in graph.groups}


def _skeleton(spec: ModelSpec | None, model: nn.Module | None, graph: ChannelGraph) -> nn.Module:
    """The teacher's structure: of the network if one is given, else of the registered model."""
    if model is not None:
        skeleton = network.skeleton_of(model)
        network.check_blocks(skeleton, graph.module_blocks, graph.input_size, graph.keep)
        return skeleton
    if spec is None:
        raise ChainError(
            "its teacher is not a registered model; pass the teacher's network: WeightChain.load(path, model=...), or "
            "the name that it is registered under, also to oskt expand: --model NAME"
        )
    return network.new_skeleton(spec)


def _class_count(graph: ChannelGraph) -> int:
    """How many classes a classifier of the teacher tells apart; 1 where it has none."""
    return max((graph.row_ties[name].channels.size for name in graph.heads), default=1)


def _sorted_by_kind(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Tensors by name for each of `TENSOR_KINDS` and for `graph`, the index arrays."""
    parts: dict[str, dict[str, Tensor]] = {kind: {} for kind in (*TENSOR_KINDS, "graph")}
    for key, tensor in tensors.items():
        kind, _, name = key.partition("/")
        if kind not in parts:
            raise ChainError(f"it holds a tensor '{key}' of unknown kind; kinds: {', '.join(parts)}")
        parts[kind][name] = tensor
    return parts


def _spec(model: dict | None, needed: bool) -> ModelSpec | None:
    if model is None:
        return None
    try:
        spec = ModelSpec(str(model["name"]), int(model["num_classes"]), str(model["loss"]))
        if not is_possible_model(spec.num_classes, (spec.name, spec.loss)):
            raise ValueError(f"no network has {spec.num_classes} classes, or such a name")
        resolver().builder_of(spec.name)
    except (KeyError, OverflowError, TypeError, ValueError, ConfigError) as error:
        if not needed and isinstance(error, ConfigError):
            return None  # registered where the chain was made, but not here; the network is given
        raise ChainError(f"its teacher's model {str(model)[:200]} cannot be built here: {error}") from error
    return spec
