"""A tiny run of everything, as words of a configuration."""

from pathlib import Path

from oskt_torchreid.config import load_config

SMALL = [
    "engine=oskt",
    "model.name=shufflenet_v2_x0_5",
    "model.pretrained=False",
    "data.sources=['synthped']",
    "data.targets=['synthped']",
    "data.height=32",
    "data.width=16",
    "data.workers=0",
    "synthped.num_train=6",
    "synthped.num_test=14",
    "synthped.cameras=4",
    "train.max_epoch=1",
    "train.batch_size=16",
    "oskt.width=0.5",
    "oskt.refine.max_epoch=1",
    "oskt.refine.batch_size=16",
    "oskt.finetune.max_epoch=1",
    "oskt.finetune.batch_size=16",
    "oskt.students=['width=0.5']",
    "use_gpu=False",
    "page=False",
]


TINY = [*SMALL, "model.name=tiny_net"]


def without_method(words: list[str]) -> list[str]:
    """Words for engines that train one network, which refuse keys of a method on a command line."""
    return [word for word in words if not word.startswith(("engine=", "oskt."))]


def configured(root: Path, folder: Path, *options: str):
    """A run of a network that new processes know, too: the quickest of torchreid's at this size."""
    return load_config(options=[*SMALL, f"data.root={root}", f"data.save_dir={folder}", *options])


def tiny(root: Path, folder: Path, *options: str):
    """The same of a network that trains in milliseconds."""
    return load_config(options=[*TINY, f"data.root={root}", f"data.save_dir={folder}", *options])
