"""torchreid's data sets and data managers."""

import copy
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from ..config import Config
from ..errors import ConfigError, DataError, OsktError, first_line
from ..registry import Registration, nearest
from ..user_code import IMPORT_HINT
from .compat import host_table, quiet, torchreid
from .guarded import guarded
from .interfaces import DataManager
from .pictures import install_reader

_PACKAGES = (torchreid.__name__.partition(".")[0], __package__.partition(".")[0])
_REGISTER = {"image": torchreid.data.register_image_dataset, "video": torchreid.data.register_video_dataset}


def _datasets(kind: str) -> dict[str, type]:
    return host_table(_REGISTER[kind], f"__{kind}_datasets")


def image_dataset_names() -> list[str]:
    """Every image data set that torchreid knows, registered ones included."""
    return list(_datasets("image"))


def video_dataset_names() -> list[str]:
    """Every video data set that torchreid knows, registered ones included."""
    return list(_datasets("video"))


def dataset_class(name: str, kind: str) -> type:
    """The class behind the name of a data set.

    Args:
        name: as registered.
        kind: "image" or "video".

    Raises:
        ConfigError: unknown name; the message says if it is a name of the other kind.
    """
    known = _datasets(kind)
    if name in known:
        return known[name]
    other = "image" if kind == "video" else "video"
    if name in _datasets(other):
        raise ConfigError(
            f"'{name}' is a data set of type {other}, but data.type is '{kind}'; set data.type={other}, or name one of "
            f"{', '.join(sorted(known))}"
        )
    raise ConfigError(
        f"unknown data set '{name}'{nearest(name, known)}; known: {', '.join(sorted(known))}; name the file that "
        f"registers a data set of your own: {IMPORT_HINT}"
    )


def has_splits(name: str, kind: str) -> bool:
    """Whether a data set has several splits, of which `data.split_id` names one; unknown names have none.

    torchreid passes the number to every class. Its own classes and those of this package that read it have a parameter
    for it; a user's class may read it from its keywords.
    """
    known = _datasets(kind).get(name)
    if known is None:
        return False
    taken = inspect.signature(known).parameters.values()
    own = not _is_known(known)
    return any(each.name == "split_id" or (each.kind is each.VAR_KEYWORD and own) for each in taken)


def _is_known(dataset: type) -> bool:
    """Whether a data set's class is torchreid's or this package's."""
    return dataset.__module__.partition(".")[0] in _PACKAGES


def own_datasets() -> list[Registration]:
    """Every data set that is neither torchreid's nor this package's, as the call that registers it."""
    tables = {kind: _datasets(kind).items() for kind in _REGISTER}
    return [
        Registration(register_dataset, (name, known, kind), {})
        for kind, rows in tables.items()
        for name, known in rows
        if not _is_known(known)
    ]


def register_image_dataset(name: str, dataset: type) -> None:
    """Makes an image data set known to torchreid; registering the same class again changes nothing.

    A class with a true attribute `drawn_on_first_use` makes its own folder and is not searched for beforehand, nor is
    one with a true `has_own_place`, whose pictures do not lie below the data root.

    Raises:
        ConfigError: another class has the name.
    """
    register_dataset(name, dataset, "image")


def register_dataset(name: str, dataset: type, kind: str, replace: bool = False) -> None:
    """`register_image_dataset` for data sets of the kind "image" or "video"; the same name may be in both tables.

    Args:
        name: of the data set.
        dataset: its class.
        kind: "image" or "video".
        replace: replace a class of torchreid or of this package.

    Raises:
        ConfigError: another class has the name, one of torchreid or of this package without `replace`.
    """
    known = _datasets(kind).get(name)
    if known is dataset:
        return
    if known is None:
        _REGISTER[kind](name, dataset)
    elif replace and _is_known(known):
        _datasets(kind)[name] = dataset
    else:
        raise ConfigError(
            f"data set name '{name}' belongs to {known.__module__}.{known.__qualname__}; choose another name"
        )


def build_datamanager(
    config: Config, batch_size: int = 0, types: Sequence[str] = ("image",), batch_key: str = "train.batch_size"
) -> DataManager:
    """Builds torchreid's data manager from a configuration.

    Args:
        config: whole tree; nodes use_gpu, data, sampler, video, train, test, market1501 and cuhk03 are read.
        batch_size: images (tracklets of video data) in a training batch; 0: `train.batch_size`.
        types: values of data.type that the caller can use.
        batch_key: key of the batch size, for messages.

    Returns:
        `torchreid.data.ImageDataManager` or `VideoDataManager`, by data.type.

    Raises:
        ConfigError: unknown data set, or another data type.
        DataError: missing root or data set folder, raised before anything is read or downloaded; or what torchreid
            cannot read or sample from.
    """
    kind = config.data.type
    check_datasets(config.data.root, [*config.data.sources, *config.data.targets], kind, types)
    arguments = _manager_arguments(config)
    manager = torchreid.data.ImageDataManager
    if kind == "video":
        manager = torchreid.data.VideoDataManager
        arguments = _video_arguments(config, arguments)
    if batch_size:
        arguments["batch_size_train"] = batch_size
    names = list(dict.fromkeys([*config.data.sources, *config.data.targets]))
    with guarded(_datasets(kind), names) as made:
        try:
            with quiet():
                built = manager(**arguments)
        except OsktError:
            raise
        except Exception as reason:  # raised by a sampler or transform: `guarded` reports those of data sets
            trained_on = [made[name] for name in config.data.sources if name in made]
            raise DataError(
                f"torchreid cannot make batches of {', '.join(config.data.sources)} (tested on "
                f"{', '.join(config.data.targets)}) below '{Path(config.data.root).absolute()}': "
                f"{_needs(arguments, trained_on, reason)}; change {batch_key} ({arguments['batch_size_train']}) and "
                "the sampler node"
            ) from reason
    return _with_reader(built)


