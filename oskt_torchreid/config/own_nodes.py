"""The nodes that this package adds to torchreid's tree."""

from typing import Any

from ..registry import baseline_names

BASELINES = ("scratch", "slice", "first", "norm", "kmeans", "depgraph", "kd++")
"""Names of this package's own methods that the chain is compared with; anybody may register more."""
CONTROL_RATE = 3e-3


def known_baselines() -> tuple[str, ...]:
    """Names of all methods that the chain can be compared with, those of others included."""
    return tuple(dict.fromkeys([*BASELINES, *baseline_names()]))


def own_tree() -> dict[str, Any]:
    """The nodes of this package with their defaults."""
    return {
        "engine": "",  # softmax | triplet | oskt | vkd; empty: torchreid's choice by loss.name
        "oskt": _oskt_node(),
        "vkd": _vkd_node(),
        "comparison": _comparison_node(),
        "few_shot": {"ratio": 1.0, "seed": 0},  # share of the training identities that is kept, drawn by the seed
        # Share of the training identities that is held out and takes the place of query and gallery; 0: the test set.
        "validation": {"share": 0.0, "seed": 0},
        "synthped": {
            "preset": "quick",
            "seed": 0,
            "num_train": 0,  # identities; 0: as the preset says
            "num_test": 0,
            "cameras": 0,
        },
        "synthped_video": {
            "preset": "quick",
            "seed": 0,
            "num_train": 0,  # identities; 0: as the preset says
            "num_test": 0,
            "cameras": 0,
            "tracklets": 0,  # of an identity at a camera
            "frames": 0,  # of a tracklet
        },
    }


def _oskt_node() -> dict[str, Any]:
    return {
        "teacher": "",  # checkpoint; empty: train one first, with the train node
        "width": 0.25,  # chain width ratio, or a preset such as res50-s1
        "ladder": [],  # several chains instead of one, from wide to narrow: [0.5, 0.25], or like=NAME for widths
        "chain": "",  # refined chain file: no teacher and no refinement, students alone, on whatever data
        "clustering": "ward",  # balanced: equally large under layer and group norms; to compare: kmeans, random
        "normalize_rows": "auto",  # cluster rows of unit length: yes, no, auto (where there is attention)
        "attention": "folded",  # queries and keys of students made exact; paper: left as they come
        "refine": {
            **schedule_node(max_epoch=60, lr=3.5e-4),
            "lambda": 1.0,
            "lambda_schedule": "linear",  # 0 to lambda over all iterations; constant suits long schedules
            "sstudent_weight": 1.0,  # of the S-student's loss; 0: it only follows
            "vector_copies": False,  # norm parameters and biases of the S-student's own, refined as rows are
        },
        # width=0.5, like=NAME, ...; by a baseline instead of the chain: slice:width=0.5, kd++:like=osnet_x0_25, ...
        # file=PATH: a student of an earlier run
        "students": ["width=0.25"],
        # How latency budgets are measured; threads 0: torch's own number.
        "latency": {"batch": 1, "threads": 0, "device": "cpu", "backend": "pytorch"},
        "statistics": "own",  # running statistics of students: own of the S-student, merged, initial (0 and 1)
        "distance": "none",  # whose distances students' features have before fine-tuning: chain, teacher
        "recalibrate": 24,  # batches of training images that re-estimate norm statistics before fine-tuning; 0: none
        "finetune": schedule_node(max_epoch=60, lr=3.5e-4),
        "processes": 1,  # networks trained at a time (controls beside the refinement); of more use than threads
        "curves": False,  # evaluate students and controls after every epoch of fine-tuning, and keep the numbers
        "controls": [],  # baselines at the chain's width, fine-tuned as long as the students
        # Freshly inherited and untrained narrow networks want a higher rate than refined students.
        "control_lr": dict.fromkeys(known_baselines(), CONTROL_RATE),
        "distillation": {  # kd++
            "start": "scratch",  # or any other baseline that the student begins as
            "temperature": 4.0,
            "weight_kl": 1.0,
            "weight_nd": 1.0,
        },
    }


