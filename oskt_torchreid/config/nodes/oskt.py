"""Keys of OSKT: teacher, chain and its refinement, students, and the methods that the chain is compared with."""

from __future__ import annotations

from ...registry import baseline_names
from ..allowed import MOST_PROCESSES, AtLeast, Between, BetweenOrName, OneOf, Registered
from ..keys import NEITHER, Key, Node
from .training import stage_node

KD, KD_START = "kd++", "oskt.distillation.start"
"""Distillation of a narrow network, and the key that says by which method the network is made."""
DISTILLATION_KEYS = tuple(f"oskt.distillation.{key}" for key in ("temperature", "weight_kl", "weight_nd"))
"""What every distillation uses."""
STOCK_BASELINES = ("scratch", "slice", "first", "norm", "kmeans", "depgraph", KD, "norm+kd", "kmeans+kd")
"""Names of this package's own methods that the chain is compared with; users may register more."""
DISTILLED = (KD, "norm+kd", "kmeans+kd")
"""Those that a teacher trains; by any other one a network can be made that `kd++` trains."""


def known_baselines() -> tuple[str, ...]:
    """Names of all methods that the chain can be compared with, those of others included."""
    return tuple(dict.fromkeys([*STOCK_BASELINES, *baseline_names()]))


def _rates() -> Node:
    # Freshly inherited and untrained narrow networks want a higher rate than refined students.
    return {name: Key(3e-3, "learning rate of networks by this method", AtLeast(0)) for name in known_baselines()}


