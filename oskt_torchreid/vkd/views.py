"""Views: which frames make up a set, and which of them the student sees (VKD, section 3).

A strategy draws the N frames of a set from an identity's tracklets:

* `multiview`: each frame from another tracklet, and cameras take turns: a second tracklet of a camera comes after
  the first ones of all cameras. The set begins in the tracklet that it is drawn for.
* `temporal`: all frames from one tracklet, a random one out of each of N equal chunks.
* `chunk`: all frames from one tracklet, the first one of each of N equal chunks.
* `random`: all frames from one tracklet, N random ones.

Tracklets are cycled if an identity has fewer than N, frames if a tracklet has fewer than N. A set always has N frames.
A tracklet that is visited several times gives another frame each time, as long as it has that many.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError
from ..registry import nearest
from .index import IdentityIndex

Views = tuple[np.ndarray, np.ndarray]
"""(tracklet, frame within it) of each view of a set, both [N]."""

Uniform = Callable[[Any], np.ndarray]
"""Source of randomness: independent numbers of [0, 1) in an array of a shape, as `np.random.Generator.random`."""

Strategy = Callable[[IdentityIndex, int, int, Uniform], Views]


def draw_multiview(index: IdentityIndex, tracklet: int, count: int, uniform: Uniform) -> Views:
    """Frames from as many tracklets and cameras of an identity as there are.

    Costs O(count + tracklets of the identity).

    Args:
        index: of the data set.
        tracklet: which one the set is drawn for: its first frame comes from there.
        count: N, the number of frames.
        uniform: source of randomness.
    """
    tracklets = _in_turns(index, tracklet, uniform)
    places = np.arange(count) % len(tracklets)
    visits = (count - 1 - places) // len(tracklets) + 1
    chosen = tracklets[places]
    return chosen, frame_of_chunk(index.lengths[chosen], np.arange(count) // len(tracklets), visits, uniform)


def draw_temporal(index: IdentityIndex, tracklet: int, count: int, uniform: Uniform) -> Views:
    """A random frame out of each of `count` equal chunks of one tracklet; arguments as of `draw_multiview`."""
    chosen = np.full(count, tracklet)
    return chosen, frame_of_chunk(index.lengths[chosen], np.arange(count), count, uniform)


def draw_chunk(index: IdentityIndex, tracklet: int, count: int, uniform: Uniform) -> Views:
    """The first frame of each of `count` equal chunks of one tracklet: nothing is random."""
    chosen = np.full(count, tracklet)
    return chosen, frame_of_chunk(index.lengths[chosen], np.arange(count), count)


def draw_random(index: IdentityIndex, tracklet: int, count: int, uniform: Uniform) -> Views:
    """Random frames of one tracklet; each once before any comes again."""
    frames = np.argsort(uniform(index.lengths[tracklet]))[:count]
    return np.full(count, tracklet), np.resize(frames, count)


STRATEGIES: dict[str, Strategy] = {
    "multiview": draw_multiview,
    "temporal": draw_temporal,
    "chunk": draw_chunk,
    "random": draw_random,
}


def strategy_of(name: str) -> Strategy:
    """The strategy of a name.

    Raises:
        ConfigError: unknown name; the message has the nearest one.
    """
    if name not in STRATEGIES:
        raise ConfigError(
            f"unknown strategy '{name}'{nearest(name, STRATEGIES)}; strategies of views: {', '.join(STRATEGIES)}"
        )
    return STRATEGIES[name]


def frame_of_chunk(
    lengths: np.ndarray, chunk: np.ndarray, chunks: np.ndarray | int, uniform: Uniform | None = None
) -> np.ndarray:
    """A frame out of one of the equal chunks that a tracklet is cut into.

    Ten frames in four chunks: 0-1, 2-4, 5-6, 7-9. Two frames in four chunks are cycled: 0, 1, 0, 1.

    Args:
        lengths: frames of each tracklet, [N].
        chunk: which of its chunks, [N], from 0.
        chunks: how many there are, a number or [N].
        uniform: draws a random frame of the chunk; None: its first one.

    Returns:
        Frame within the tracklet, [N].
    """
    first, end = chunk * lengths // chunks, (chunk + 1) * lengths // chunks
    if uniform is not None:
        first = first + (uniform(len(first)) * np.maximum(end - first, 1)).astype(np.int64)
    return np.where(lengths < chunks, chunk % lengths, first)


def evenly_spaced(length: int | np.ndarray, count: int) -> np.ndarray:
    """Frames of a tracklet that represent it in evaluation.

    As torchreid's "evenly": nine frames and four of them give 0, 2, 4, 6. A shorter tracklet is cycled, where
    torchreid repeats its last frame: three frames give 0, 1, 2, 0.

    Args:
        length: frames of the tracklet; with a `count` above 0 also of several, [T].
        count: how many to take; 0: all.

    Returns:
        Frames within the tracklet, [count] or [length], of several [T, count]; the first one is 0.
    """
    if count == 0:
        return np.arange(int(length))
    length = np.asarray(length)[..., None]
    return np.arange(count) * np.maximum(1, length // count) % length


def student_views(frames: Tensor, count: int, generator: torch.Generator | None = None) -> Tensor:
    """The student's views of the teacher's sets: `count` frames of each, drawn without replacement.

    Args:
        frames: sets [B, N, C, H, W].
        count: M, the number of frames for the student, at most N.
        generator: source of randomness, on the CPU; None: torch's own.

    Returns:
        New tensor [B, M, C, H, W]; each set has its own draw, in random order.

    Raises:
        ConfigError: M is not within 1 to N, or `frames` is not five-dimensional.
    """
    if frames.dim() != 5:
        raise ConfigError(f"student views are drawn from sets [B, N, C, H, W]; got a tensor {list(frames.shape)}")
    check_view_counts(frames.shape[1], count)
    # Sorting random numbers shuffles the frames of every set at once.
    drawn = torch.rand(frames.shape[:2], generator=generator).argsort(dim=1)[:, :count].to(frames.device)
    return frames[torch.arange(len(frames), device=frames.device)[:, None], drawn]


def check_view_counts(teacher: int, student: int) -> None:
    """Raises ConfigError unless the student's views can be drawn from the teacher's."""
    if not 1 <= student <= teacher:
        raise ConfigError(
            f"vkd.num_student_views is {student}; allowed: 1 to vkd.num_views={teacher}, for the student's "
            "views are drawn from the teacher's; lower the one or raise the other"
        )


def _in_turns(index: IdentityIndex, tracklet: int, uniform: Uniform) -> np.ndarray:
    """An identity's tracklets in random order, `tracklet` first, cameras taking turns.

    With cameras a, b and tracklets a1 a2 a3 b1, of which a2 is given: a2 b1, then a1 and a3 in random order.
    """
    places = index.places(index.identities[tracklet])
    own, turns = index.order[places], index.turns[places]
    keys = uniform((2, len(own)))
    keys[0][own == tracklet] = -1.0
    # Within each camera at random; places of a camera stay together, so turns fit the new order as they are.
    own = own[np.lexsort((keys[0], index.cameras[own]))]
    keys[1][own == tracklet] = -1.0
    return own[np.lexsort((keys[1], turns))]
