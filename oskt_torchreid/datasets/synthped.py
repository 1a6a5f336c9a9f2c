"""The synthetic pedestrians as image data sets of torchreid: `synthped` and `synthped_medium`.

Importing the package registers both names, so that torchreid's own `ImageDataManager(root="reid-data",
sources="synthped", height=128, width=64)` draws and reads them. Other settings stand behind the name `synthped` after
`synthped.configure(synthetic.preset("quick", seed=3))`.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from ..errors import ConfigError
from ..host.compat import torchreid
from ..host.data import register_image_dataset
from ..registry import nearest
from .drawn_folder import drawn_folder
from .market_layout import GALLERY_FOLDER, QUERY_FOLDER, TRAIN_FOLDER, picture_files
from .synthetic import PRESETS, SyntheticSettings


class DrawnSet:
    """Mixed into a data set's class that has settings and draws itself.

    Attributes:
        drawn_on_first_use: The folder need not be there beforehand.
        variant: Registered name of the class; names the folder too.
        configured: Settings of the variant.
    """

    drawn_on_first_use: ClassVar[bool] = True
    variant: ClassVar[str]
    configured: ClassVar[SyntheticSettings]


class SynthPed(DrawnSet, torchreid.data.ImageDataset):
    """Synthetic pedestrians, drawn below `root` on first use.

    Args:
        root: Folder of all data sets.
        settings: What to draw; None = what `configure` set for this variant.
        **kwargs: As for every image data set of torchreid.

    Raises:
        DataError: The root cannot be written, or foreign files lie where the set belongs.
    """

    variant = "synthped"
    configured = PRESETS["quick"]

    def __init__(self, root: str = "", settings: SyntheticSettings | None = None, **kwargs: Any):
        self.settings = settings or self.configured
        self.root = root
        self.dataset_dir = str(drawn_folder(root, self.variant, self.settings))
        super().__init__(*self._listing(), **kwargs)

    def _listing(self) -> tuple[list, list, list]:
        """(path, person, camera) of train, query and gallery; train persons count from 0, cameras too."""
        parts: dict[str, list] = {TRAIN_FOLDER: [], QUERY_FOLDER: [], GALLERY_FOLDER: []}
        for file in picture_files(self.settings):
            person = file.identity if file.folder == TRAIN_FOLDER else file.person
            parts[file.folder].append((f"{self.dataset_dir}/{file.folder}/{file.name}", person, file.camera))
        return parts[TRAIN_FOLDER], parts[QUERY_FOLDER], parts[GALLERY_FOLDER]


class SynthPedMedium(SynthPed):
    """The harder set, for benchmarks."""

    variant = "synthped_medium"
    configured = PRESETS["medium"]


VARIANTS: dict[str, type[SynthPed]] = {variant.variant: variant for variant in (SynthPed, SynthPedMedium)}


def register() -> None:
    """Makes all variants known to torchreid; doing it again changes nothing."""
    for name, variant in VARIANTS.items():
        register_image_dataset(name, variant)


def configure(settings: SyntheticSettings, variant: str = "synthped") -> None:
    """Sets what a registered name stands for from now on; data sets that were made before stay as they are.

    Args:
        settings: What to draw when torchreid next makes the data set.
        variant: "synthped" or "synthped_medium".

    Raises:
        ConfigError: An unknown variant, or settings of another type.
    """
    configure_variant(VARIANTS, settings, variant)


def configure_variant(variants: Mapping[str, type[DrawnSet]], settings: SyntheticSettings, variant: str) -> None:
    """`configure` for any table of variants, the first one of which gives the type of settings."""
    first = next(iter(variants))
    if variant not in variants:
        raise ConfigError(
            f"unknown variant '{variant}' of {first}{nearest(variant, variants)} (variants: {', '.join(variants)})"
        )
    taken = type(variants[first].configured)
    if not isinstance(settings, taken):
        maker = "preset" if taken is SyntheticSettings else "video_preset"
        raise ConfigError(
            f"{first} takes {taken.__name__}, but got {type(settings).__name__}; make them by "
            f'oskt_torchreid.datasets.synthetic.{maker}("quick", seed=...)'
        )
    variants[variant].configured = settings