def _with_reader(datamanager: DataManager) -> DataManager:
    """Makes loaders' workers import this package first: spawned workers do not inherit the import."""
    parts = [part for loaders in datamanager.test_loader.values() for part in loaders.values()]
    for loader in (datamanager.train_loader, *parts):
        loader.worker_init_fn = install_reader
    return datamanager


def _needs(arguments: Mapping[str, Any], datasets: Sequence[Any], reason: Exception) -> str:
    """What torchreid's sampler needs of the data; its own checks fail without a message."""
    sampler, size = arguments["train_sampler"], arguments["batch_size_train"]
    identities, there = size // arguments["num_instances"], sum(dataset.num_train_pids for dataset in datasets)
    if sampler == "RandomIdentitySampler" and identities > there:
        return f"{sampler} needs {identities} training identities for a batch, and there are {there}"
    kinds = {"RandomDomainSampler": ("num_cams", "cameras"), "RandomDatasetSampler": ("num_datasets", "data sets")}
    if sampler in kinds:
        key, what = kinds[sampler]
        there = sum(dataset.num_train_cams for dataset in datasets) if key == "num_cams" else len(datasets)
        return (
            f"{sampler} fills a batch of {size} with equally many pictures of {arguments[key]} {what} "
            f"(sampler.{key}), and there are {there}, possibly with too few pictures ({first_line(reason)})"
        )
    return f"{sampler}: {type(reason).__name__}: {first_line(reason)}"


def unaugmented_loader(datamanager: DataManager) -> DataLoader:
    """The training images of an image data manager, each once and in order, as they are seen in evaluation."""
    loader = datamanager.train_loader
    images = copy.copy(loader.dataset)
    images.transform, images.k_tfm = datamanager.transform_te, 1
    workers = {"num_workers": loader.num_workers, "worker_init_fn": loader.worker_init_fn}
    return DataLoader(images, loader.batch_size, pin_memory=loader.pin_memory, **workers)


def forget_patches(loader: Any) -> None:
    """Empties the pool of torchreid's `random_patch`, the only state that a transform keeps from epoch to epoch.

    In a loader's workers it is empty at the beginning of every epoch anyway.
    """
    dataset = getattr(loader, "dataset", None)
    for step in getattr(getattr(dataset, "transform", None), "transforms", ()):
        if hasattr(step, "patchpool"):
            step.patchpool.clear()


def check_datasets(root: str, names: Sequence[str], kind: str = "image", types: Sequence[str] = ("image",)) -> None:
    """Checks that data sets are known and that their folders exist under `root`.

    Args:
        root: folder of all data sets.
        names: as registered.
        kind: data.type, "image" or "video".
        types: those that the caller can use.

    Raises:
        ConfigError: unknown name, no name at all, or another data type.
        DataError: missing folder.
    """
    if kind not in types:
        raise ConfigError(f"data.type is '{kind}'; allowed here: {', '.join(map(repr, types))}")
    if not names:
        raise ConfigError("data.sources and data.targets are empty; name at least one data set (-s NAME -t NAME)")
    for name in dict.fromkeys(names):
        _check_folder(Path(root).expanduser(), name, dataset_class(name, kind))


def _check_folder(root: Path, name: str, dataset: type) -> None:
    if getattr(dataset, "drawn_on_first_use", False) or getattr(dataset, "has_own_place", False):
        return
    folder = getattr(dataset, "dataset_dir", None)
    if not root.is_dir() and (isinstance(folder, str) or _is_known(dataset)):
        raise DataError(
            f"no data root at '{root.absolute()}', where data set '{name}' should be; make the folder and put the data "
            "set into it, or give its path with --root (data.root)"
        )
    if isinstance(folder, str) and not (root / folder).is_dir():
        raise DataError(
            f"data set '{name}' is not at '{(root / folder).absolute()}'; download it, unpack it there, or give the "
            "folder that contains it with --root (data.root)"
        )


def _manager_arguments(config: Config) -> dict[str, Any]:
    """Keyword arguments of `ImageDataManager`, as torchreid's own script takes them from its configuration."""
    data, sampler = config.data, config.sampler
    return {
        "root": data.root,
        "sources": list(data.sources),
        "targets": list(data.targets),
        "height": data.height,
        "width": data.width,
        "transforms": list(data.transforms),
        "k_tfm": data.k_tfm,
        "norm_mean": list(data.norm_mean),
        "norm_std": list(data.norm_std),
        "use_gpu": config.use_gpu,
        "split_id": data.split_id,
        "combineall": data.combineall,
        "load_train_targets": data.load_train_targets,
        "batch_size_train": config.train.batch_size,
        "batch_size_test": config.test.batch_size,
        "workers": data.workers,
        "num_instances": sampler.num_instances,
        "num_cams": sampler.num_cams,
        "num_datasets": sampler.num_datasets,
        "train_sampler": sampler.train_sampler,
        "train_sampler_t": sampler.train_sampler_t,
        "cuhk03_labeled": config.cuhk03.labeled_images,
        "cuhk03_classic_split": config.cuhk03.classic_split,
        "market1501_500k": config.market1501.use_500k_distractors,
    }


def _video_arguments(config: Config, arguments: dict[str, Any]) -> dict[str, Any]:
    """The `arguments` that `VideoDataManager` takes as well, and its additional ones."""
    taken = inspect.signature(torchreid.data.VideoDataManager).parameters
    video = {"seq_len": config.video.seq_len, "sample_method": config.video.sample_method}
    return {name: value for name, value in arguments.items() if name in taken} | video
