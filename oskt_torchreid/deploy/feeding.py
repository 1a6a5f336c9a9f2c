"""What an exported file is fed with: normalised pictures or a camera's pixels, any number of them or always as many.

Importers of accelerators want fixed shapes, and cameras give bytes in rows of colours: then the file normalises, and a
client only resizes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import ConfigError

INPUTS = ("float", "unit", "uint8")
_EXAMPLES = 2  # images of a traced batch; one would be taken for a length that never changes


class Normalization(nn.Module):
    """The first layer of a network that is fed with colours as they are.

    Args:
        mean: per channel, of colours in `[0, 1]`.
        std: per channel.
        white: the largest value of a colour, 1 or 255.
        channels_last: whether channels are the last dimension of a picture.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], white: float, channels_last: bool) -> None:
        super().__init__()
        self.channels_last = channels_last
        average, deviation = (torch.tensor(values, dtype=torch.float64).reshape(-1, 1, 1) for values in (mean, std))
        self.register_buffer("scale", (1 / (white * deviation)).float(), persistent=False)
        self.register_buffer("shift", (-average / deviation).float(), persistent=False)

    def forward(self, colours: Tensor) -> Tensor:
        """Maps pictures to normalised images `[batch, channels, height, width]`."""
        images = colours.permute(0, 3, 1, 2) if self.channels_last else colours
        return images.to(self.scale.dtype) * self.scale + self.shift


@dataclass(frozen=True)
class Feeding:
    """How a file is fed.

    Attributes:
        input_size: `(channels, height, width)` of an image.
        mean: per channel, of pixels in `[0, 1]`; subtracted first.
        std: per channel; divided by afterwards.
        input: `float`: images `[batch, channels, height, width]` that the client has normalised; `unit`: the same with
            colours in `[0, 1]`, which the file normalises; `uint8`: pixels `[batch, height, width, channels]` of 0 to
            255, which the file normalises too.
        batch: images at a time; `None`: any number.
    """

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    input: str = INPUTS[0]
    batch: int | None = None

    def __post_init__(self) -> None:
        if self.input not in INPUTS:
            raise ConfigError(f"input of an export is {self.input!r:.100}; allowed: {', '.join(INPUTS)}")
        if self.batch is not None and not (isinstance(self.batch, int) and self.batch >= 1):
            raise ConfigError(f"batch of an export is {self.batch!r:.100}; give 1 or more, or None for any number")

    @property
    def layout(self) -> str:
        """Names of the input's dimensions."""
        return "NHWC" if self.input == "uint8" else "NCHW"

    @property
    def first(self) -> nn.Module:
        """What comes before the network."""
        if self.input == "float":
            return nn.Identity()
        pixels = self.input == "uint8"
        return Normalization(self.mean, self.std, 255 if pixels else 1, channels_last=pixels)

    def fed(self, images: Tensor) -> Tensor:
        """Normalised images `[batch, channels, height, width]` in the form that the file takes.

        Pixels are rounded: images that were pixels once become these again.
        """
        if self.input == "float":
            return images
        mean, std = (torch.tensor(values).reshape(-1, 1, 1) for values in (self.mean, self.std))
        colours = (images.cpu() * std + mean).clamp(0, 1)
        if self.input == "unit":
            return colours
        return (255 * colours).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()

    def batches(self, batches: Iterable[Tensor]) -> list[Tensor]:
        """The same of batches of normalised images; in batches of a fixed number, what is over is left out."""
        found = list(batches)
        if self.batch is not None:
            found = [part for part in torch.cat(found).split(self.batch) if len(part) == self.batch] if found else []
        return [self.fed(images) for images in found]

    def example(self) -> Tensor:
        """A made-up batch in the form that the file takes."""
        generator = torch.Generator().manual_seed(0)
        count = self.batch or _EXAMPLES
        if self.input != "uint8":
            return torch.rand(count, *self.input_size, generator=generator)
        channels, height, width = self.input_size
        return torch.randint(0, 256, (count, height, width, channels), generator=generator, dtype=torch.uint8)
