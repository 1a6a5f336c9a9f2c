"""What importing this package makes known to torchreid: engines, model names, data sets; and what needs torchreid."""

from . import zoo
from .datasets import atrw, market1501, synthped, synthped_video, veri776
from .host import image_engines  # noqa: F401  registers them
from .host.engine import publish
from .host.losses import kd_loss, soft_margin_triplet_loss
from .host.oskt_engine import OSKTEngine
from .host.pictures import install_reader
from .host.ranking import rank
from .host.vkd_engine import VKDEngine
from .models import NeckModel, register_all, without_neck
from .models.registration import register_backbone
from .registry import build_engine
from .vkd.losses import distance_preservation_loss
from .vkd.model import SetModel, register_set_models
from .vkd.students import student_from

__all__ = [
    "NeckModel",
    "OSKTEngine",
    "SetModel",
    "VKDEngine",
    "distance_preservation_loss",
    "kd_loss",
    "rank",
    "register_backbone",
    "soft_margin_triplet_loss",
    "student_from",
    "without_neck",
    "zoo",
]

install_reader()
register_all()
register_set_models()
for dataset in (market1501, synthped, synthped_video, veri776, atrw):
    dataset.register()
publish("build_engine", build_engine)
publish("ImageOSKTEngine", OSKTEngine)
publish("VideoVKDEngine", VKDEngine)
