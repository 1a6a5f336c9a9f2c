"""Keys of data: what is read, how it is drawn and put into batches, and which part of it is held out."""

from __future__ import annotations

from ..allowed import LONGEST_SIDE, MOST_PROCESSES, SEED, AtLeast, Between, Entries, Folder, OneOf
from ..keys import NEITHER, NUMBERS, Key, Node

_SAMPLERS = OneOf(
    *("RandomSampler", "RandomIdentitySampler", "SequentialSampler"),
    *("RandomDomainSampler", "RandomDatasetSampler"),
)
_TRANSFORMS = OneOf("random_flip", "random_crop", "random_patch", "color_jitter", "random_erase", "pad_crop")

DATA: Node = {
    "type": Key("image", "kind of the data sets: single pictures, or tracklets", OneOf("image", "video")),
    # The pictures themselves are compared: names, sizes, labels.
    "root": Key("reid-data", "folder of all data sets", Folder(), NEITHER),
    "sources": Key(
        ["market1501"], "data sets to learn from", Entries(1), if_twice="each of its people would have two labels"
    ),
    "targets": Key(
        ["market1501"], "data sets to evaluate on", Entries(1), effect=NUMBERS, if_twice="it would be shown twice"
    ),
    "workers": Key(4, "processes that read pictures; 0: only the run itself", Between(0, MOST_PROCESSES), NEITHER),
    "split_id": Key(0, "number of the split, of data sets that have several", AtLeast(0)),
    "height": Key(256, "height in pixels that pictures are resized to", Between(1, LONGEST_SIDE)),
    "width": Key(128, "width in pixels that pictures are resized to", Between(1, LONGEST_SIDE)),
    "combineall": Key(False, "query and gallery are learned from, too"),
    "transforms": Key(["random_flip"], "augmentations of training pictures", _TRANSFORMS),
    "k_tfm": Key(1, "views of a picture in a batch, each augmented separately", AtLeast(1)),
    "norm_mean": Key([0.485, 0.456, 0.406], "mean of each colour, subtracted", Entries(3, 3, Between(-1e6, 1e6))),
    "norm_std": Key(
        [0.229, 0.224, 0.225], "standard deviation of each colour, divided by", Entries(3, 3, Between(1e-6, 1e6))
    ),
    "interpolation": Key("bilinear", "how pictures are resized", OneOf("bilinear", "bicubic"), own=True),
    "save_dir": Key("log", "folder of the run", Folder(), NEITHER),
    "check": Key(
        "headers",
        "how pictures are looked at before anything is trained; headers: opened, all: decoded",
        OneOf("headers", "all", "none"),
        effect=NEITHER,
        own=True,
    ),
    "load_train_targets": Key(False, "pictures of targets are read for training, too"),
}

MARKET1501: Node = {
    "use_500k_distractors": Key(False, "500,000 further pictures in the gallery", effect=NUMBERS),
}

CUHK03: Node = {
    "labeled_images": Key(False, "boxes drawn by hand instead of those of a detector"),
    "classic_split": Key(False, "the classic splits, of 100 test identities, instead of the newer one, of 700"),
    "use_metric_cuhk03": Key(
        False, "the classic protocol: a random gallery picture of each identity, ten times", effect=NUMBERS
    ),
}

SAMPLER: Node = {
    "train_sampler": Key("RandomSampler", "how batches are drawn from the sources", _SAMPLERS),
    "train_sampler_t": Key("RandomSampler", "how batches are drawn from the training pictures of targets"),
    "num_instances": Key(4, "RandomIdentitySampler: pictures of an identity in a batch", AtLeast(1)),
    "num_cams": Key(1, "RandomDomainSampler: cameras in a batch", AtLeast(1)),
    "num_datasets": Key(1, "RandomDatasetSampler: data sets in a batch", AtLeast(1)),
}

VIDEO: Node = {
    "seq_len": Key(15, "frames that are drawn from a tracklet"),
    "sample_method": Key("evenly", "how the frames of a tracklet are drawn"),
    "pooling_method": Key("avg", "how the features of the frames become one"),
}

FEW_SHOT: Node = {
    "ratio": Key(1.0, "share of the training identities that is kept", Between(1e-6, 1)),
    "seed": Key(0, "seed by which the kept identities are drawn", SEED),
}

VALIDATION: Node = {
    "share": Key(
        0.0,
        "share of the training identities that is held out and takes the place of query and gallery; 0: the test set",
        Between(0, 0.9),
    ),
    "seed": Key(0, "seed by which the held-out identities are drawn", SEED),
}

SYNTHPED: Node = {
    "preset": Key("quick", "settings by name: quick, or the harder ones medium and hard"),
    "seed": Key(0, "seed of the people, cameras and pictures that are drawn", AtLeast(0)),
    "num_train": Key(0, "training identities; 0: as the preset says", AtLeast(0)),
    "num_test": Key(0, "test identities; 0: as the preset says", AtLeast(0), NUMBERS),
    "cameras": Key(0, "number of cameras; 0: as the preset says", AtLeast(0)),
}

CROPS: Node = {
    "path": Key(
        "", "folder with a folder of pictures per identity, or a CSV of path, identity, camera, split", effect=NEITHER
    ),
    "cameras": Key(
        "auto",
        "where a folder's cameras are from: auto (its cameras.csv, else names such as cam2 or c2), none, or a regular "
        "expression whose first group is the camera",
    ),
    "test_share": Key(0.5, "share of the identities that are tested on, unless the CSV says who", Between(0, 1)),
    "seed": Key(0, "seed by which the tested identities are drawn", SEED),
    "frame_gap": Key(
        0, "of tracklets: pictures whose numbers are further apart begin another one; 0: never", AtLeast(0)
    ),
}

SYNTHPED_VIDEO: Node = {
    **SYNTHPED,
    "preset": Key("quick", "settings by name: quick, or medium, which is harder"),
    "tracklets": Key(0, "tracklets of an identity at a camera; 0: as the preset says", AtLeast(0)),
    "frames": Key(0, "frames of a tracklet; 0: as the preset says", AtLeast(0)),
}
