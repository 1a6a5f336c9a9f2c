"""Importing the package registers everything with torchreid, as often as one likes and in any order."""

import importlib
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import oskt_torchreid as oskt
from oskt_torchreid.host.compat import torchreid
from oskt_torchreid.host.data import image_dataset_names
from oskt_torchreid.host.models import model_names

ROOT = Path(__file__).resolve().parents[1]


def test_registered_names():
    assert torchreid.engine.ImageOSKTEngine is oskt.OSKTEngine
    assert torchreid.engine.build_engine is oskt.registry.build_engine
    assert oskt.registry.engine_class("oskt") is oskt.OSKTEngine and oskt.registry.engine_class("softmax")
    assert {"synthped", "synthped_medium", "synthped_hard"} <= set(image_dataset_names())
    assert {"oskt_osnet_x1_0", "oskt_resnet50", "osnet_x1_0"} <= set(model_names())


def test_importing_again_changes_nothing():
    before = model_names(), image_dataset_names(), dict(oskt.registry._ENGINES)
    importlib.reload(oskt)
    assert (model_names(), image_dataset_names(), oskt.registry._ENGINES) == before


def test_every_public_name_exists():
    assert [name for name in oskt.__all__ if not hasattr(oskt, name)] == []


def test_torchreid_builds_the_wrapped_model():
    model = torchreid.models.build_model("oskt_osnet_x0_25", num_classes=5, loss="triplet", pretrained=False)
    assert isinstance(model, oskt.models.NeckModel)


def test_unknown_engine_is_named_with_the_nearest():
    with pytest.raises(oskt.errors.ConfigError, match=r"unknown engine 'okst'; did you mean 'oskt'"):
        torchreid.engine.build_engine("okst", None, None)


@pytest.mark.slow
def test_readme_script_runs(tmp_path):
    """The script of a torchreid user in the README, made small by its own numbers alone."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    script = re.search(r"```python\n(import torchreid\n.*?)```", readme, re.DOTALL).group(1)
    small = {
        "max_epoch=20": "max_epoch=1",
        'root="reid-data"': f'root="{tmp_path}"',
        'save_dir="log/my_oskt"': f'save_dir="{tmp_path}/log"',
        "height=256": "height=32",
        "width=128": "width=16",
        "market1501": "synthped",
        '"student.onnx"': f'"{tmp_path}/student.onnx"',
        '"chain.safetensors"': f'"{tmp_path}/chain.safetensors"',
        '"student.pth"': f'"{tmp_path}/student.pth"',
    }
    for long, short in small.items():
        script = script.replace(long, short)
    settings = "train_identities=8, test_identities=8, height=32, width=16, cameras=4, images_per_camera=3"
    prepare = (
        "from oskt_torchreid.datasets import synthetic, synthped\n"
        f"synthped.configure(synthetic.preset('quick', {settings}))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", prepare + script], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert (tmp_path / "student.pth").is_file()
    assert (tmp_path / "chain.safetensors").is_file()


REGISTERED = """
import torchreid, oskt_torchreid as oskt
assert torchreid.engine.ImageOSKTEngine is oskt.OSKTEngine
assert torchreid.__spec__.loader is torchreid.__loader__
torchreid.models.build_model("vkd_resnet18", 2, pretrained=False)
assert "kmeans+kd" in oskt.baselines.BASELINES and not oskt.registry.registrations()
"""
FIRST = {
    "the package, then torchreid": "import oskt_torchreid; import torchreid",
    "an attribute": "import oskt_torchreid; oskt_torchreid.OSKTEngine",
    "an engine by name": "from oskt_torchreid.registry import engine_class; engine_class('oskt')",
    "a network by name": "from oskt_torchreid.networks import resolver; resolver().skeleton('resnet18', 2)",
    "a part": "import oskt_torchreid.models.vit",
    "a part, methods": "import oskt_torchreid.baselines.selection",
    "a part, data sets": "import oskt_torchreid.datasets.crops",
    "an engine of one's own": """
import oskt_torchreid as oskt
class Own:
    def run(self): pass
oskt.register_engine("own", Own)
assert [call.arguments for call in oskt.registry.registrations()] == [("own", Own)]
oskt.registry._REGISTRATIONS.clear()
""",
}
"""What a program may do first; everything is registered after it."""
PROGRAMS = {title: first + "\n" + REGISTERED for title, first in FIRST.items()} | {
    "a rule of one's own, then torchreid": """
