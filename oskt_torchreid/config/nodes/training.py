"""Keys of the network and its training: schedules of all stages, optimisers, losses."""

from __future__ import annotations

from ..allowed import SEED, AtLeast, Between, Entries, OneOf
from ..keys import NEITHER, Key, Node

MODEL: Node = {
    "name": Key("resnet50", "backbone, by its name in torchreid"),
    "pretrained": Key(True, "ImageNet weights, downloaded by torchreid"),
    "load_weights": Key("", "file of weights to start from; empty: none"),
    "resume": Key(
        "", "checkpoint of an interrupted run; empty or auto: where the run in data.save_dir stopped", effect=NEITHER
    ),
    "neck": Key(False, "batch norm neck between feature and classifier, on any backbone", own=True),
    "last_stride": Key(0, "1: no downsampling before the last stage; 0: as the backbone has it", OneOf(0, 1), own=True),
}


_SCHEDULES = OneOf("single_step", "multi_step", "cosine", "one_cycle", "warmup_multi_step", "warmup_cosine")


def stage_node(
    max_epoch: int, lr: float, weight_decay: float = 5e-4, batch_size: int = 32, lr_scheduler: str = "cosine"
) -> Node:
    """Keys of one training stage, named as in the train node (which gives the optimiser for all stages)."""
    return {
        "max_epoch": Key(max_epoch, "epochs; 0: the stage is left out", AtLeast(0)),
        "lr": Key(lr, "learning rate, the highest of the schedule", AtLeast(0)),
        "weight_decay": Key(weight_decay, "weight of the L2 penalty", AtLeast(0)),
        "batch_size": Key(batch_size, "pictures in a batch", AtLeast(1)),
        "lr_scheduler": Key(lr_scheduler, "schedule of the learning rate", _SCHEDULES),
        "stepsize": Key(
            [20], "epochs at which steps change the rate; single_step: every so many", Entries(1, each=AtLeast(1))
        ),
        "gamma": Key(0.1, "factor by which a step changes the rate", AtLeast(0)),
        "per_iteration": Key(False, "the schedule moves after every batch instead of every epoch", own=True),
        "warmup_share": Key(0.3, "one_cycle: share of all steps in which the rate rises", Between(0, 0.9), own=True),
        "warmup_epochs": Key(
            0, "warmup_multi_step, warmup_cosine: epochs in which the rate rises linearly", AtLeast(0), own=True
        ),
        "warmup_factor": Key(0.01, "share of the rate that the rise begins at", Between(0, 1), own=True),
        "min_lr_factor": Key(0.0, "warmup_cosine: share of the rate that it ends at", Between(0, 1), own=True),
        "half_resolution_epochs": Key(0, "first epochs, which see average-pooled images", AtLeast(0), own=True),
    }


_STAGE = stage_node(max_epoch=60, lr=0.0003, lr_scheduler="single_step")
STAGE_KEYS = tuple(_STAGE)
"""Names of the keys that every training stage has."""


def _of_stage(*names: str) -> Node:
    return {name: _STAGE[name] for name in names}


TRAIN: Node = {
    "optim": Key("adam", "optimiser of every stage", OneOf("adam", "amsgrad", "sgd", "rmsprop", "radam")),
    **_of_stage("lr", "weight_decay", "max_epoch"),
    "start_epoch": Key(0, "epoch to begin at", AtLeast(0)),
    **_of_stage("batch_size"),
    "fixbase_epoch": Key(0, "first epochs, which only train the open layers", AtLeast(0)),
    "open_layers": Key(["classifier"], "layers that are trained in the first epochs, see fixbase_epoch"),
    "staged_lr": Key(False, "new layers have a higher learning rate than others, in every stage"),
    "new_layers": Key(["classifier"], "layers that are new"),
    "base_lr_mult": Key(0.1, "learning rate of other layers as a multiple of that of new ones", AtLeast(0)),
    **_of_stage("lr_scheduler", "stepsize", "gamma"),
    "print_freq": Key(20, "batches from one line of the log to the next", AtLeast(1), NEITHER),
    "seed": Key(1, "seed of everything random", SEED),
    **_of_stage("per_iteration", "warmup_share", "warmup_epochs", "warmup_factor", "min_lr_factor"),
    "sync_batch_norm": Key(False, "under torchrun: norms of every stage see the batch of all processes", own=True),
    "mixed_precision": Key(False, "every stage trains in bfloat16 if there is a GPU", own=True),
    "bias_lr_factor": Key(
        1.0, "learning rate of biases as a multiple of the others', in every stage", AtLeast(0), own=True
    ),
    **_of_stage("half_resolution_epochs"),
    "channels_last": Key(
        False, "memory format of every stage: faster for depthwise and pointwise convolutions", own=True
    ),
}

SGD: Node = {
    "momentum": Key(0.9, "share of the step before that a step keeps", Between(0, 1)),
    "dampening": Key(0.0, "share of the gradient that momentum leaves out", Between(0, 1)),
    "nesterov": Key(False, "Nesterov momentum"),
}
RMSPROP: Node = {"alpha": Key(0.99, "decay of the mean of squared gradients", Between(0, 1))}
ADAM: Node = {
    "beta1": Key(0.9, "decay of the mean of gradients", Between(0, 0.999999)),
    "beta2": Key(0.999, "decay of the mean of squared gradients", Between(0, 0.9999999)),
}

LOSS: Node = {
    "name": Key("softmax", "cross-entropy alone, or the triplet loss with it", OneOf("softmax", "triplet")),
    "softmax": {"label_smooth": Key(True, "labels of the cross-entropy are smoothed by 0.1")},
    "triplet": {
        "margin": Key(0.3, "margin between the distances", AtLeast(0)),
        "weight_t": Key(1.0, "weight of the triplet loss", AtLeast(0)),
        "weight_x": Key(0.0, "weight of the cross-entropy next to it", AtLeast(0)),
        "soft_margin": Key(False, "log(1 + exp(d_positive - d_negative)) instead of the margin", own=True),
        "normalize": Key(False, "triplet on L2-normalised features", own=True),
    },
    "center": {
        "weight": Key(0.0, "weight of the center loss; 0: none", AtLeast(0), own=True),
        "lr": Key(0.5, "learning rate of the centers", AtLeast(0), own=True),
    },
}
