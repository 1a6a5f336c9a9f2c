"""Registers engines, model names and data sets with torchreid; and the attributes that need torchreid.

Imported by `on_demand` alone. The parts below import this module's first, so nothing here, and nothing that they need
of one another, is taken from a part's own `__init__`, which may be on its way.
"""

from . import baselines, models, vkd, zoo
from .baselines import methods  # noqa: F401  registers them
from .datasets import atrw, crops, market1501, synthped, synthped_video, veri776
from .host import image_engines  # noqa: F401  registers them
from .host.engine import publish
from .host.oskt_engine import OSKTEngine
from .host.pictures import install_reader
from .host.vkd_engine import VKDEngine
from .models.building import register_all
from .models.registration import register_backbone
from .registry import build_engine
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
COMPLETE = True
