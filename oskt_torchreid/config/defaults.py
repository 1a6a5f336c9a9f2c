"""Every key with its default, the allowed values and the allowed ranges; YAML files hold differences from this."""

from typing import Any

from .own_nodes import BASELINES, known_baselines, own_tree, warmup_keys

INFINITY = float("inf")


def default_tree() -> dict[str, Any]:
    """The defaults as nested dicts: torchreid's tree, then the nodes of this package."""
    return {**_host_tree(), **own_tree()}


def _host_tree() -> dict[str, Any]:
    """torchreid's keys and defaults; additions to its nodes are marked."""
    return {
        "use_gpu": True,  # where there is one
        "model": {
            "name": "resnet50",
            "pretrained": True,  # ImageNet weights, downloaded by torchreid
            "load_weights": "",
            "resume": "",  # checkpoint of an interrupted run; empty or auto: where the run in data.save_dir stopped
            # added
            "neck": False,  # batch norm neck between feature and classifier, on any backbone
            "last_stride": 0,  # 1: no downsampling before the last stage; 0: as the backbone has it
        },
        "data": _data_node(),
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
        "train": _train_node(),
        "sgd": {"momentum": 0.9, "dampening": 0.0, "nesterov": False},
        "rmsprop": {"alpha": 0.99},
        "adam": {"beta1": 0.9, "beta2": 0.999},
        "loss": _loss_node(),
        "test": _test_node(),
    }


def _data_node() -> dict[str, Any]:
    return {
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
        # added: pictures that are looked at before anything is trained; headers: opened, all: decoded, none
        "check": "headers",
        "load_train_targets": False,
    }


def _train_node() -> dict[str, Any]:
    return {
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
        **warmup_keys(),
        "sync_batch_norm": False,  # under torchrun: norms of every stage see the batch of all processes
        "mixed_precision": False,  # every stage trains in bfloat16 where there is a GPU
        "bias_lr_factor": 1.0,  # learning rate of biases as a multiple of the others', in every stage
        "half_resolution_epochs": 0,  # first epochs that see average-pooled images
        "channels_last": False,  # memory format of every stage: faster for depthwise and pointwise convolutions
    }


def _loss_node() -> dict[str, Any]:
    return {
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
    }


def _test_node() -> dict[str, Any]:
    return {
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
    }


_STAGES = ("train", "oskt.refine", "oskt.finetune", "vkd.teacher_stage", "vkd.student_stage")

_SCHEDULES = ("single_step", "multi_step", "cosine", "one_cycle", "warmup_multi_step", "warmup_cosine")

CHOICES: dict[str, tuple[Any, ...]] = {
    "data.type": ("image", "video"),
    "data.interpolation": ("bilinear", "bicubic"),
    "data.check": ("headers", "all", "none"),
    "data.transforms": ("random_flip", "random_crop", "random_patch", "color_jitter", "random_erase", "pad_crop"),
    "loss.name": ("softmax", "triplet"),
    "sampler.train_sampler": (
        *("RandomSampler", "RandomIdentitySampler", "SequentialSampler"),
        *("RandomDomainSampler", "RandomDatasetSampler"),
    ),
    "model.last_stride": (0, 1),
    "test.dist_metric": ("euclidean", "cosine"),
    "train.optim": ("adam", "amsgrad", "sgd", "rmsprop", "radam"),
    "oskt.refine.lambda_schedule": ("constant", "linear"),
    "oskt.clustering": ("ward", "balanced", "kmeans", "random"),
    "oskt.normalize_rows": ("auto", "yes", "no"),
    "oskt.attention": ("folded", "paper"),
    "oskt.latency.device": ("cpu", "cuda"),
    "oskt.latency.backend": ("pytorch", "onnxruntime", "openvino"),
    "oskt.distance": ("none", "chain", "teacher"),
    "oskt.statistics": ("own", "merged", "initial"),
    "oskt.controls": BASELINES,
    "comparison.methods": BASELINES,
    "vkd.strategy": ("multiview", "temporal", "chunk", "random"),
    "vkd.teacher_stage.strategy": ("", "multiview", "temporal", "chunk", "random"),
    "vkd.protocols": ("V2V", "I2V", "V2I", "I2I"),
    "oskt.distillation.start": tuple(name for name in BASELINES if name != "kd++"),
    **{f"{stage}.lr_scheduler": _SCHEDULES for stage in _STAGES},
}


def choices() -> dict[str, tuple[Any, ...]]:
    """``CHOICES``, with the methods that others have registered."""
    names = known_baselines()
    return {**CHOICES, "oskt.controls": names, "comparison.methods": names}


NUMBERS_OR_WORDS = ("oskt.width",)
"""Numbers that may also be a name, which the part that knows the names checks."""

LARGEST_NUMBER = 2**31
LONGEST_TEXT, LONGEST_NAME = 1000, 255  # characters of a value, bytes of a name in a path
LARGEST_SEED = 2**31  # epochs are added to it, and NumPy takes 32 bits
MOST_PROCESSES = 256