import oskt_torchreid as oskt
oskt.graph.register_rule("mine::swish", oskt.graph.keep)
import torchreid
assert [call.arguments[0] for call in oskt.registry.registrations()] == ["mine::swish"]
""",
    "a part that nothing has imported yet": """
import oskt_torchreid as oskt
assert oskt.config.default_config().engine == "" and oskt.host.losses.ReidLoss and oskt.datasets.crops.Crops
assert not hasattr(oskt, "nothing_of_this_name")
""",
    "two threads, one of which imports torchreid": """
import sys, threading
import oskt_torchreid as oskt
begin, found = threading.Barrier(2), []
def import_torchreid():
    begin.wait()
    import torchreid
    found.append(torchreid.engine.ImageOSKTEngine)
def use_an_attribute():
    begin.wait()
    found.append(oskt.OSKTEngine)
threads = [threading.Thread(target=target) for target in (import_torchreid, use_an_attribute)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert len(found) == 2 and found[0] is found[1]
""",
    "an interrupted use, then torchreid": """
import builtins
import oskt_torchreid as oskt
original = builtins.__import__
def interrupted(name, *arguments, **keywords):
    if name.endswith("oskt_engine"):
        raise KeyboardInterrupt
    return original(name, *arguments, **keywords)
builtins.__import__ = interrupted
for use in (lambda: oskt.OSKTEngine, lambda: __import__("torchreid")):
    try:
        use()
    except KeyboardInterrupt:
        continue
    raise AssertionError("it was to be interrupted")
builtins.__import__ = original
import torchreid
assert torchreid.engine.ImageOSKTEngine is oskt.OSKTEngine
""",
    "warnings that are errors": """
import warnings
import oskt_torchreid
warnings.simplefilter("error")
import torchreid
""",
    "torchreid is left alone, for its import takes longer than torch's": """
import sys, oskt_torchreid as oskt
assert not [name for name in sys.modules if name.partition(".")[0] == "torchreid"]
assert {"OSKTEngine", "vkd"} <= set(dir(oskt))
""",
    "no network is built": """
import torchreid
from torch import nn
made, original = [], nn.Module.__init__
def noted(self, *args, **kwargs):
    made.append(type(self).__name__)
    original(self, *args, **kwargs)
nn.Module.__init__ = noted
import oskt_torchreid
assert oskt_torchreid.OSKTEngine and not made, made[:3]
nn.Linear(1, 1)
assert made == ["Linear"]
""",
    "torchreid is found, fails, and is imported at last": """
import importlib.util, sys
import oskt_torchreid as oskt
found = importlib.util.find_spec("torchreid")
assert "torchreid" not in sys.modules and found.loader.get_data(found.origin)
sys.modules["gdown"] = None
for attempt in range(2):
    try:
        import torchreid
    except ImportError:
        sys.modules.pop("gdown", None)
assert torchreid.engine.ImageOSKTEngine is oskt.OSKTEngine
assert not [finder for finder in sys.meta_path if type(finder).__module__.startswith("oskt_torchreid")]
""",
    "torchreid is missed where it is needed": """
import sys
sys.modules["torchreid"] = None
import oskt_torchreid as oskt
from oskt_torchreid.errors import ConfigError
from oskt_torchreid.networks import resolver
said = []
for use in (
    lambda: oskt.OSKTEngine,
    lambda: __import__("oskt_torchreid.models"),
    lambda: resolver().builder_of("resnet18"),
    lambda: oskt.registry.engine_class("oskt"),
):
    try:
        use()
    except ConfigError as reason:
        said.append("run `pip install torchreid`" in str(reason))
assert said == [True] * 4, said
""",
}
"""Programs that each want a process in which neither package has been imported."""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks a process that has imported what torchreid needs")
def test_programs_that_import_in_any_order():
    script = f"""
        import os, traceback
        import scipy.cluster.hierarchy, torchvision, torch.utils.tensorboard
        for title, program in {PROGRAMS!r}.items():
            child = os.fork()
            if not child:
                status = 1
                try:
                    exec(program, {{"__name__": "__main__"}})
                    status = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(status)
            print(title, os.waitpid(child, 0)[1], flush=True)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.stdout.splitlines() == [f"{title} 0" for title in PROGRAMS], result.stderr[-4000:]
