"""Where the pictures of synthetic tracklets lie: the folders and the file names of MARS."""

from collections.abc import Iterator

from .market_layout import FolderLayout, PictureFile
from .synthetic.renderer import TEST_SPLIT, TRAIN_SPLIT
from .synthetic.video import FRAME_STEP, VideoSettings

TRAIN_FOLDER, TEST_FOLDER = "bbox_train", "bbox_test"


def tracklet_files(settings: VideoSettings) -> Iterator[PictureFile]:
    """Every picture of a set, the pictures of a tracklet one after the other.

    A name such as `0001C1T0002F003.jpg` is person 1 at camera 1, tracklet (walk) 2, picture 3, in the folder
    `bbox_train/0001`; test persons follow the training ones.
    """
    splits = (
        (TRAIN_SPLIT, TRAIN_FOLDER, settings.train_identities, 1),
        (TEST_SPLIT, TEST_FOLDER, settings.test_identities, settings.train_identities + 1),
    )
    for split, part, count, first_person in splits:
        for identity in range(count):
            person = first_person + identity
            for camera in range(settings.cameras):
                for walk in range(settings.walks):
                    for number in range(settings.frames):
                        name = f"{person:04d}C{camera + 1}T{walk + 1:04d}F{number + 1:03d}.jpg"
                        folder, frame = f"{part}/{person:04d}", number * FRAME_STEP
                        yield PictureFile(folder, name, person, split, identity, camera, walk, frame)


TRACKLET_LAYOUT = FolderLayout((TRAIN_FOLDER, TEST_FOLDER), tracklet_files)
