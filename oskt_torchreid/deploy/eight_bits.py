"""Which layers of a network can be in eight bits: what each of them costs, and the fewest that have to stay out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..errors import ConfigError
from .feeding import Feeding
from .quantization import RANGES, Quantizer
from .runtimes import ExportedNetwork, Run, run_onnx

Score = Callable[[nn.Module], float]
"""How good a network is, the higher the better: it maps normalised images to features."""


@dataclass(frozen=True)
class EightBits:
    """How a network is written in eight bits.

    Attributes:
        ranges: of activations, from the images that calibrate: `largest`, from the least to the largest value;
            `percentile`, 99.99 % of the values; `entropy`, what keeps their distribution best.
        equalize: make ranges of channels alike first, see `equalization.py`.
        kept: names of layers whose weights stay in half precision, and which compute in single precision; or of none.
        max_drop: how far the score may fall below that of single precision; the fewest layers are kept for it, those
            first that lose most by themselves. `None`: all are in eight bits but for `kept`.
        score: measures a network; needed for `max_drop`.
        report: measure what every layer loses by itself.

    Raises:
        ConfigError: what is not allowed.
    """

    ranges: str = RANGES[0]
    equalize: bool = True
    kept: tuple[str, ...] = ()
    max_drop: float | None = None
    score: Score | None = None
    report: bool = False

    def __post_init__(self) -> None:
        if self.ranges not in RANGES:
            raise ConfigError(f"ranges of int8 are {self.ranges!r:.100}; allowed: {', '.join(RANGES)}")
        if self.max_drop is None:
            return
        if not (isinstance(self.max_drop, Real) and self.max_drop >= 0):
            raise ConfigError(f"max_drop of int8 is {self.max_drop!r:.100}; give 0 or more, in the score's own units")
        if self.score is None:
            raise ConfigError("max_drop of int8 needs a score to measure; give score, a function of a network")
        if self.kept:
            raise ConfigError("int8 has max_drop, which chooses the layers that are kept, and kept, which names them")


ALL_LAYERS = EightBits()


class LayerError(NamedTuple):
    """What is lost where a layer alone is in eight bits.

    Attributes:
        name: of the layer.
        relative: mean length of the difference of features, as a share of their mean length.
        cosine: least cosine of the two features of an image.
    """

    name: str
    relative: float
    cosine: float


def layer_errors(quantizer: Quantizer, batches: Sequence[Tensor]) -> list[LayerError]:
    """What each layer loses by itself, the worst first.

    Args:
        quantizer: of the network.
        batches: images in the form that the file takes.
    """
    expected = _features(quantizer.plain, batches)
    lengths = np.linalg.norm(expected, axis=1)
    found = []
    for name in tqdm(quantizer.layers, disable=None, unit="layer", leave=False):
        features = _features(quantizer.alone(name), batches)
        cosines = (expected * features).sum(1) / np.maximum(lengths * np.linalg.norm(features, axis=1), 1e-30)
        relative = np.linalg.norm(expected - features, axis=1).mean() / max(lengths.mean(), 1e-30)
        found.append(LayerError(name, float(relative), float(cosines.min())))
    return sorted(found, key=lambda error: -error.relative)


def _features(model: Any, batches: Sequence[Tensor]) -> np.ndarray:
    run = run_onnx(model.SerializeToString())
    return np.concatenate([run(images.numpy()) for images in batches]).astype(np.float64)


def least_kept(
    quantizer: Quantizer,
    feeding: Feeding,
    errors: Callable[[], Sequence[LayerError]],
    how: EightBits,
    spared: Sequence[str] = (),
    runtime: Callable[[bytes], Run] = run_onnx,
) -> tuple[str, ...]:
    """The fewest layers that have to stay out of eight bits, in the order of what they lose by themselves.

    Args:
        quantizer: of the network.
        feeding: of the file.
        errors: measures what layers lose, the worst first.
        how: with `max_drop` and `score`.
        spared: names of layers that stay out in any case.
        runtime: runs a network in ONNX's format as the file will be run: runtimes round differently.

    Returns:
        Their names, `spared` first; all layers, where fewer are not enough.
    """

    def score(model: Any) -> float:
        return how.score(ExportedNetwork(runtime(model.SerializeToString()), feeding))  # type: ignore[misc]

    def is_enough(further: Sequence[str]) -> bool:
        return score(quantizer.quantised((*spared, *further))) >= least

    least = score(quantizer.plain) - (how.max_drop or 0.0)
    if is_enough(()):
        return tuple(spared)
    order = [error.name for error in errors() if error.name not in spared]
    failed, count = 0, 1
    while count < len(order) and not is_enough(order[:count]):
        failed, count = count, min(2 * count, len(order))
    while count - failed > 1:
        middle = (failed + count) // 2
        if is_enough(order[:middle]):
            count = middle
        else:
            failed = middle
    return (*spared, *order[:count])