def _vkd_node() -> dict[str, Any]:
    return {
        "teacher": "",  # checkpoint; empty: train one first
        # Backbone; or a chain file, expanded to student_width; or width=0.5, params=1M, like=NAME: of a chain of these
        # widths that is made of the teacher in this run; empty: the teacher's own backbone.
        "student": "",
        "student_width": 0.5,
        "num_views": 8,  # frames of a set, which the teacher sees
        "num_student_views": 2,  # of these, which the student sees
        "strategy": "multiview",  # where the frames of a set come from
        "no_camera": False,  # as if there were no camera labels
        "frame_memory": 0,  # megabytes of decoded training frames that are kept; of use with data.workers 0
        "test_frames": 8,  # evenly spaced frames of a tracklet in evaluation; 0: all
        "temperature": 10.0,
        "alpha": 0.1,  # weight of the distilled classification
        "beta": 1e-4,  # weight of the preserved distances
        "generations": 1,  # every student but the last is the next one's teacher
        "reinit_last_stage": True,  # last stage and head restart instead of following the teacher
        # What the stage restarts from: a file of published weights of the backbone, or imagenet, downloaded by
        # torchreid; empty: fresh weights.
        "last_stage_weights": "",
        "protocols": ["V2V", "I2V"],  # evaluated: query and gallery as tracklets (V) or as their first frames (I)
        "query_in_gallery": False,  # queries join the gallery, as is usual on MARS
        # Batches are sets: batch_size / sampler.num_instances identities, each with num_instances sets.
        "teacher_stage": {
            **schedule_node(max_epoch=300, lr=1e-4),
            "weight_decay": 1e-5,
            "num_views": 0,  # frames of a set that the teacher learns from; 0: vkd.num_views
            "strategy": "",  # where they come from; empty: vkd.strategy
        },
        "student_stage": {**schedule_node(max_epoch=500, lr=1e-4), "weight_decay": 1e-5, "batch_size": 48},
    }


def _comparison_node() -> dict[str, Any]:
    """Of tools/benchmark.py accuracy: the chain against baselines, with teacher, chain and schedules of other nodes."""
    return {
        "widths": [0.25, 0.5, 0.75],  # of students by chain and baselines
        "methods": [name for name in BASELINES if name != "depgraph"],  # which needs a package more
        "seeds": [1, 2, 3],  # train.seed
        "data_seeds": [0, 1],  # synthped.seed; one entry for data that are not drawn
        "equal_passes_widths": [0.25],  # at which baselines also get the passes that the chain was refined for
        "teacher_rates": [],  # candidates for the teacher; empty: train.lr as it is
        "refine_rates": [],  # candidates for the refinement; empty: oskt.refine.lr as it is
        "rates": [0.001, 0.003, 0.01],  # candidates for every student
        "further_rates": 2,  # steps by which they are prolonged where a method's best is the first or last
        "tuning_width": 0.25,
        "validation_share": 0.25,  # of the training identities, on which rates are chosen
        "transfer": {
            "identities": [],  # numbers of identities of other people to learn from: [16, 32]
            "data_seed": 100,  # added to the data seed of the source
            "widths": [0.25],
            "max_epoch": 20,
            "half_resolution_epochs": 0,
        },
        "ablations": [],  # 'random labels: oskt.clustering=random', ...: name and changed keys
        "ablation_epochs": 0,  # of refinement in ablations; 0: oskt.refine.max_epoch
    }


def schedule_node(max_epoch: int, lr: float) -> dict[str, Any]:
    """Keys of one training stage, named as in the train node (which gives the optimiser for all stages)."""
    return {
        "max_epoch": max_epoch,
        "lr": lr,
        "weight_decay": 5e-4,
        "batch_size": 32,
        "lr_scheduler": "cosine",
        "stepsize": [20],
        "gamma": 0.1,
        "per_iteration": False,
        "warmup_share": 0.3,
        **warmup_keys(),
        "half_resolution_epochs": 0,
    }


def warmup_keys() -> dict[str, Any]:
    """Keys of the schedules warmup_multi_step and warmup_cosine."""
    return {
        "warmup_epochs": 0,  # epochs in which the rate rises linearly, from
        "warmup_factor": 0.01,  # this share of it
        "min_lr_factor": 0.0,  # share that a cosine ends at
    }
