"""Installs oskt_torchreid; every package that the code imports is declared here, torchreid's own needs included."""

import re
from pathlib import Path

from setuptools import find_packages, setup

README = Path(__file__).with_name("README.md")
INIT = Path(__file__).with_name("oskt_torchreid") / "__init__.py"
VERSION = re.search(r'^__version__ = "(.+)"$', INIT.read_text(encoding="utf-8"), re.MULTILINE)[1]
EXPORT = ["onnx", "onnxruntime", "onnxscript", "openvino"]
BASELINES = ["torch_pruning"]
ANALYSIS = ["grad-cam"]
ELSEWHERE = {"oskt_command": "tools/oskt_command", "oskt_torchreid.configs": "configs"}
"""What is installed beside the package: the door of the console script, and the configurations."""
TESTS = ["pytest", "pytest-xdist", "hypothesis", "nbclient", "ipykernel", "mkdocs-material"]
RELEASE = ["build", "twine", "setuptools", "wheel"]
STYLE = ["ruff", "mypy", "types-PyYAML", "types-tabulate"]

setup(
    name="oskt_torchreid",
    version=VERSION,
    description="One-shot knowledge transfer for person re-identification: one weight chain, students of every size",
    long_description=README.read_text(encoding="utf-8") if README.is_file() else "",
    long_description_content_type="text/markdown",
    license="MIT",
    packages=[*find_packages(include=["oskt_torchreid", "oskt_torchreid.*"]), *ELSEWHERE],
    package_dir=ELSEWHERE,
    package_data={
        "oskt_torchreid": ["py.typed"],
        "oskt_torchreid.report": ["page.html"],
        "oskt_torchreid.zoo": ["catalogue.yaml"],
        "oskt_torchreid.configs": ["*.yaml", "**/*.yaml"],
    },
    entry_points={"console_scripts": ["oskt = oskt_command:main"]},
    project_urls={
        "OSKT (ICCV 2025)": "https://arxiv.org/abs/2511.06016",
        "VKD (ECCV 2020)": "https://arxiv.org/abs/2007.04174",
        "torchreid": "https://github.com/KaiyangZhou/deep-person-reid",
    },
    python_requires=">=3.10",
    install_requires=[
        "torch>=2.4",
        "torchvision",
        "torchreid",
        "yacs",
        "pyyaml",
        "gdown",
        "numpy",
        "scipy",
        "tabulate",
        "safetensors",
        "tqdm",
        "opencv-python-headless",
        "matplotlib",
        "tensorboard",
        "h5py",
        "imageio",
        "six",
        "pillow",
        "jinja2",
        "shtab",
    ],
    extras_require={
        "test": [*TESTS, *RELEASE, *STYLE, "timm", *EXPORT, *BASELINES, *ANALYSIS],
        "export": EXPORT,
        "clients": ["boxmot", "ultralytics", "reid>=0.1.0rc1"],
        "gallery": ["faiss-cpu"],
        "baselines": BASELINES,
        "analysis": ANALYSIS,
    },
)
