"""Networks as a configuration asks for them, and their first weights."""

from __future__ import annotations

import logging
from pathlib import Path

from torch import nn
from yacs.config import CfgNode

from ..errors import OsktError, ZooError
from ..host.models import build
from .backbone_weights import load_backbone_weights
from .bam import register_bams
from .neck import NECK_PREFIX, PREFIX, NeckModel, register_neck_alone, register_neck_model, set_last_stride
from .registration import register_wrapper
from .vit import VisionTransformer, register_vits
from .vit_weights import LoadAccount, load_vit_weights

logger = logging.getLogger(__name__)


def register_all() -> None:
    """Registers every network of this package with torchreid; doing it again changes nothing."""
    register_vits()
    register_bams()
    register_wrapper(PREFIX, register_neck_model)
    register_wrapper(NECK_PREFIX, register_neck_alone)


def build_model(config: CfgNode, num_classes: int) -> nn.Module:
    """Builds the model of a configuration: `model.name`, with `model.last_stride` and `model.neck` as configured.

    Raises:
        ConfigError: unknown name, or a backbone that does not allow the requested form.
        ZooError: ImageNet weights that cannot be fetched.
    """
    node = config.model
    size = (3, config.data.height, config.data.width)
    model = build_fetching(node.name, num_classes, config.loss.name, node.pretrained, config.use_gpu)
    if node.last_stride and not set_last_stride(model, node.last_stride, size):
        logger.info("not used in this run: model.last_stride, for %s does not downsample that far", node.name)
    if node.neck and not getattr(model, "has_neck", False):
        model = NeckModel(model, num_classes, config.loss.name, input_size=size)
    return model


def build_fetching(
    name: str,
    num_classes: int,
    loss: str,
    pretrained: bool,
    use_gpu: bool = False,
    remedy: str = "set model.pretrained=False to start without them, and give a file of weights by model.load_weights "
    "where there is one",
) -> nn.Module:
    """A registered network, for which torchreid fetches ImageNet weights on request.

    Args:
        name: registered name.
        num_classes: training identities.
        loss: softmax or triplet.
        pretrained: whether to fetch weights.
        use_gpu: as for every builder of torchreid.
        remedy: what to do if they cannot be fetched, for the message.

    Raises:
        ConfigError: unknown name or loss.
        ZooError: weights that cannot be fetched.
    """
    try:
        return build(name, num_classes, loss, pretrained, use_gpu)
    except OsktError:
        raise
    except Exception as reason:  # torchreid fetches weights in several ways, each with its own errors
        if not pretrained:
            raise
        raise ZooError(
            f"torchreid cannot fetch the ImageNet weights of '{name}' ({type(reason).__name__}: {reason}); {remedy}"
        ) from reason


def load_weights(model: nn.Module, path: str | Path) -> LoadAccount:
    """Fills a network from a file: a checkpoint of the same network, or published weights to start from.

    Returns:
        The tensors that were taken, ignored and left; also logged.

    Raises:
        CheckpointError: a file that does not fit; the network is as it was.
    """
    if isinstance(model, VisionTransformer):
        return load_vit_weights(model, path)
    return load_backbone_weights(model, path)
