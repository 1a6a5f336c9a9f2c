"""What a teacher's channels contribute to the layers that read them, measured on unlabelled images.

A layer with the columns `V` that reads the activations `h` gives `sum_i V_i h_i`. Where the channels of a cluster are
merged, and `g` stands for their activations, that changes by about `sum_i |V_i|^2 E(h_i - g)^2`. So channels can be
merged at little cost that are alike in what they say, or say little, such as those behind a ReLU that are mostly zero;
a channel that says little costs little anywhere near zero, but much in a cluster that says a lot. Rows do not show it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..batches import batches_of, images_of
from ..errors import ChainError, DataError, expect
from ..graph import ChannelGraph, Tie
from ..graph.randomness import Undisturbed, own_random_state
from ..graph.tracer import tracing_mode
from ..networks import unwrapped, watched
from .network import check_graph_fits, weights_of
from .recalibration import observe

_CONVOLUTIONS = nn.modules.conv._ConvNd
_SMALLEST = 1e-6  # of the largest mass: channels that nothing reads are merged first, but not anywhere


class Contributions(NamedTuple):
    """Those of one group's channels.

    Attributes:
        points: what each channel says, `[N, N]` in float64: vectors whose products are those of the activations, over
            images and places, and over the layers that read the group, each weighted by its columns.
        mass: how much these layers make of it, `[N]`, above 0: squared lengths of columns, shares of each layer's.
    """

    points: Tensor
    mass: Tensor

    @property
    def importance(self) -> Tensor:
        """What the layers lose without each channel, `mass * |points|^2`, `[N]`."""
        return self.mass * self.points.pow(2).sum(1)


class _Reader(NamedTuple):
    """A layer that reads channels.

    Attributes:
        squares: squared length of each column, `[columns of all blocks]`.
        places: per index of a group that lies on its columns whole: those of each channel, `[N, occurrences]`.
    """

    squares: Tensor
    places: dict[int, np.ndarray]


def check_contributions(graph: ChannelGraph, measured: Mapping[str, Contributions]) -> None:
    """Raises `ChainError` unless these are contributions of a graph's channels."""
    parts = list(measured.values()) if isinstance(measured, Mapping) else [None]
    tensors = [tensor for part in parts for tensor in (part if isinstance(part, Contributions) else [None])]
    if not all(isinstance(tensor, Tensor) and tensor.dim() == 2 - place % 2 for place, tensor in enumerate(tensors)):
        raise ChainError(
            f"contributions are {measured!r:.100}; measure them: measure_contributions(teacher, graph, loader)"
        )
    for name, (points, mass) in measured.items():
        size = graph.sizes.get(name)
        if size is None or len(points) != size or mass.shape != (size,):
            has = "that the network has not" if size is None else f"of {size} channels"
            raise ChainError(
                f"contributions to group '{name}' {has} are those of {len(points)}; measure this network's"
            )
        if not (torch.isfinite(points).all() and torch.isfinite(mass).all() and (mass > 0).all()):
            raise ChainError(f"contributions of group '{name}' are NaN, infinite, or of no mass; check the images")


