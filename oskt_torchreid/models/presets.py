"""Published students by name: widths of ResNet-50 and of vision transformers, as the paper's tables list them.

A preset names layers of one architecture, which is why it is here and not with the method.

========== ============= ======================== ========== ========
preset     base planes   multiple in each stage   params     FLOPs
========== ============= ======================== ========== ========
res50-s1   8             1, 2, 4, 8               0.37 M     0.05 G
res50-s2   16            1, 2, 3, 4               0.61 M     0.14 G
res50-s3   16            1, 2, 4, 8               1.48 M     0.19 G
res50-s4   32            1, 2, 3, 4               2.42 M     0.51 G
res50-s5   32            1, 2, 4, 8               5.89 M     0.70 G
res50-s6   64            1, 2, 3, 4               9.64 M     1.92 G
========== ============= ======================== ========== ========

========== ============= ======= ============ ==========
preset     width         heads   params       FLOPs
========== ============= ======= ============ ==========
vit-s-120  120           6       2.20 M       0.29 G
vit-s-168  168           6       4.42 M       0.56 G
vit-b-264  264           12      10.35 M      1.36 G
vit-b-336  336           12      16.68 M      2.20 G
========== ============= ======= ============ ==========

The published numbers of ResNet-50 leave out the classifier; FLOPs are of a 256x128 image with the last stride at 2, and
count four operations per value of a batch norm besides the convolutions' multiply-adds (as the profiler `thop` does).
Those of transformers count the blocks, `dw`, and a patch embedding of the student's own width, without tokens,
positions, last norm and necks; FLOPs leave out the products of attention. By that count `vit-s-168` has 4.25 M
parameters: the published 4.42 M must be a slip. `tests/test_presets.py` checks every number.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..graph import ChannelGraph, ChannelGroup
from ..graph.plans import register_presets

TEACHER_PLANES = 64
BLOCKS = (3, 4, 6, 3)
_RESNET_GROUP = re.compile(r"(?:backbone\.)?(?:conv1|layer([1-4])\.\d+\.conv[123])")
_STREAM, _HIDDEN = re.compile(r"(?:backbone\.)?dw"), re.compile(r"(?:backbone\.)?blocks\.\d+\.mlp\.fc1")


@dataclass(frozen=True)
class ResNetPreset:
    """A ResNet-50 with `base * multiple` planes in each stage, four times as many where a stage's blocks are summed.

    Attributes:
        chain_planes: base planes of the chain that the paper expands it from.
        base: planes of its stem.
        multiples: multiple of `base` in each of the four stages.
    """

    chain_planes: int
    base: int
    multiples: tuple[int, int, int, int]

    @property
    def family(self) -> str:
        """The networks that it belongs to."""
        return "a ResNet-50"

    def plan(self, graph: ChannelGraph) -> dict[str, int] | None:
        """Width per channel group; `None` for a graph that is not a ResNet-50's."""
        free = [group for group in graph.groups if not group.fixed]
        stages = [stage for group in free if (stage := _resnet_stage(group)) is not None]
        if len(stages) != len(free) or len(free) != 1 + sum(2 * blocks + 1 for blocks in BLOCKS):
            return None
        plan = dict(graph.sizes)
        for group, stage in zip(free, stages, strict=True):
            plan[group.name] = self.base * self.multiples[stage] * (group.size // (TEACHER_PLANES << stage))
        return plan


@dataclass(frozen=True)
class VitPreset:
    """A vision transformer with residual stream `width`, heads of `width / heads` and an MLP of `4 * width`.

    The patch embedding, tokens and positions keep the teacher's width.

    Attributes:
        width: length of a token in the blocks.
        heads: heads of the teacher, which are the student's.
        teacher_width: the teacher's `width`.
    """

    width: int
    heads: int
    teacher_width: int

    @property
    def family(self) -> str:
        """The networks that it belongs to."""
        return f"a vision transformer of {self.teacher_width} channels and {self.heads} heads"

    def plan(self, graph: ChannelGraph) -> dict[str, int] | None:
        """Width per channel group; `None` for a graph that is not such a transformer's."""
        in_heads = {graph.groups[graph.group_of_channel[head[0]]].name for a in graph.attentions for head in a.channels}
        plan, known = dict(graph.sizes), 0
        for group in graph.groups:
            if group.name in in_heads:
                plan[group.name] = self.width // self.heads
            elif _STREAM.fullmatch(group.name) and group.size == self.teacher_width:
                plan[group.name] = self.width
                known += 1
            elif _HIDDEN.fullmatch(group.name):
                plan[group.name] = 4 * self.width
            elif not group.fixed:
                return None
        same_heads = all(attention.channels.shape[0] == self.heads for attention in graph.attentions)
        return plan if known == 1 and same_heads else None


PRESETS: dict[str, ResNetPreset | VitPreset] = {
    "res50-s1": ResNetPreset(8, 8, (1, 2, 4, 8)),
    "res50-s2": ResNetPreset(8, 16, (1, 2, 3, 4)),
    "res50-s3": ResNetPreset(16, 16, (1, 2, 4, 8)),
    "res50-s4": ResNetPreset(16, 32, (1, 2, 3, 4)),
    "res50-s5": ResNetPreset(32, 32, (1, 2, 4, 8)),
    "res50-s6": ResNetPreset(32, 64, (1, 2, 3, 4)),
    "vit-s-120": VitPreset(120, 6, 384),
    "vit-s-168": VitPreset(168, 6, 384),
    "vit-b-264": VitPreset(264, 12, 768),
    "vit-b-336": VitPreset(336, 12, 768),
}


register_presets(PRESETS)


def _resnet_stage(group: ChannelGroup) -> int | None:
    """Stage of a group, 0 to 3 (the stem counts as 0); `None` if name or size is not a ResNet-50's."""
    match = _RESNET_GROUP.fullmatch(group.name)
    if not match:
        return None
    stage = int(match[1] or 1) - 1
    return stage if group.size in (TEACHER_PLANES << stage, 4 * TEACHER_PLANES << stage) else None
