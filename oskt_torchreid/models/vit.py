"""Vision transformers for re-identification: a class token, three part tokens, a batch norm neck on each.

Names of modules and tensors are the field's (timm, PASS), so that published weights fit; see `vit_weights.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import StochasticDepth

from ..errors import ConfigError
from ..host.models import LOSSES, register_model

NUM_PARTS = 3
FEATURES = ("before", "after")
NORM_EPSILON = 1e-6


class PatchEmbed(nn.Module):
    """Image to patches: one linear map of each square, written as a convolution.

    Args:
        patch_size: side of a square, which is also the distance from one to the next.
        embed_dim: length of a patch's embedding.
    """

    def __init__(self, patch_size: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, embed_dim, patch_size, patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images [batch, 3, height, width] to [batch, embed_dim, rows, columns]."""
        return self.proj(images)


class Attention(nn.Module):
    """Multi-head self-attention. The size of a head is read off the weights, so students run the same code.

    Args:
        embed_dim: width of the residual stream.
        num_heads: number of heads.
    """

    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim)
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps [batch, tokens, width] to the same shape."""
        queries, keys, values = self.qkv(tokens).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        attended = functional.scaled_dot_product_attention(queries, keys, values)
        return self.proj(attended.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear layers with a GELU between them.

    Args:
        embed_dim: width of the residual stream.
        hidden_dim: width between the layers.
    """

    def __init__(self, embed_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, embed_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps [batch, tokens, width] to the same shape."""
        return self.fc2(self.act(self.fc1(tokens)))


class Block(nn.Module):
    """Attention and MLP, each normalised before and added to the residual stream.

    Args:
        embed_dim: width of the residual stream.
        num_heads: number of heads.
        drop_path: probability that a branch is left out for an image in training (stochastic depth).
    """

    def __init__(self, embed_dim: int, num_heads: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dim, eps=NORM_EPSILON)
        self.attn = Attention(embed_dim, num_heads)
        self.norm2 = nn.LayerNorm(embed_dim, eps=NORM_EPSILON)
        self.mlp = Mlp(embed_dim, 4 * embed_dim)
        self.drop_path = StochasticDepth(drop_path, "row")

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps [batch, tokens, width] to the same shape."""
        tokens = tokens + self.drop_path(self.attn(self.norm1(tokens)))
        return tokens + self.drop_path(self.mlp(self.norm2(tokens)))


class VisionTransformer(nn.Module):
    """ViT for re-identification; follows torchreid's forward protocol.

    The feature is the class token's output, followed by the mean of the part tokens', if there are any. Each token has
    its own batch norm neck; the classifier works on the feature after the necks, the triplet loss on the one before
    them. Images of any size run: positions are interpolated if the grid of patches differs.

    `dw` is a linear map between embedding and blocks, the identity at first. It lets a student's residual stream be
    narrower while patches, tokens and positions keep the teacher's width (`fixed_modules`).

    Args:
        num_classes: training identities.
        loss: 'softmax' (training gives logits) or 'triplet' (logits and the feature before the necks).
        embed_dim: width of patches, tokens and residual stream; a multiple of `num_heads`.
        depth: number of blocks.
        num_heads: heads per block.
        num_parts: number of part tokens; 0: a plain ViT.
        patch_size: side of a patch.
        image_size: (height, width) that the positions are made for.
        drop_path: stochastic depth of the last block; it grows linearly from 0 at the first.
        feature: which feature evaluation gives, 'before' or 'after' the necks.

    Raises:
        ConfigError: unknown loss or feature, or sizes that do not fit each other.
    """

    has_neck = True
    fixed_modules = ("patch_embed",)

    def __init__(
        self,
        num_classes: int,
        loss: str = "softmax",
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        num_parts: int = NUM_PARTS,
        patch_size: int = 16,
        image_size: tuple[int, int] = (256, 128),
        drop_path: float = 0.1,
        feature: str = "before",
    ) -> None:
        super().__init__()
        _check("loss", loss, LOSSES)
        _check("feature", feature, FEATURES)
        if embed_dim % num_heads:
            raise ConfigError(f"embed_dim is {embed_dim}, which {num_heads} heads cannot share; give a multiple")
        if min(image_size) < patch_size:
            raise ConfigError(f"image_size {image_size} is smaller than one patch of {patch_size}; give a larger one")
        self.loss = loss
        self.feature = feature
        self.num_parts = num_parts
        self.grid = (image_size[0] // patch_size, image_size[1] // patch_size)
        self.feature_dim = embed_dim * (2 if num_parts else 1)
        self.patch_embed = PatchEmbed(patch_size, embed_dim)
        for name in self._token_names() + self._position_names():
            self.register_parameter(name, _initialised(1, 1, embed_dim))
        self.pos_embed = _initialised(1, self.grid[0] * self.grid[1], embed_dim)
        self.dw = nn.Linear(embed_dim, embed_dim, bias=False)
        rates = [drop_path * index / max(1, depth - 1) for index in range(depth)]
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads, rate) for rate in rates)
        self.norm = nn.LayerNorm(embed_dim, eps=NORM_EPSILON)
        for name in self._neck_names():
            self.add_module(name, nn.BatchNorm1d(embed_dim))
        self.classifier = nn.Linear(self.feature_dim, num_classes, bias=False)
        self.head_modules: tuple[str, ...] = (*self._neck_names(), "classifier")
        self._initialise()

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Feature [batch, feature_dim] in evaluation; in training logits [batch, classes], with features for triplet.

        Args:
            images: [batch, 3, height, width], each side at least one patch.
        """
        tokens = self.tokens(images)
        before = _joined(tokens)
        if not self.training and self.feature == "before":
            return before
        after = _joined([getattr(self, neck)(token) for neck, token in zip(self._neck_names(), tokens, strict=True)])
        if not self.training:
            return after
        logits = self.classifier(after)
        return (logits, before) if self.loss == "triplet" else logits

    def tokens(self, images: Tensor) -> list[Tensor]:
        """Outputs of the class token and of each part token, [batch, width] each."""
        patches = self.patch_embed(images)
        patches = patches.flatten(2).transpose(1, 2) + self._positions(tuple(patches.shape[2:]))
        names = zip(self._token_names(), self._position_names(), strict=True)
        own = torch.cat([getattr(self, token) + getattr(self, position) for token, position in names], dim=1)
        stream = self.dw(torch.cat([own.expand(images.shape[0], -1, -1), patches], dim=1))
        for block in self.blocks:
            stream = block(stream)
        return list(self.norm(stream[:, : own.shape[1]]).unbind(1))

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        return self.pos_embed if grid == self.grid else resized_positions(self.pos_embed, self.grid, grid)

    def _token_names(self) -> list[str]:
        return ["cls_token", *(f"part_token{number}" for number in range(1, self.num_parts + 1))]

    def _position_names(self) -> list[str]:
        return ["cls_pos", *(f"part{number}_pos" for number in range(1, self.num_parts + 1))]

    def _neck_names(self) -> list[str]:
        return ["bottleneck", *(f"bottleneck_{number}" for number in range(1, self.num_parts + 1))]

    def _initialise(self) -> None:
        """As DeiT: truncated normals of 0.02, no biases; `dw` is the identity."""
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        nn.init.eye_(self.dw.weight)
        nn.init.normal_(self.classifier.weight, std=0.001)
        for name in self._neck_names():
            getattr(self, name).bias.requires_grad_(False)  # keeps the necks' features centred, as their authors do


def resized_positions(positions: Tensor, grid: Sequence[int], new_grid: Sequence[int]) -> Tensor:
    """Position embeddings of another grid of patches, by bicubic interpolation.

    Args:
        positions: [1, rows * columns, width], row by row.
        grid: (rows, columns) that they are made for.
        new_grid: (rows, columns) wanted.

    Returns:
        [1, new rows * new columns, width], differentiable.
    """
    as_map = positions.unflatten(1, tuple(grid)).permute(0, 3, 1, 2)
    resized = functional.interpolate(as_map, size=tuple(new_grid), mode="bicubic", align_corners=False)
    return resized.flatten(2).transpose(1, 2)


def _joined(tokens: Sequence[Tensor]) -> Tensor:
    """[class, mean of parts], or the class token alone."""
    if len(tokens) == 1:
        return tokens[0]
    return torch.cat([tokens[0], sum(tokens[2:], tokens[1]) / (len(tokens) - 1)], dim=1)


def _initialised(*shape: int) -> nn.Parameter:
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(shape), std=0.02))


def _check(what: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ConfigError(f"{what} of the vision transformer is '{value}'; allowed: {', '.join(allowed)}")


# ---- names in the factory --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class VitBuilder:
    """Builds one of the registered vision transformers."""

    name: str
    embed_dim: int
    num_heads: int
    num_parts: int
    kind: type[VisionTransformer] = VisionTransformer
    has_neck: ClassVar[bool] = True

    def __call__(
        self, num_classes: int, loss: str = "softmax", pretrained: bool = False, use_gpu: bool = True
    ) -> VisionTransformer:
        """Arguments as every builder of torchreid's factory.

        Raises:
            ConfigError: `pretrained`, because nothing is downloaded here.
        """
        if pretrained:
            raise ConfigError(
                f"'{self.name}' has no weights to download: set model.pretrained to False and give a file of ImageNet "
                "(timm), DINO or PASS weights as model.load_weights"
            )
        return self.kind(
            num_classes, loss, embed_dim=self.embed_dim, num_heads=self.num_heads, num_parts=self.num_parts
        )


def register_vits() -> None:
    """Registers `vit_small_patch16`, `vit_base_patch16` and their `_plain` variants (a class token only)."""
    for size, embed_dim, num_heads in (("small", 384, 6), ("base", 768, 12)):
        for suffix, num_parts in (("", NUM_PARTS), ("_plain", 0)):
            name = f"vit_{size}_patch16{suffix}"
            register_model(name, VitBuilder(name, embed_dim, num_heads, num_parts))
