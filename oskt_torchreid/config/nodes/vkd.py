"""Keys of VKD: the sets of frames, the student, and its distillation."""

from __future__ import annotations

from ..allowed import MOST_PROCESSES, WIDTH, AtLeast, Between, OneOf
from ..keys import NEITHER, NUMBERS, Key, Node
from .training import stage_node

_STRATEGIES = ("multiview", "temporal", "chunk", "random")

# Batches are sets: batch_size / sampler.num_instances identities, each with num_instances sets.
VKD: Node = {
    "teacher": Key("", "checkpoint; empty: train one first"),
    "student": Key(
        "",
        "backbone; or a chain file, expanded to student_width; or width=0.5, params=1M, like=NAME: of a chain of these "
        "widths that is made of the teacher in this run; empty: the teacher's own backbone",
    ),
    "student_width": Key(0.5, "width ratio that a chain file is expanded to", WIDTH),
    "num_views": Key(8, "frames of a set, all of which the teacher sees", AtLeast(1)),
    "num_student_views": Key(2, "frames of a set that the student sees", AtLeast(1)),
    "strategy": Key("multiview", "where the frames of a set come from", OneOf(*_STRATEGIES)),
    "no_camera": Key(False, "as if there were no camera labels"),
    "frame_memory": Key(
        0, "megabytes of decoded training frames that are kept; of use with data.workers 0", AtLeast(0), NEITHER
    ),
    "test_frames": Key(8, "evenly spaced frames of a tracklet in evaluation; 0: all", AtLeast(0), NUMBERS),
    "temperature": Key(10.0, "temperature of the class scores that are distilled", AtLeast(1e-6)),
    "alpha": Key(0.1, "weight of the distilled classification", AtLeast(0)),
    "beta": Key(1e-4, "weight of the preserved distances", AtLeast(0)),
    "distances": Key(
        "squared",
        "what is preserved: squared distances; those of embeddings of unit length; or multiples of a batch's mean",
        OneOf("squared", "unit", "mean"),
    ),
    "generations": Key(
        1, "students, one after the other; each but the last is the next one's teacher", AtLeast(1), NEITHER
    ),
    "controls": Key(
        False,
        "beside every student: its teacher, trained on for as many epochs, and the same student without distillation",
        effect=NEITHER,
    ),
    "trained_on_lr": Key(0.0, "learning rate of the teacher that is trained on; 0: the student's", AtLeast(0)),
    "processes": Key(
        1, "student and controls trained at a time; more useful than threads", Between(1, MOST_PROCESSES), NEITHER
    ),
    "reinit_last_stage": Key(
        True, "last stage of the backbone and classifier restart instead of starting from the teacher"
    ),
    "last_stage_weights": Key(
        "",
        "what the stage restarts from: a file of published weights of the backbone, or imagenet, downloaded by "
        "torchreid; empty: fresh weights",
    ),
    "protocols": Key(
        ["V2V", "I2V"],
        "what is evaluated: query and gallery as tracklets (V) or as their first frames (I)",
        OneOf("V2V", "I2V", "V2I", "I2I"),
        NUMBERS,
        if_twice="it would be evaluated twice",
    ),
    "query_in_gallery": Key(False, "queries join the gallery, as is usual on MARS", effect=NUMBERS),
    "teacher_stage": {
        **stage_node(max_epoch=300, lr=1e-4, weight_decay=1e-5),
        "num_views": Key(0, "frames of a set that the teacher learns from; 0: vkd.num_views", AtLeast(0)),
        "strategy": Key("", "where these frames come from; empty: vkd.strategy", OneOf("", *_STRATEGIES)),
    },
    "student_stage": stage_node(max_epoch=500, lr=1e-4, weight_decay=1e-5, batch_size=48),
}