RANGES: dict[str, tuple[float, float]] = {
    "data.height": (1, 4096),
    "data.width": (1, 4096),
    "data.workers": (0, MOST_PROCESSES),
    "data.split_id": (0, INFINITY),
    "data.k_tfm": (1, INFINITY),
    "sampler.num_instances": (1, INFINITY),
    "sampler.num_cams": (1, INFINITY),
    "sampler.num_datasets": (1, INFINITY),
    "train.start_epoch": (0, INFINITY),
    "train.fixbase_epoch": (0, INFINITY),
    "train.base_lr_mult": (0, INFINITY),
    "train.print_freq": (1, INFINITY),
    "train.seed": (0, LARGEST_SEED),
    "sgd.momentum": (0, 1),
    "sgd.dampening": (0, 1),
    "rmsprop.alpha": (0, 1),
    "adam.beta1": (0, 0.999999),
    "adam.beta2": (0, 0.9999999),
    "loss.triplet.margin": (0, INFINITY),
    "loss.triplet.weight_t": (0, INFINITY),
    "loss.triplet.weight_x": (0, INFINITY),
    "loss.center.weight": (0, INFINITY),
    "loss.center.lr": (0, INFINITY),
    "test.batch_size": (1, INFINITY),
    "test.eval_freq": (-1, INFINITY),
    "test.start_eval": (0, INFINITY),
    "test.visrank_topk": (1, 1000),
    "oskt.width": (1e-6, 1),
    "oskt.latency.batch": (1, INFINITY),
    "oskt.latency.threads": (0, MOST_PROCESSES),
    "oskt.processes": (1, MOST_PROCESSES),
    "oskt.recalibrate": (0, INFINITY),
    "oskt.refine.lambda": (0, INFINITY),
    "oskt.refine.sstudent_weight": (0, INFINITY),
    "oskt.distillation.temperature": (1e-6, INFINITY),
    "oskt.distillation.weight_kl": (0, INFINITY),
    "oskt.distillation.weight_nd": (0, INFINITY),
    **{f"oskt.control_lr.{name}": (0, INFINITY) for name in BASELINES},
    "train.bias_lr_factor": (0, INFINITY),
    "vkd.num_views": (1, INFINITY),
    "vkd.num_student_views": (1, INFINITY),
    "vkd.teacher_stage.num_views": (0, INFINITY),
    "vkd.frame_memory": (0, INFINITY),
    "vkd.test_frames": (0, INFINITY),
    "vkd.temperature": (1e-6, INFINITY),
    "vkd.student_width": (1e-6, 1),
    "vkd.alpha": (0, INFINITY),
    "vkd.beta": (0, INFINITY),
    "vkd.generations": (1, INFINITY),
    "few_shot.ratio": (1e-6, 1),
    "comparison.further_rates": (0, INFINITY),
    "comparison.tuning_width": (1e-6, 1),
    "comparison.validation_share": (0.01, 0.9),
    "comparison.ablation_epochs": (0, INFINITY),
    "comparison.transfer.max_epoch": (1, INFINITY),
    "few_shot.seed": (0, LARGEST_SEED),
    "validation.share": (0, 0.9),
    "validation.seed": (0, LARGEST_SEED),
    **{f"synthped.{key}": (0, INFINITY) for key in ("seed", "num_train", "num_test", "cameras")},
    **{f"synthped_video.{key}": (0, INFINITY) for key in ("seed", "num_train", "num_test", "cameras")},
    "synthped_video.tracklets": (0, INFINITY),
    "synthped_video.frames": (0, INFINITY),
    **{f"{stage}.max_epoch": (0, INFINITY) for stage in _STAGES},
    **{f"{stage}.lr": (0, INFINITY) for stage in _STAGES},
    **{f"{stage}.gamma": (0, INFINITY) for stage in _STAGES},
    **{f"{stage}.weight_decay": (0, INFINITY) for stage in _STAGES},
    **{f"{stage}.batch_size": (1, INFINITY) for stage in _STAGES},
    **{f"{stage}.warmup_share": (0, 0.9) for stage in _STAGES},
    **{f"{stage}.warmup_epochs": (0, INFINITY) for stage in _STAGES},
    **{f"{stage}.warmup_factor": (0, 1) for stage in _STAGES},
    **{f"{stage}.min_lr_factor": (0, 1) for stage in _STAGES},
    **{f"{stage}.half_resolution_epochs": (0, INFINITY) for stage in _STAGES},
}


def ranges() -> dict[str, tuple[float, float]]:
    """``RANGES``, with the rates of methods that others have registered."""
    return {**RANGES, **{f"oskt.control_lr.{name}": (0, INFINITY) for name in known_baselines()}}


LISTS: dict[str, tuple[int, float, float, float]] = {
    "data.sources": (1, INFINITY, 0, 0),
    "data.targets": (1, INFINITY, 0, 0),
    "data.norm_mean": (3, 3, -1e6, 1e6),
    "data.norm_std": (3, 3, 1e-6, 1e6),
    "test.ranks": (1, INFINITY, 1, INFINITY),
    "comparison.widths": (0, INFINITY, 1e-6, 1),
    "comparison.equal_passes_widths": (0, INFINITY, 1e-6, 1),
    "comparison.seeds": (0, INFINITY, 0, LARGEST_SEED),
    "comparison.data_seeds": (0, INFINITY, 0, LARGEST_SEED),
    "comparison.rates": (0, INFINITY, 1e-12, INFINITY),
    "comparison.teacher_rates": (0, INFINITY, 1e-12, INFINITY),
    "comparison.refine_rates": (0, INFINITY, 1e-12, INFINITY),
    "comparison.transfer.identities": (0, INFINITY, 1, INFINITY),
    "comparison.transfer.widths": (0, INFINITY, 1e-6, 1),
    **{f"{stage}.stepsize": (1, INFINITY, 1, INFINITY) for stage in _STAGES},
}
"""Lists: the fewest and the most entries, and the range of entries that are numbers."""
