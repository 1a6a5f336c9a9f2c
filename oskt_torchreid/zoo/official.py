"""The authors' chain folders: `gene_matcher.json` (labels) and a PyTorch state dict side by side."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor, nn

from .. import files
from ..chain.chain import WeightChain
from ..chain.narrowing import rows_first
from ..chain.network import state_of
from ..chain.sstudent import Refinement
from ..errors import ChainError, GraphError, ZooError
from ..files.weights import state_dict_of
from ..models.vit import VisionTransformer
from . import resnet_format, resnet_writing, vit_format, vit_writing
from .account import LabelReader, StateReader
from .content import OfficialContent

LABELS = "gene_matcher.json"
RESNET_WEIGHTS = "resnet50_100.pth"
VIT_WEIGHTS = "transformer_120.pth"
_TRANSFORMER = "o2g"  # key of the labels of a vision transformer; the other maps follow from them
_MAPS = {_TRANSFORMER, "g2o", "s1_2_g", "entire_2_g"}
_WEIGHTS = re.compile(r"(resnet|transformer)\w*_\d+\.pth$")  # names of the authors' checkpoints


def load_official_oskt(
    folder: str | Path, loss: str = "triplet", weights: str = "", num_heads: int | None = None
) -> WeightChain:
    """Reads a chain that the authors' program refined.

    Its rows, clusters, norm parameters and the S-student's statistics and head are taken; the sizes are read off the
    shapes. No code from the file is run.

    Args:
        folder: with `gene_matcher.json` and the state dict.
        loss: `softmax` or `triplet`, for students that are trained on; it changes nothing in evaluation.
        weights: name of the state dict, needed only where several could be it.
        num_heads: of a vision transformer; by default read off the labels, which never cross heads.

    Returns:
        A chain of `oskt_resnet50` (or 101, 152) or of a `vit_*_patch16`, where the shapes are the stock ones. Of
        other shapes there is no registered network, so to load such a chain again from its own file pass
        `model=load_official_teacher(folder)`.

    Raises:
        ZooError: a file that is missing, damaged, incomplete or says something else than the other, with its key.
        CheckpointError: a file without a state dict.
    """
    content = read_official(folder, loss, weights, num_heads)
    with _of_folder(folder):
        return content.to_chain()


def load_official_teacher(
    folder: str | Path, loss: str = "triplet", weights: str = "", num_heads: int | None = None
) -> nn.Module:
    """Reads the teacher of an official chain's folder; arguments and errors of `load_official_oskt`.

    Returns:
        The network in evaluation mode.
    """
    return read_official(folder, loss, weights, num_heads).teacher.eval()


def load_official_refinement(
    folder: str | Path, loss: str = "triplet", weights: str = "", num_heads: int | None = None
) -> Refinement:
    """Reads teacher and S-student of an official folder; arguments and errors of `load_official_oskt`.

    Returns:
        Both as the authors' program saved them. After further refinement, `to_chain()` gives the chain.
    """
    content = read_official(folder, loss, weights, num_heads)
    with _of_folder(folder):
        return content.to_refinement()


def save_official(chain: WeightChain, folder: str | Path, teacher: nn.Module | None = None) -> None:
    """Writes a chain as the authors' program keeps its own: `gene_matcher.json` and the state dict.

    Loaded again it is the same chain, except for what the format cannot hold: of the S-student's classifier and neck it
    keeps what the S-student uses, at the chain's width; statistics of a chain that was not refined are the teacher's
    merged ones.

    Args:
        chain: of `oskt_resnet50` (or of more blocks or other widths), or of a vision transformer with part tokens.
        folder: made if it is not there; both files are written whole or not at all.
        teacher: the network that was refined with the chain. Without it, the teacher's matrices are written as the
            chain's rows, which refinement draws them to; students of the folder are the same either way.

    Raises:
        ZooError: a chain of a network that the format cannot hold, of a student, or a nested one.
        ChainError: a teacher of another chain.
    """
    if chain.origin_to_teacher:
        raise ZooError("the chain of a student cannot be written in the authors' format; write the first teacher's")
    if chain.trees:
        raise ZooError(
            "a nested chain cannot be written in the authors' format, which has one row per cluster; use chain.save"
        )
    if teacher is not None:
        chain.check_teacher(teacher)
    given = state_of(teacher) if teacher is not None else _merged_teacher(chain)
    state = {name: tensor.detach().cpu() for name, tensor in {**given, **chain.fixed}.items()}
    if isinstance(chain.model, VisionTransformer):
        name, (labels, content) = VIT_WEIGHTS, vit_writing.vit_content(chain, state)
    else:
        name, (labels, content) = RESNET_WEIGHTS, resnet_writing.resnet_content(chain, state)
    files.save_checkpoint(Path(folder) / name, content)
    files.write_json(Path(folder) / LABELS, labels)


def _merged_teacher(chain: WeightChain) -> dict[str, Tensor]:
    """A teacher all of whose rows are their chain rows."""
    state = {**chain.vectors, **chain.fixed}
    for name, rows in chain.rows.items():
        tie = chain.graph.row_ties[name]
        state[name] = rows_first(rows[chain.layout.axis(tie).teacher_to_student], tie)
    return state


@contextlib.contextmanager
def _of_folder(folder: str | Path) -> Iterator[None]:
    """Reports errors of making a chain, such as a tensor with NaN, as errors of the folder."""
    try:
        yield
    except (ChainError, GraphError) as error:
        raise ZooError(f"the files in '{folder}' do not make a chain: {error}") from error


def read_official(folder: str | Path, loss: str, weights: str, num_heads: int | None) -> OfficialContent:
    """Everything in an official folder; arguments and errors of `load_official_oskt`."""
    folder = Path(folder)
    labels_path, weights_path = folder / LABELS, _weights_path(folder, weights)
    labels = files.read_json(labels_path, ZooError)
    if not isinstance(labels, dict):
        raise ZooError(
            f"'{labels_path}' holds no JSON object with labels; give the file that the authors' program wrote"
        )
    state = state_dict_of(files.load_checkpoint(weights_path, ZooError), weights_path)
    if _TRANSFORMER not in labels:
        reader = StateReader(state, weights_path, resnet_format.DERIVED_NAMES)
        return resnet_format.read_resnet(reader, LabelReader(labels, labels_path), loss)
    if not isinstance(labels[_TRANSFORMER], dict) or not labels.keys() <= _MAPS:
        raise ZooError(
            f"'{labels_path}' must hold the JSON objects {', '.join(sorted(_MAPS))}, of which labels are read"
        )
    reader = StateReader(state, weights_path, vit_format.DERIVED_NAMES)
    return vit_format.read_vit(reader, LabelReader(labels[_TRANSFORMER], labels_path), loss, num_heads)


def _weights_path(folder: Path, weights: str) -> Path:
    if weights:
        return folder / weights
    if not folder.is_dir():
        raise ZooError(f"no folder at '{folder.absolute()}'; give the one with {LABELS} and the weights")
    found = sorted(path for path in folder.iterdir() if path.suffix == ".pth")
    named = [path for path in found if _WEIGHTS.match(path.name)] or found
    if len(named) != 1:
        raise ZooError(
            f"'{folder}' must have one state dict such as resnet50_100.pth or transformer_120.pth next to {LABELS}; it "
            f"has {', '.join(path.name for path in named) or 'no .pth file'}"
            + ("; name one with weights=..." if named else "")
        )
    return named[0]
