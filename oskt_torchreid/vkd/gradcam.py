"""Grad-CAM of a network of sets (Selvaraju et al., ICCV 2017): which part of a frame its score comes from.

The package `grad-cam` weights the channels of a map by the mean gradient of a score with respect to them. What the
score is, and which map is looked at, is decided here:

* The score of *similarity* is the cosine of a frame's embedding and a goal, another set's embedding: what retrieval
  compares, also for identities that the network was not trained on. A cosine sees no length, so the map shows which
  places speak for the goal more than the frame does on the whole.
* The score of a *class* is the frame's logit of a training identity, as in the paper's figure.
* The map is the output of the last module that gives one and that the score depends on, found by running the network
  forwards and backwards; no backbone is named. Tokens are a map if the network has made a map of patches before (which
  tells the grid) and the module keeps their width, as blocks and norms do; tokens beyond the grid's come first.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import ConfigError, GraphError
from ..graph.tracer import tracing_mode
from ..networks import parse_outputs, watched
from .model import class_count

INSTALL = "pip install 'oskt_torchreid[analysis]'"
FRAMES_AT_ONCE = 16


class Similarity(nn.Module):
    """Cosine of each frame's embedding and its goal.

    Args:
        network: of sets.
        goals: embeddings `[frames, channels]`.
    """

    def __init__(self, network: nn.Module, goals: Tensor) -> None:
        super().__init__()
        self.network = network
        self.goals = goals

    def forward(self, images: Tensor) -> Tensor:
        """Scores `[frames]` of images `[frames, 3, height, width]`."""
        with tracing_mode(self.network, training=False):
            return functional.cosine_similarity(self.network(images), self.goals.to(images.device))

    def of(self, part: slice) -> Similarity:
        """The score of some of the frames."""
        return Similarity(self.network, self.goals[part])


class ClassScore(nn.Module):
    """Logit of each frame for a training identity.

    Args:
        network: of sets.
        labels: one for each frame `[frames]`, from 0.

    Raises:
        ConfigError: the network has no classifier, or no such class.
    """

    def __init__(self, network: nn.Module, labels: Sequence[int]) -> None:
        super().__init__()
        classes = class_count(network, "network")
        wrong = [label for label in labels if not 0 <= label < classes]
        if wrong:
            raise ConfigError(
                f"the network has {classes} classes and has no class {wrong[0]}; allowed: 0 to {classes - 1}. "
                "A network that was trained on other identities can only be asked for the similarity"
            )
        self.network = network
        self.labels = list(labels)

    def forward(self, images: Tensor) -> Tensor:
        """Scores `[frames]` of images `[frames, 3, height, width]`."""
        with tracing_mode(self.network, training=True):  # the root alone: it gives class scores
            outputs = parse_outputs(self.network(images), training=True, loss=getattr(self.network, "loss", ""))
        return outputs.logits[0][torch.arange(len(images)), self.labels]

    def of(self, part: slice) -> ClassScore:
        """The score of some of the frames."""
        return ClassScore(self.network, self.labels[part])


class MapLayer(NamedTuple):
    """The place of a network's last map.

    Attributes:
        name: of the module that gives it.
        grid: `(rows, columns)` where it consists of tokens, else `None`.
    """

    name: str
    grid: tuple[int, int] | None = None

    def as_map(self, output: Tensor) -> Tensor:
        """The module's output, where it is tokens `[frames, tokens, channels]`, as a map `[frames, channels, rows,
        columns]`."""
        if self.grid is None:
            return output
        rows, columns = self.grid
        return output[:, -rows * columns :].unflatten(1, self.grid).permute(0, 3, 1, 2)


def heat_maps(
    network: nn.Module, frames: Tensor, goals: Tensor | None = None, labels: Sequence[int] | None = None
) -> np.ndarray:
    """Which parts of frames raise a score, from 0 (least, or lowering it) to 1 (most), for each frame separately.

    Args:
        network: of sets; not changed.
        frames: transformed images `[frames, 3, height, width]`.
        goals: embeddings `[frames, channels]`: the score is the similarity with them.
        labels: training identities, one for each frame: the score is their logit. Exactly one of the two is given.

    Returns:
        `[frames, height, width]`; of a frame whose map is nowhere positive all 0.

    Raises:
        ConfigError: the package `grad-cam` is missing, or not exactly one score was requested, or one that the network
            does not have.
        GraphError: no module gives a map that the score depends on.
    """
    own = copy.deepcopy(network).eval().requires_grad_(False)
    score: Similarity | ClassScore
    if goals is not None and labels is None:
        _check_count(goals, frames)
        score = Similarity(own, goals)
    elif labels is not None and goals is None:
        _check_count(labels, frames)
        score = ClassScore(own, labels)
    else:
        raise ConfigError("a heat map shows one score: give goals (similarity) or labels (class), and not both")
    package = _grad_cam()
    first = slice(0, 2)
    layer = find_map_layer(own, score.of(first), frames[first])
    parts = [slice(start, start + FRAMES_AT_ONCE) for start in range(0, len(frames), FRAMES_AT_ONCE)]
    return np.concatenate([_maps(package, score.of(part), layer, frames[part]) for part in parts])


def _check_count(given: Tensor | Sequence[int], frames: Tensor) -> None:
    if len(given) != len(frames):
        raise ConfigError(f"{len(given)} goals or labels were given for {len(frames)} frames; give one for each")


def find_map_layer(network: nn.Module, score: Callable[[Tensor], Tensor], images: Tensor) -> MapLayer:
    """The last module whose output is a map that the score depends on.

    A module counts if it is called once and no later operation writes into its output, so that the map is the one that
    the score was computed from. A map has more than one place; the score depends on it where its gradient is not 0.
    (The last block of a vision transformer gives patches too, but of these nothing is read afterwards.)

    Args:
        network: in evaluation mode, and needing no gradients; its hooks are removed again.
        score: of images by the network, `[frames]`.
        images: `[frames, 3, height, width]`.

    Raises:
        GraphError: there is none; the message says what was found.
    """
    calls = _recorded_calls(network, score, images)
    times = Counter(call.name for call in calls)
    grid: tuple[int, int] | None = None
    found: list[MapLayer] = []
    for call in calls:
        spatial = call.output.dim() == 4 and call.output.shape[2:].numel() > 1
        if spatial:
            rows, columns = call.output.shape[2:]
            grid = rows, columns
        if times[call.name] > 1 or call.gradient is None or call.output._version != call.version:
            continue
        if spatial and call.gradient.any():
            found.append(MapLayer(call.name))
        elif grid and _is_token_map(call, grid) and call.gradient[:, -grid[0] * grid[1] :].any():
            found.append(MapLayer(call.name, grid))
    if found:
        return found[-1]
    raise GraphError(_no_map(calls, grid, images))


@dataclass(eq=False)
class _Call:
    """One call of a module: its output, how often that had been written to, and the score's gradient."""

    name: str
    output: Tensor
    version: int
    keeps_width: bool
    gradient: Tensor | None = None


def _recorded_calls(network: nn.Module, score: Callable[[Tensor], Tensor], images: Tensor) -> list[_Call]:
    calls: list[_Call] = []

    def leave(name: str, module: nn.Module, args: tuple, output: Any) -> None:
        if torch.is_tensor(output):
            given = args[0] if args and torch.is_tensor(args[0]) else None
            keeps_width = given is not None and given.shape[-1] == output.shape[-1]
            calls.append(_Call(name, output, output._version, keeps_width))

    inside = ((name, module) for name, module in network.named_modules() if name)
    with watched(inside, leave=leave), torch.enable_grad():
        total = score(images.detach().clone().requires_grad_(True)).sum()
        differentiable = [call for call in calls if call.output.requires_grad]
        gradients = torch.autograd.grad(total, [call.output for call in differentiable], allow_unused=True)
    for call, gradient in zip(differentiable, gradients, strict=True):
        call.gradient = gradient
    return calls


def _is_token_map(call: _Call, grid: tuple[int, int]) -> bool:
    """Whether an output `[frames, tokens, channels]` holds every patch of the grid, in the stream's width."""
    if call.output.dim() != 3 or not call.keeps_width:
        return False
    return call.output.shape[1] >= grid[0] * grid[1]


def _no_map(calls: Sequence[_Call], grid: tuple[int, int] | None, images: Tensor) -> str:
    """Why there is nothing to draw."""
    tokens = [call for call in calls if call.output.dim() == 3]
    size = tuple(images.shape[2:])
    if tokens and grid is None:
        shape = tuple(tokens[-1].output.shape)
        return (
            f"'{tokens[-1].name}' gives tokens {shape}, but no module of the network gave a map [frames, channels, "
            "rows, columns] before, so their rows and columns are not known; Grad-CAM needs one, such as a patch "
            "embedding by convolution"
        )
    return (
        f"none of {len(calls)} module calls gives a map of several places that the score depends on, at images of "
        f"{size}; Grad-CAM needs one: give larger images, or a network whose embedding is made from a map"
    )


def _maps(package: ModuleType, score: Similarity | ClassScore, layer: MapLayer, frames: Tensor) -> np.ndarray:
    """Maps of frames in one pass; the parameters need no gradients, so the images are made to."""
    module = score.network.get_submodule(layer.name)
    cam = package.GradCAM(score, [module], reshape_transform=layer.as_map)
    try:
        with torch.enable_grad():
            return cam(frames.detach().clone().requires_grad_(True), targets=[lambda value: value] * len(frames))
    finally:
        cam.activations_and_grads.release()


def _grad_cam() -> ModuleType:
    try:
        import pytorch_grad_cam
    except ImportError as error:
        raise ConfigError(f"heat maps need the package grad-cam; install it: {INSTALL}") from error
    return pytorch_grad_cam
