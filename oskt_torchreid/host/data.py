"""torchreid's data sets and data managers."""

import copy
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from ..errors import ConfigError, DataError, OsktError
from ..registry import nearest
from .compat import host_table, quiet, torchreid


def _image_datasets() -> dict[str, type]:
    return host_table(torchreid.data.register_image_dataset, "__image_datasets")


def image_dataset_names() -> list[str]:
    """Every image data set that torchreid knows, registered ones included."""
    return list(_image_datasets())


def image_dataset_class(name: str) -> type:
    """The class behind the name of an image data set.

    Raises:
        ConfigError: unknown name.
    """
    known = _image_datasets()
    if name not in known:
        raise ConfigError(f"unknown data set '{name}'{nearest(name, known)}; known: {', '.join(sorted(known))}")
    return known[name]


def register_image_dataset(name: str, dataset: type) -> None:
    """Makes an image data set known to torchreid; registering the same class again changes nothing.

    A class with a true attribute `drawn_on_first_use` makes its own folder and is not looked for beforehand.

    Raises:
        ConfigError: another class has the name.
    """
    known = _image_datasets().get(name)
    if known is None:
        torchreid.data.register_image_dataset(name, dataset)
    elif known is not dataset:
        raise ConfigError(
            f"data set name '{name}' belongs to {known.__module__}.{known.__qualname__}; choose another name"
        )


def build_datamanager(config: Any, batch_size: int = 0) -> Any:
    """Builds torchreid's image data manager from a configuration.

    Args:
        config: whole tree; nodes use_gpu, data, sampler, train, test, market1501 and cuhk03 are read.
        batch_size: images in a training batch; 0: `train.batch_size`.

    Returns:
        `torchreid.data.ImageDataManager`.

    Raises:
        ConfigError: unknown data set, or a data type other than image.
        DataError: missing root or data set folder, raised before anything is read or downloaded; or what torchreid
            cannot read or sample from.
    """
    if config.data.type != "image":
        raise ConfigError(f"data.type is '{config.data.type}'; allowed here: 'image'")
    check_datasets(config.data.root, [*config.data.sources, *config.data.targets])
    arguments = _manager_arguments(config)
    if batch_size:
        arguments["batch_size_train"] = batch_size
    try:
        with quiet():
            return torchreid.data.ImageDataManager(**arguments)
    except OsktError:
        raise
    except (AssertionError, OSError, RuntimeError, ValueError, LookupError) as reason:
        sampler = arguments["train_sampler"]
        persons = arguments["batch_size_train"] // arguments["num_instances"]
        few = f"{sampler} needs {persons} training identities for a batch, and there are fewer"
        raise DataError(
            f"torchreid cannot make batches of {', '.join(config.data.sources)} (tested on "
            f"{', '.join(config.data.targets)}) below '{Path(config.data.root).absolute()}': {str(reason) or few}; "
            "mend the data set, or change train.batch_size and the sampler node"
        ) from reason


def unaugmented_loader(datamanager: Any) -> DataLoader:
    """The training images of an image data manager, each once and in order, as they are seen in evaluation."""
    loader = datamanager.train_loader
    images = copy.copy(loader.dataset)
    images.transform, images.k_tfm = datamanager.transform_te, 1
    return DataLoader(images, loader.batch_size, num_workers=loader.num_workers, pin_memory=loader.pin_memory)


def check_datasets(root: str, names: list[str]) -> None:
    """Checks that data sets are known and that their folders exist under `root`.

    Raises:
        ConfigError: unknown name, or no name at all.
        DataError: missing folder.
    """
    if not names:
        raise ConfigError("data.sources and data.targets are empty; name at least one data set (-s NAME -t NAME)")
    for name in dict.fromkeys(names):
        _check_folder(Path(root).expanduser(), name, image_dataset_class(name))


def _check_folder(root: Path, name: str, dataset: type) -> None:
    if getattr(dataset, "drawn_on_first_use", False):
        return
    if not root.is_dir():
        raise DataError(
            f"no data root at '{root.absolute()}', where data set '{name}' should be; make the folder and put the data "
            "set into it, or give its path with --root (data.root)"
        )
    folder = getattr(dataset, "dataset_dir", None)
    if isinstance(folder, str) and not (root / folder).is_dir():
        raise DataError(
            f"data set '{name}' is not at '{(root / folder).absolute()}'; download it, unpack it there, or give the "
            "folder that contains it with --root (data.root)"
        )


def _manager_arguments(config: Any) -> dict[str, Any]:
    """Keyword arguments of `ImageDataManager`, as torchreid's own script takes them from its tree."""
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
