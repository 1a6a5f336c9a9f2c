"""Every key with its default, the allowed values and the allowed ranges; YAML files hold differences from this."""

from typing import Any

INFINITY = float("inf")


def default_tree() -> dict[str, Any]:
    """The defaults as nested dicts: torchreid's tree, then the nodes of this package."""
    return {**_host_tree(), **_own_tree()}


def _host_tree() -> dict[str, Any]:
    """torchreid's keys and defaults; additions to its nodes are marked."""
    return {
        "use_gpu": True,  # where there is one
        "model": {
            "name": "resnet50",
            "pretrained": True,  # ImageNet weights, downloaded by torchreid
            "load_weights": "",
            "resume": "",
            # added
            "neck": False,  # batch norm neck between feature and classifier, on any backbone
            "last_stride": 0,  # 1: no downsampling before the last stage; 0: as the backbone has it
        },
        "data": {
            "type": "image",
            "root": "reid-data",
            "sources": ["market1501"],
            "targets": ["market1501"],
            "workers": 4,
            "split_id": 0,
            "height": 256,
            "width": 128,
            "combineall": False,
            "transforms": ["random_flip"],
            "k_tfm": 1,
            "norm_mean": [0.485, 0.456, 0.406],
            "norm_std": [0.229, 0.224, 0.225],
            "interpolation": "bilinear",  # added: how images are resized; or bicubic
            "save_dir": "log",
            "load_train_targets": False,
        },
        "market1501": {"use_500k_distractors": False},
        "cuhk03": {"labeled_images": False, "classic_split": False, "use_metric_cuhk03": False},
        "sampler": {
            "train_sampler": "RandomSampler",
            "train_sampler_t": "RandomSampler",
            "num_instances": 4,
            "num_cams": 1,
            "num_datasets": 1,
        },
        "video": {"seq_len": 15, "sample_method": "evenly", "pooling_method": "avg"},
        "train": {
            "optim": "adam",
            "lr": 0.0003,
            "weight_decay": 5e-4,
            "max_epoch": 60,
            "start_epoch": 0,
            "batch_size": 32,
            "fixbase_epoch": 0,
            "open_layers": ["classifier"],
            "staged_lr": False,
            "new_layers": ["classifier"],
            "base_lr_mult": 0.1,
            "lr_scheduler": "single_step",
            "stepsize": [20],
            "gamma": 0.1,
            "print_freq": 20,
            "seed": 1,
            # added
            "per_iteration": False,  # the schedule moves after every batch instead of every epoch
            "warmup_share": 0.3,  # one_cycle: share of all steps in which the rate rises
            **_warmup_keys(),
            "mixed_precision": False,  # every stage trains in bfloat16 where there is a GPU
            "bias_lr_factor": 1.0,  # learning rate of biases as a multiple of the others', in every stage
            "half_resolution_epochs": 0,  # first epochs that see average-pooled images
            "channels_last": False,  # memory format of every stage: faster for depthwise and pointwise convolutions
        },
        "sgd": {"momentum": 0.9, "dampening": 0.0, "nesterov": False},
        "rmsprop": {"alpha": 0.99},
        "adam": {"beta1": 0.9, "beta2": 0.999},
        "loss": {
            "name": "softmax",
            "softmax": {"label_smooth": True},
            "triplet": {
                "margin": 0.3,
                "weight_t": 1.0,
                "weight_x": 0.0,
                # added
                "soft_margin": False,  # log(1 + exp(d_positive - d_negative)) instead of the margin
                "normalize": False,  # triplet on L2-normalised features
            },
            # added
            "center": {"weight": 0.0, "lr": 0.5},  # 0: no center loss
        },
        "test": {
            "batch_size": 100,
            "dist_metric": "euclidean",
            "normalize_feature": False,
            "ranks": [1, 5, 10, 20],
            "evaluate": False,
            "eval_freq": -1,
            "start_eval": 0,
            "rerank": False,
            "visrank": False,
            "visrank_topk": 10,
        },
    }


_BASELINES = ("scratch", "slice", "first", "norm", "kmeans", "depgraph", "kd++")


def _own_tree() -> dict[str, Any]:
    """The nodes of this package."""
    return {
        "engine": "",  # softmax | triplet | oskt; empty: torchreid's choice by loss.name
        "oskt": {
            "teacher": "",  # checkpoint; empty: train one first, with the train node
            "width": 0.25,  # chain width ratio, or a preset such as res50-s1
            "ladder": [],  # several chains instead of one, from wide to narrow: [0.5, 0.25], or like=NAME for widths
            "chain": "",  # refined chain file: no teacher and no refinement, students alone, on whatever data
            "clustering": "ward",  # balanced: equally large under layer and group norms; to compare: kmeans, random
            "normalize_rows": "auto",  # cluster rows of unit length: yes, no, auto (where there is attention)
            "attention": "folded",  # queries and keys of students made exact; paper: left as they come
            "refine": {
                **_schedule_node(max_epoch=60, lr=3.5e-4),
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
            "recalibrate": 0,  # batches of training images that re-estimate norm statistics before fine-tuning
            "finetune": _schedule_node(max_epoch=60, lr=3.5e-4),
            "curves": False,  # evaluate students and controls after every epoch of fine-tuning, and keep the numbers
            "controls": [],  # baselines at the chain's width, fine-tuned as long as the students
            # Freshly inherited and untrained narrow networks want a higher rate than refined students.
            "control_lr": dict.fromkeys(_BASELINES, 3e-3),
            "distillation": {  # kd++
                "start": "scratch",  # or any other baseline that the student begins as
                "temperature": 4.0,
                "weight_kl": 1.0,
                "weight_nd": 1.0,
            },
        },
        # tools/benchmark.py accuracy: chain against baselines, with teacher, chain and schedules of the other nodes.
        "comparison": {
            "widths": [0.25, 0.5, 0.75],  # of students by chain and baselines
            "methods": [name for name in _BASELINES if name != "depgraph"],  # which needs a package more
            "seeds": [1, 2, 3],  # train.seed
            "data_seeds": [0, 1],  # synthped.seed; one entry for data that are not drawn
            "equal_passes_widths": [0.25],  # at which baselines also get the passes that the chain was refined for
            "refine_rates": [],  # candidates for the refinement; empty: oskt.refine.lr as it is
            "rates": [0.001, 0.003, 0.01],  # candidates for every student
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
        },
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
    }


def _schedule_node(max_epoch: int, lr: float) -> dict[str, Any]:
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
        **_warmup_keys(),
        "half_resolution_epochs": 0,
    }


