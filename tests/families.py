"""Families of networks of timm and torchvision, and two that users write for re-identification: one small member each.

Where a network can be made smaller by its own arguments (depth, image size), it is: its code is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import NamedTuple

import timm
import torchvision
from own_networks import AttentiveResNet, PartNetwork
from torch import nn

CLASSES = 7


class Family(NamedTuple):
    """How a member of a family is made, and the image it is traced with, `(channels, height, width)`."""

    build: Callable[[], nn.Module]
    size: tuple[int, int, int]


def of_timm(name: str, height: int = 64, width: int = 32, **options: object) -> Family:
    """A member of a family of timm; `options` are the arguments of its builder."""
    return Family(lambda: timm.create_model(name, num_classes=CLASSES, **options), (3, height, width))


def square(name: str, side: int = 64, **options: object) -> Family:
    """One whose positions are learned: it is made for images of one size."""
    return of_timm(name, side, side, img_size=side, **options)


def unshared(family: Family) -> Family:
    """One whose blocks share a module, each with a copy of its own, as a chain asks for."""

    def build() -> nn.Module:
        model, known = family.build(), set()
        for name, module in list(model.named_modules(remove_duplicate=False)):
            if module in known:
                parent, _, leaf = name.rpartition(".")
                setattr(model.get_submodule(parent), leaf, deepcopy(module))
            known.add(module)
        return model

    return Family(build, family.size)


def of_torchvision(name: str, height: int = 64, width: int = 32, **options: object) -> Family:
    """A member of a family of torchvision."""
    return Family(
        lambda: torchvision.models.get_model(name, weights=None, num_classes=CLASSES, **options), (3, height, width)
    )


def fused(name: str) -> Family:
    """A network of branches that training keeps apart, as one that has been trained is used: fused into one layer."""
    build, size = of_timm(name)
    return Family(lambda: timm.utils.model.reparameterize_model(build()), size)


CONVOLUTIONAL = {
    "resnet18": of_timm("resnet18"),
    "resnet50d": of_timm("resnet50d"),
    "ecaresnet26t": of_timm("ecaresnet26t"),
    "resnext50_32x4d": of_timm("resnext50_32x4d"),
    "seresnet33ts": of_timm("seresnet33ts"),
    "resnetv2_50": of_timm("resnetv2_50"),
    "resnetv2_50x1_bit": of_timm("resnetv2_50x1_bit"),
    "resnest14d": of_timm("resnest14d"),
    "resnest50d": of_timm("resnest50d"),
    "skresnet18": of_timm("skresnet18"),
    "res2net50_26w_4s": of_timm("res2net50_26w_4s"),
    "tresnet_m": of_timm("tresnet_m"),
    "densenet121": of_timm("densenet121"),
    "densenetblur121d": of_timm("densenetblur121d"),
    "rdnet_tiny": of_timm("rdnet_tiny"),
    "dla34": of_timm("dla34"),
    "dpn48b": of_timm("dpn48b"),
    "hrnet_w18_small": of_timm("hrnet_w18_small"),
    "inception_v3": of_timm("inception_v3", 96, 96),
    "inception_v4": of_timm("inception_v4", 96, 96),
    "inception_next_atto": of_timm("inception_next_atto"),
    "legacy_xception": of_timm("legacy_xception"),
    "xception41": of_timm("xception41"),
    "vgg11_bn": of_timm("vgg11_bn"),
    "vovnet39a": of_timm("vovnet39a"),
    "ese_vovnet19b_slim_dw": of_timm("ese_vovnet19b_slim_dw"),
    "cspresnet50": of_timm("cspresnet50"),
    "cs3darknet_s": of_timm("cs3darknet_s"),
    "cspnext_tiny": of_timm("cspnext_tiny"),
    "gernet_s": of_timm("gernet_s"),
    "repvgg_a0": of_timm("repvgg_a0"),
    "repvgg_a0 fused": fused("repvgg_a0"),
    "mobileone_s0": of_timm("mobileone_s0"),
    "gcresnet33ts": of_timm("gcresnet33ts"),
    "regnetx_002": of_timm("regnetx_002"),
    "regnety_002": of_timm("regnety_002"),
    "regnetz_b16": of_timm("regnetz_b16"),
    "nfnet_l0": of_timm("nfnet_l0"),
    "dm_nfnet_f0": of_timm("dm_nfnet_f0"),
    "efficientnet_b0": of_timm("efficientnet_b0"),
    "efficientnet_lite0": of_timm("efficientnet_lite0"),
    "tf_efficientnetv2_b0": of_timm("tf_efficientnetv2_b0"),
    "mixnet_s": of_timm("mixnet_s"),
    "mnasnet_small": of_timm("mnasnet_small"),
    "fbnetc_100": of_timm("fbnetc_100"),
    "mobilenetv2_050": of_timm("mobilenetv2_050"),
    "mobilenetv3_small_050": of_timm("mobilenetv3_small_050"),
    "mobilenetv4_conv_small": of_timm("mobilenetv4_conv_small"),
    "lcnet_050": of_timm("lcnet_050"),
    "tinynet_e": of_timm("tinynet_e"),
    "hardcorenas_a": of_timm("hardcorenas_a"),
    "ghostnet_050": of_timm("ghostnet_050"),
    "ghostnetv2_100": of_timm("ghostnetv2_100", 128, 64),
    "repghostnet_050": of_timm("repghostnet_050"),
    "rexnet_100": of_timm("rexnet_100"),
    "selecsls42": of_timm("selecsls42"),
    "hgnetv2_b0": of_timm("hgnetv2_b0"),
    "convnext_atto": of_timm("convnext_atto"),
    "convnextv2_atto": of_timm("convnextv2_atto"),
    "convmixer_768_32": of_timm("convmixer_768_32"),
    "fasternet_t0": of_timm("fasternet_t0"),
    "starnet_s1": of_timm("starnet_s1"),
    "mambaout_femto": of_timm("mambaout_femto"),
    "focalnet_tiny_srf": of_timm("focalnet_tiny_srf"),
    "poolformer_s12": of_timm("poolformer_s12"),
    "convformer_s18": of_timm("convformer_s18"),
    "torchvision resnet18": of_torchvision("resnet18"),
    "torchvision alexnet": of_torchvision("alexnet", 64, 64),
    "torchvision vgg11": of_torchvision("vgg11"),
    "torchvision squeezenet1_1": of_torchvision("squeezenet1_1"),
    "torchvision densenet121": of_torchvision("densenet121"),
    "torchvision googlenet": of_torchvision("googlenet", 96, 96, aux_logits=False, init_weights=False),
    "torchvision shufflenet_v2_x0_5": of_torchvision("shufflenet_v2_x0_5"),
    "torchvision mobilenet_v2": of_torchvision("mobilenet_v2"),
    "torchvision mobilenet_v3_small": of_torchvision("mobilenet_v3_small"),
    "torchvision mnasnet0_5": of_torchvision("mnasnet0_5"),
    "torchvision efficientnet_b0": of_torchvision("efficientnet_b0"),
    "torchvision regnet_y_400mf": of_torchvision("regnet_y_400mf"),
    "torchvision convnext_tiny": of_torchvision("convnext_tiny"),
}

HYBRID = {
    "fastvit_t8": of_timm("fastvit_t8"),
    "fastvit_sa12": of_timm("fastvit_sa12"),
    "mobilevit_xxs": of_timm("mobilevit_xxs", 64, 64),
    "mobilevitv2_050": of_timm("mobilevitv2_050", 64, 64),
    "edgenext_xx_small": of_timm("edgenext_xx_small", 64, 64),
    "efficientformer_l1": of_timm("efficientformer_l1", 224, 224),
    "efficientformerv2_s0": of_timm("efficientformerv2_s0", 224, 224),
    "efficientvit_b0": of_timm("efficientvit_b0"),
    "efficientvit_m0": of_timm("efficientvit_m0", 224, 224),
    "repvit_m0_9": of_timm("repvit_m0_9"),
    "levit_128s": of_timm("levit_128s", 224, 224),
    "coatnet_nano_rw_224": square("coatnet_nano_rw_224"),
    "maxvit_pico_rw_256": square("maxvit_pico_rw_256"),
    "botnet26t_256": square("botnet26t_256"),
    "coat_lite_tiny": unshared(square("coat_lite_tiny")),
    "caformer_s18": of_timm("caformer_s18"),
    "pvt_v2_b0": of_timm("pvt_v2_b0"),
    "mvitv2_tiny": square("mvitv2_tiny"),
    "tiny_vit_5m_224": of_timm("tiny_vit_5m_224", 224, 224),
    "vit_tiny_r_s16_p8_224": square("vit_tiny_r_s16_p8_224", depth=2),
    "visformer_tiny": square("visformer_tiny"),
    "nextvit_small": of_timm("nextvit_small", 64, 64),
    "mobilenetv4_hybrid_medium": of_timm("mobilenetv4_hybrid_medium", 64, 64),
    "torchvision maxvit_t": of_torchvision("maxvit_t", 224, 224),
    "resnet50 with non-local blocks": Family(lambda: AttentiveResNet(CLASSES), (3, 64, 32)),
    "osnet in two branches": Family(lambda: PartNetwork(CLASSES), (3, 64, 32)),
}

ATTENTION = {
    "swin_tiny_patch4_window7_224": of_timm("swin_tiny_patch4_window7_224", 224, 224),
    "swin_small_patch4_window7_224": of_timm("swin_small_patch4_window7_224", 224, 224),
    "swin_base_patch4_window7_224": of_timm("swin_base_patch4_window7_224", 224, 224),
    "swinv2_tiny_window8_256": square("swinv2_tiny_window8_256", 128),
    "swinv2_cr_tiny_224": square("swinv2_cr_tiny_224", 224),
    "vit_base_patch16_224": of_timm("vit_base_patch16_224", 224, 224),
    "vit_base_patch16_clip_224": of_timm("vit_base_patch16_clip_224", 224, 224),
    "vit_small_patch14_dinov2": square("vit_small_patch14_dinov2", 56),
    "vit_tiny_patch16_224": square("vit_tiny_patch16_224", depth=2),
    "vit_small_patch16_dinov3": square("vit_small_patch16_dinov3", depth=2),
    "vit_relpos_small_patch16_224": square("vit_relpos_small_patch16_224", depth=2),
    "vit_base_patch16_siglip_224": square("vit_base_patch16_siglip_224", depth=2),
    "deit_tiny_distilled_patch16_224": square("deit_tiny_distilled_patch16_224", depth=2),
    "deit3_small_patch16_224": square("deit3_small_patch16_224", depth=2),
    "beit_base_patch16_224": square("beit_base_patch16_224", depth=2),
    "eva_large_patch14_196": square("eva_large_patch14_196", 56, depth=2),
    "eva02_tiny_patch14_224": square("eva02_tiny_patch14_224", 56, depth=2),
    "cait_xxs24_224": square("cait_xxs24_224", depth=2),
    "xcit_nano_12_p16_224": square("xcit_nano_12_p16_224", depth=2),
    "twins_svt_small": square("twins_svt_small"),
    "crossvit_9_240": of_timm("crossvit_9_240", 240, 240),
    "convit_tiny": square("convit_tiny", depth=2),
    "pit_ti_224": square("pit_ti_224"),
    "davit_tiny": of_timm("davit_tiny"),
    "gcvit_xxtiny": square("gcvit_xxtiny", 224),
    "hiera_tiny_224": square("hiera_tiny_224"),
    "mixer_s32_224": square("mixer_s32_224"),
    "resmlp_12_224": square("resmlp_12_224"),
    "gmlp_ti16_224": square("gmlp_ti16_224"),
    "tnt_s_patch16_224": square("tnt_s_patch16_224", depth=2),
    "volo_d1_224": square("volo_d1_224"),
    "nest_tiny": square("nest_tiny", 224),
    "torchvision vit_b_16": of_torchvision("vit_b_16", 32, 32, image_size=32),
    "torchvision swin_t": of_torchvision("swin_t"),
    "torchvision swin_v2_t": of_torchvision("swin_v2_t", 64, 64),
}

FAMILIES = CONVOLUTIONAL | HYBRID | ATTENTION
