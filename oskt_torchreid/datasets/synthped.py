"""The synthetic pedestrians as image data sets of torchreid: `synthped`, `synthped_medium` and `synthped_hard`.

Importing the package registers both names, so that torchreid's own
`ImageDataManager(root="reid-data", sources="synthped", height=128, width=64)` draws and reads them. The name `synthped`
has other settings after `synthped.configure(synthetic.preset("quick", seed=3))`.
"""

from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError
from ..host.compat import torchreid
from ..host.data import image_dataset_names, register_dataset
from ..made_classes import Made
from ..registry import nearest
from .drawn_folder import drawn_folder
from .market_layout import GALLERY_FOLDER, QUERY_FOLDER, TRAIN_FOLDER, picture_files
from .synthetic import PRESETS, SyntheticSettings


class SynthPed(torchreid.data.ImageDataset):
    """Synthetic pedestrians, drawn below `root` on first use.

    Args:
        root: Folder of all data sets.
        settings: What to draw.
        name: Of the registered set; the folder is named after it.
        **kwargs: As for every image data set of torchreid.

    Raises:
        DataError: The root cannot be written, or there are other files in the set's folder.
    """

    drawn_on_first_use = True  # the folder need not be there beforehand

    def __init__(
        self, root: str = "", settings: SyntheticSettings = PRESETS["quick"], name: str = "synthped", **kwargs: Any
    ):
        self.settings = settings
        self.root = root
        self.dataset_dir = str(drawn_folder(root, name, settings))
        super().__init__(*self._listing(), **kwargs)

    def _listing(self) -> tuple[list, list, list]:
        """(path, person, camera) of train, query and gallery; train persons count from 0, cameras too."""
        parts: dict[str, list] = {TRAIN_FOLDER: [], QUERY_FOLDER: [], GALLERY_FOLDER: []}
        for file in picture_files(self.settings):
            person = file.identity if file.folder == TRAIN_FOLDER else file.person
            parts[file.folder].append((f"{self.dataset_dir}/{file.folder}/{file.name}", person, file.camera))
        return parts[TRAIN_FOLDER], parts[QUERY_FOLDER], parts[GALLERY_FOLDER]


VARIANTS = {"synthped": PRESETS["quick"], "synthped_medium": PRESETS["medium"], "synthped_hard": PRESETS["hard"]}
"""Initial settings of the registered names; the others than the first are for benchmarks."""


def register() -> None:
    """Makes all variants known to torchreid; doing it again changes nothing."""
    for name, settings in VARIANTS.items():
        if name not in image_dataset_names():
            register_dataset(name, with_settings(SynthPed, name, settings), "image")


def configure(settings: SyntheticSettings, variant: str = "synthped") -> None:
    """Sets the settings of a registered name from now on; existing data sets do not change.

    Args:
        settings: What to draw when torchreid next makes the data set.
        variant: One of `VARIANTS`.

    Raises:
        ConfigError: An unknown variant, or settings of another type.
    """
    check_variant(VARIANTS, settings, variant)
    register_dataset(variant, with_settings(SynthPed, variant, settings), "image", replace=True)


def check_variant(variants: Mapping[str, SyntheticSettings], settings: object, variant: str) -> None:
    """Raises `ConfigError` unless a variant is known, and settings are of the type that all variants take."""
    first = next(iter(variants))
    if variant not in variants:
        raise ConfigError(
            f"unknown variant '{variant}' of {first}{nearest(variant, variants)} (variants: {', '.join(variants)})"
        )
    taken = type(variants[first])
    if not isinstance(settings, taken):
        maker = "preset" if taken is SyntheticSettings else "video_preset"
        raise ConfigError(
            f"{first} takes {taken.__name__}, but got {type(settings).__name__}; make them by "
            f'oskt_torchreid.datasets.synthetic.{maker}("quick", seed=...)'
        )


def with_settings(drawn: Any, name: str, settings: object) -> type:
    """A class of a data set that has settings, for torchreid's table: called with a root and torchreid's keywords.

    Args:
        drawn: `SynthPed` or the like.
        name: That it is registered under.
        settings: What it draws; the class's attribute `settings`.
    """

    class Registered(drawn, metaclass=Made):
        __doc__ = drawn.__doc__
        settings: Any

        def __init__(self, root: str = "", **kwargs: Any) -> None:
            super().__init__(root, settings=settings, name=name, **kwargs)

    Registered.settings = settings
    Registered.made_by = with_settings, (drawn, name, settings)
    Registered.__name__ = Registered.__qualname__ = drawn.__name__
    return Registered