@torch.no_grad()
def measure_contributions(
    teacher: nn.Module, graph: ChannelGraph, loader: Iterable[Any], batches: int = 8
) -> dict[str, Contributions]:
    """Measures what every channel contributes, for `WeightChain.from_teacher`.

    Args:
        teacher: not changed.
        graph: its channel graph.
        loader: gives image batches, as for `recalibrate`.
        batches: how many to use at most.

    Returns:
        Per group name. Groups that no convolution and no linear layer reads are left out.

    Raises:
        ChainError: a teacher without weights.
        DataError: no images, or images that the network cannot take, or that make activations infinite.

    Example: a layer with the columns 1 and 2 reads a channel that is always 2 and one that is always -1. Its output has
    the parts 2 and -2; the masses are 1/5 and 4/5, the points in proportion 2 and -1, and both are as important.
    """
    expect(ChannelGraph, graph, "graph", "trace the teacher: oskt_torchreid.trace(teacher, input_size)", ChainError)
    expect(Iterable, loader, "loader", "give batches of images, such as a data loader", DataError)
    expect(int, batches, "batches", "give a whole number of at least 1", DataError)
    if batches < 1:
        raise DataError(f"batches is {batches}; contributions are measured on at least 1 batch")
    teacher = unwrapped(teacher)
    state = weights_of(teacher)
    check_graph_fits(graph, state)
    readers: dict[str, _Reader] = {}
    for name, tie in graph.column_ties.items():
        module = name.rpartition(".")[0]
        if name.endswith(".weight") and isinstance(teacher.get_submodule(module), (_CONVOLUTIONS, nn.Linear)):
            squares = _column_squares(state[name], tie).double().cpu()
            readers[module] = _Reader(squares, dict(_places(graph, tie)))
    sums: dict[tuple[str, int], Tensor] = {}

    def enter(name: str, module: nn.Module, args: tuple, kwargs: dict) -> None:
        given = (*args, *kwargs.values())[0].detach()
        channels = given.movedim(1 if isinstance(module, _CONVOLUTIONS) else -1, 0).flatten(1).double()
        for index, places in readers[name].places.items():
            activations = channels[torch.from_numpy(places).to(channels.device)].flatten(1)
            sums[name, index] = sums.get((name, index), 0) + (activations @ activations.T).cpu()

    device = next(teacher.parameters()).device
    done = 0
    layers = [(name, teacher.get_submodule(name)) for name in readers]
    with tracing_mode(teacher), watched(layers, enter):
        for number, batch in enumerate(batches_of(loader), 1):
            if done == batches:
                break
            images = images_of(batch, number)
            if len(images):
                with own_random_state(teacher), Undisturbed():
                    observe(teacher, images.to(device), number)
                done += 1
    if not done:
        raise DataError("the loader gave no batch of images; contributions need at least one")
    if not all(torch.isfinite(products).all() for products in sums.values()):
        raise DataError("the images make activations NaN or infinite; check the pictures and the teacher's weights")
    return _together(graph, readers, sums)


def _places(graph: ChannelGraph, tie: Tie) -> list[tuple[int, np.ndarray]]:
    """Per group that lies on an axis whole: its index, and the places of each channel, `[N, occurrences]`."""
    flat = tie.channels.reshape(-1)
    of_group = graph.group_of_channel[flat]
    found = []
    for index in np.unique(of_group):
        places = np.flatnonzero(of_group == index)
        places = places[np.argsort(flat[places], kind="stable")]
        size = graph.groups[index].size
        if len(np.unique(flat[places])) == size and len(places) % size == 0:
            found.append((int(index), places.reshape(size, -1)))
    return found


def _column_squares(weight: Tensor, tie: Tie) -> Tensor:
    """Squared length of each column over the rows of its block, `[blocks * length]`."""
    weight = weight.detach()
    if tie.dimension == 0:
        return weight.flatten(1).pow(2).sum(1)
    blocked = weight.reshape(tie.blocks, len(weight) // tie.blocks, weight.shape[1], -1)
    return blocked.pow(2).sum((1, 3)).flatten()


def _together(
    graph: ChannelGraph, readers: Mapping[str, _Reader], sums: Mapping[tuple[str, int], Tensor]
) -> dict[str, Contributions]:
    """Points and masses over all layers that read a group, each of which counts as much."""
    products: dict[int, Tensor] = {}
    masses: dict[int, Tensor] = {}
    for (name, index), of_activations in sums.items():
        own = readers[name].squares[torch.from_numpy(readers[name].places[index])].sum(1)
        output = (own * of_activations.diagonal()).sum().clamp(min=1e-300)
        products[index] = products.get(index, 0) + of_activations * (own.sum() / output)
        masses[index] = masses.get(index, 0) + own / own.sum().clamp(min=1e-300)
    found = {}
    for index, total in products.items():
        values, vectors = torch.linalg.eigh(total)
        mass = masses[index].clamp(min=_SMALLEST * float(masses[index].max()) or 1.0)
        found[graph.groups[index].name] = Contributions(vectors * values.clamp(min=0).sqrt(), mass)
    return found