def _warmup_keys() -> dict[str, Any]:
    """Keys of the schedules warmup_multi_step and warmup_cosine."""
    return {
        "warmup_epochs": 0,  # epochs in which the rate rises linearly, from
        "warmup_factor": 0.01,  # this share of it
        "min_lr_factor": 0.0,  # share that a cosine ends at
    }


_STAGES = ("train", "oskt.refine", "oskt.finetune")

_SCHEDULES = ("single_step", "multi_step", "cosine", "one_cycle", "warmup_multi_step", "warmup_cosine")

CHOICES: dict[str, tuple[Any, ...]] = {
    "data.type": ("image", "video"),
    "data.interpolation": ("bilinear", "bicubic"),
    "data.transforms": ("random_flip", "random_crop", "random_patch", "color_jitter", "random_erase", "pad_crop"),
    "loss.name": ("softmax", "triplet"),
    "model.last_stride": (0, 1),
    "test.dist_metric": ("euclidean", "cosine"),
    "train.optim": ("adam", "amsgrad", "sgd", "rmsprop", "radam"),
    "oskt.refine.lambda_schedule": ("constant", "linear"),
    "oskt.clustering": ("ward", "balanced", "kmeans", "random"),
    "oskt.normalize_rows": ("auto", "yes", "no"),
    "oskt.attention": ("folded", "paper"),
    "oskt.latency.device": ("cpu", "cuda"),
    "oskt.latency.backend": ("pytorch", "onnxruntime"),
    "oskt.distance": ("none", "chain", "teacher"),
    "oskt.statistics": ("own", "merged", "initial"),
    "oskt.controls": _BASELINES,
    "comparison.methods": _BASELINES,
    "oskt.distillation.start": tuple(name for name in _BASELINES if name != "kd++"),
    **{f"{stage}.lr_scheduler": _SCHEDULES for stage in _STAGES},
}

NUMBERS_OR_WORDS = ("oskt.width",)
"""Numbers that may also be a name, which the part that knows the names checks."""

RANGES: dict[str, tuple[float, float]] = {
    "data.height": (1, INFINITY),
    "data.width": (1, INFINITY),
    "data.workers": (0, INFINITY),
    "sampler.num_instances": (1, INFINITY),
    "train.start_epoch": (0, INFINITY),
    "train.seed": (0, INFINITY),
    "loss.triplet.margin": (0, INFINITY),
    "loss.triplet.weight_t": (0, INFINITY),
    "loss.triplet.weight_x": (0, INFINITY),
    "loss.center.weight": (0, INFINITY),
    "loss.center.lr": (0, INFINITY),
    "test.batch_size": (1, INFINITY),
    "oskt.width": (1e-6, 1),
    "oskt.latency.batch": (1, INFINITY),
    "oskt.latency.threads": (0, INFINITY),
    "oskt.recalibrate": (0, INFINITY),
    "oskt.refine.lambda": (0, INFINITY),
    "oskt.refine.sstudent_weight": (0, INFINITY),
    "oskt.distillation.temperature": (1e-6, INFINITY),
    "oskt.distillation.weight_kl": (0, INFINITY),
    "oskt.distillation.weight_nd": (0, INFINITY),
    **{f"oskt.control_lr.{name}": (0, INFINITY) for name in _BASELINES},
    "train.bias_lr_factor": (0, INFINITY),
    "few_shot.ratio": (1e-6, 1),
    "comparison.tuning_width": (1e-6, 1),
    "comparison.validation_share": (0.01, 0.9),
    "comparison.ablation_epochs": (0, INFINITY),
    "comparison.transfer.max_epoch": (1, INFINITY),
    "few_shot.seed": (0, INFINITY),
    "validation.share": (0, 0.9),
    "validation.seed": (0, INFINITY),
    "synthped.seed": (0, INFINITY),
    "synthped.num_train": (0, INFINITY),
    "synthped.num_test": (0, INFINITY),
    "synthped.cameras": (0, INFINITY),
    **{f"{stage}.max_epoch": (0, INFINITY) for stage in _STAGES},
    **{f"{stage}.lr": (0, INFINITY) for stage in _STAGES},
    **{f"{stage}.weight_decay": (0, INFINITY) for stage in _STAGES},
    **{f"{stage}.batch_size": (1, INFINITY) for stage in _STAGES},
    **{f"{stage}.warmup_share": (0, 0.9) for stage in _STAGES},
    **{f"{stage}.warmup_epochs": (0, INFINITY) for stage in _STAGES},
    **{f"{stage}.warmup_factor": (0, 1) for stage in _STAGES},
    **{f"{stage}.min_lr_factor": (0, 1) for stage in _STAGES},
    **{f"{stage}.half_resolution_epochs": (0, INFINITY) for stage in _STAGES},
}