OSKT: Node = {
    "teacher": Key("", "checkpoint; empty: train one first, with the train node"),
    "width": Key(0.25, "chain width ratio, or a preset such as res50-s1", BetweenOrName(1e-6, 1)),
    "ladder": Key([], "several chains instead of one, from wide to narrow: [0.5, 0.25], or like=NAME for widths"),
    "chain": Key("", "refined chain file: no teacher and no refinement, only students, on any data"),
    "keep": Key(
        [],
        "modules of the teacher that stay whole, with the channels that they are given and give: names, or patterns "
        "such as 'layer4.*.se'",
        if_twice="it is kept once",
    ),
    "unknown": Key(
        "keep",
        "channels of operators that no rule says anything about. keep: they stay whole, and the log says so; refuse: "
        "an error",
        OneOf("keep", "refuse"),
    ),
    "clustering": Key(
        "ward",
        "how rows are clustered; balanced: equally large under layer and group norms; to compare: kmeans, random",
        OneOf("ward", "balanced", "kmeans", "random"),
    ),
    "normalize_rows": Key(
        "auto", "cluster rows of unit length; auto: where there is attention", OneOf("auto", "yes", "no")
    ),
    "attention": Key(
        "folded", "queries and keys of students made exact; paper: left as they come", OneOf("folded", "paper")
    ),
    "nested": Key(
        False, "students are cuts of one tree, so that wide ones keep what narrow ones merge; False: the paper's chain"
    ),
    "contributions": Key(
        0,
        "batches of training images on which it is measured what channels contribute, which a nested chain's clusters "
        "then follow, and its slots' leaders; 0: clusters of rows, slots of means",
        AtLeast(0),
    ),
    "refine": {
        **stage_node(max_epoch=60, lr=3.5e-4),
        "lambda": Key(1.0, "weight of the refining loss", AtLeast(0)),
        "lambda_schedule": Key(
            "linear",
            "linear: from 0 to lambda over all iterations; constant suits long schedules",
            OneOf("constant", "linear"),
        ),
        "sstudent_weight": Key(1.0, "weight of the losses of S-student and levels; 0: they only follow", AtLeast(0)),
        "lambda_within": Key(
            1.0, "weight of what makes the rows of a cluster alike, as a share of lambda; 1: the paper's", AtLeast(0)
        ),
        "distil_weight": Key(
            0.0, "weight of what networks lose against a teacher's class scores; 0: the paper's", AtLeast(0)
        ),
        "distil_temperature": Key(4.0, "temperature of these class scores", AtLeast(1e-6)),
        "distil_from": Key(
            "first",
            "first: all learn from the teacher as it was before, in one more forward pass; now: narrow students learn "
            "from the teacher as it is",
            OneOf("first", "now"),
        ),
        "levels": Key(
            0,
            "further widths of a nested chain, evenly spaced, that are trained in the refinement, one in each step",
            AtLeast(0),
        ),
        "level_start": Key(0.3, "share of the refinement after which levels are trained", Between(0, 1)),
        "teacher_lr_factor": Key(
            1.0, "the teacher's learning rate as a multiple of lr, which is the chain's; 1: the paper's", AtLeast(1e-6)
        ),
        "vector_copies": Key(False, "norm parameters and biases of the S-student's own, refined as rows are"),
    },
    # Which networks there are; each is made once.
    "students": Key(
        ["width=0.25"],
        "width=0.5, like=NAME, ...; by a baseline instead of the chain: slice:width=0.5, kd++:like=osnet_x0_25, ...; "
        "file=PATH: a student of an earlier run",
        effect=NEITHER,
        if_twice="it would be made twice",
    ),
    # Chooses widths, which are compared themselves.
    "latency": {
        "batch": Key(1, "images in a timed batch", AtLeast(1), NEITHER),
        "threads": Key(0, "threads of timed batches; 0: torch's own number", Between(0, MOST_PROCESSES), NEITHER),
        "device": Key("cpu", "device that batches are timed on", OneOf("cpu", "cuda"), NEITHER),
        "backend": Key(
            "auto",
            "runtime of timed batches; auto: ONNX Runtime where it is installed, else PyTorch",
            OneOf("auto", "pytorch", "onnxruntime", "openvino"),
            NEITHER,
        ),
    },
    "statistics": Key(
        "own",
        "running statistics of students: own of the S-student, merged, initial (0 and 1)",
        OneOf("own", "merged", "initial"),
    ),
    "vectors_over": Key(
        "chain",
        "whose means of norm parameters slots have: clusters, slots, or chain: as it says, slots if recalibrated",
        OneOf("chain", "clusters", "slots"),
    ),
    "distance": Key(
        "none",
        "whose distances students' features have before fine-tuning: chain, teacher",
        OneOf("none", "chain", "teacher"),
    ),
    "feature": Key(
        "own",
        "features of students: own, an entry per slot; teacher: lifted to the teacher's length, so that students of "
        "all widths share one gallery",
        OneOf("own", "teacher"),
    ),
    "recalibrate": Key(
        24, "batches of training images that re-estimate norm statistics before fine-tuning; 0: none", AtLeast(0)
    ),
    "finetune": {
        **stage_node(max_epoch=60, lr=3.5e-4),
        "compatible": Key(
            0.0,
            "weight of what holds lifted features of the chain's students to its widest student's, so that students "
            "of all widths still share one gallery; 0: each on its own",
            AtLeast(0),
        ),
    },
    "processes": Key(
        1,
        "networks trained at a time (controls during the refinement); more useful than threads",
        Between(1, MOST_PROCESSES),
        NEITHER,
    ),
    "curves": Key(False, "evaluate students and controls after every epoch of fine-tuning, and keep the numbers"),
    "controls": Key(
        [],
        "baselines at the chain's width, fine-tuned as long as the students",
        Registered(known_baselines),
        NEITHER,
        if_twice="it would be made twice",
    ),
    "control_lr": _rates,
    "distillation": {
        "of_chain": Key(False, "fine-tune students of the chain by distillation too, from its widest student"),
        "start": Key(
            "scratch",
            "kd++: baseline that the student begins as",
            Registered(lambda: tuple(name for name in known_baselines() if name not in DISTILLED)),
        ),
        "temperature": Key(4.0, "kd++, norm+kd, kmeans+kd: temperature of the class scores", AtLeast(1e-6)),
        "weight_kl": Key(1.0, "kd++, norm+kd, kmeans+kd: weight of the divergence of class scores", AtLeast(0)),
        "weight_nd": Key(1.0, "kd++, norm+kd, kmeans+kd: weight of the norm and direction loss", AtLeast(0)),
    },
}
