"""Registers engines, model names and data sets with torchreid; and the attributes that need torchreid."""

from . import baselines, models, vkd, zoo
from .datasets import atrw, crops, market1501, synthped, synthped_video, veri776
from .host import image_engines  # noqa: F401  registers them
from .host.engine import publish
from .host.oskt_engine import OSKTEngine
from .host.pictures import install_reader
from .host.vkd_engine import VKDEngine
from .models import register_all
from .models.registration import register_backbone
from .registry import build_engine, end_own_registrations
from .vkd.model import SetModel, register_set_models

__all__ = ["OSKTEngine", "SetModel", "VKDEngine", "baselines", "models", "register_backbone", "vkd", "zoo"]

install_reader()
register_all()
register_set_models()
for dataset in (crops, market1501, synthped, synthped_video, veri776, atrw):
    dataset.register()
publish("build_engine", build_engine)
publish("ImageOSKTEngine", OSKTEngine)
publish("VideoVKDEngine", VKDEngine)
end_own_registrations()
