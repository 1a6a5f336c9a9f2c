"""Where the pictures of a synthetic set lie: the layout and the file names of Market-1501."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from .synthetic.renderer import TEST_SPLIT, TRAIN_SPLIT
from .synthetic.settings import SyntheticSettings

TRAIN_FOLDER, QUERY_FOLDER, GALLERY_FOLDER = "bounding_box_train", "query", "bounding_box_test"
FOLDERS = (TRAIN_FOLDER, QUERY_FOLDER, GALLERY_FOLDER)

# Numbers of frames within a walk are far enough apart for the pose to change, as in a set sampled from video.
_FRAME_STEP = 3
_FILE_FRAMES_PER_FRAME = 25


class PictureFile(NamedTuple):
    """One picture of the set.

    Attributes:
        folder, name: Where it lies below the folder of the set.
        person: Person number as in the file name: 1 and up, train first.
        split, identity, camera, walk, frame: What `Renderer.picture` takes.
    """

    folder: str
    name: str
    person: int
    split: int
    identity: int
    camera: int
    walk: int
    frame: int


class FolderLayout(NamedTuple):
    """How the files of a set are named.

    Attributes:
        folders: Folders of the set, each part of it in one.
        picture_files: Every picture of the settings, in a fixed order, below these folders.
    """

    folders: tuple[str, ...]
    picture_files: Callable[..., Iterator[PictureFile]]


def picture_files(settings: SyntheticSettings) -> Iterator[PictureFile]:
    """Every picture of a set, in a fixed order.

    The pictures of one identity at one camera take turns between its walks; in the test split the first is the query.
    """
    splits = (
        (TRAIN_SPLIT, settings.train_identities, 1),
        (TEST_SPLIT, settings.test_identities, settings.train_identities + 1),
    )
    for split, count, first_person in splits:
        for identity in range(count):
            for camera in range(settings.cameras):
                for number in range(settings.images_per_camera):
                    turn, walk = divmod(number, settings.walks)
                    test_folder = GALLERY_FOLDER if number else QUERY_FOLDER
                    folder = TRAIN_FOLDER if split == TRAIN_SPLIT else test_folder
                    person = first_person + identity
                    stamp = turn * _FILE_FRAMES_PER_FRAME + 1
                    name = f"{person:04d}_c{camera + 1}s{walk + 1}_{stamp:06d}_00.jpg"
                    yield PictureFile(folder, name, person, split, identity, camera, walk, turn * _FRAME_STEP)


MARKET = FolderLayout(FOLDERS, picture_files)
