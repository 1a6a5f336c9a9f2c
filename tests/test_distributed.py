"""Several processes (gloo on the CPU) train as one does: the same losses, one set of files, whole identities each."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import traceback
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as processes
from runs import SMALL, tiny, without_method
from sets import SetManager
from sets import tiny as tiny_sets
from small_networks import TinyNet
from test_interruption import check_whole
from test_resume import assert_same
from torch.utils.data import DataLoader

from oskt_torchreid.baselines import DistillationEngine, make_baseline
from oskt_torchreid.chain.chain import WeightChain
from oskt_torchreid.config import load_config
from oskt_torchreid.errors import ConfigError, OsktError, Terminated
from oskt_torchreid.files import load_checkpoint, sha256
from oskt_torchreid.graph import trace_module
from oskt_torchreid.graph.plans import ratio_plan
from oskt_torchreid.host.compat import seed_everything
from oskt_torchreid.host.data import build_datamanager
from oskt_torchreid.host.distributed import (
    SharedSampler,
    all_gather,
    broadcast,
    check_share,
    features_by_shares,
    is_rank_zero,
    process_rank,
    whole_batch,
    world_size,
)
from oskt_torchreid.host.engine import TransferEngine
from oskt_torchreid.host.losses import ReidLoss
from oskt_torchreid.host.oskt_engine import OSKTEngine
from oskt_torchreid.host.synchronised_norms import synchronised_norms
from oskt_torchreid.host.vkd_engine import VKDEngine
from oskt_torchreid.report import read_results
from oskt_torchreid.runs import run

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = [
    "data.workers=0",
    "data.height=32",
    "data.width=16",
    "data.transforms=[]",
    "train.batch_size=8",
    "sampler.train_sampler=RandomIdentitySampler",
    "sampler.num_instances=2",
    "use_gpu=False",
]
STEPS = 5


def together(folder, work, count=2):
    """What `work` gives in each of so many processes, which have joined; errors of this package come back as text."""
    folder.mkdir(exist_ok=True)
    children = []
    for number in range(count):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                method = f"file://{folder / 'rendezvous'}"
                processes.init_process_group(
                    "gloo", init_method=method, rank=number, world_size=count, timeout=timedelta(minutes=5)
                )
                try:
                    result = work()
                except (OsktError, Terminated) as error:
                    result = f"{type(error).__name__}: {error}"
                torch.save(result, folder / f"result-{number}")
                processes.barrier()
                status = 0
            except BaseException:
                (folder / f"failure-{number}").write_text(traceback.format_exc())
            finally:
                os._exit(status)
        children.append(child)
    ended = [os.waitpid(child, 0)[1] for child in children]
    assert ended == [0] * count, "\n".join(path.read_text() for path in folder.glob("failure-*"))
    (folder / "rendezvous").unlink(missing_ok=True)
    return [torch.load(folder / f"result-{number}") for number in range(count)]


@pytest.fixture(scope="module")
def manager(market_root):
    return build_datamanager(load_config(options=SETTINGS, flags={"data.root": str(market_root)}))


# ---- the same losses as one process ----------------------------------------------------------------------------------


def set_manager():
    """The batches of `SetManager` from a loader that can be shared."""
    sets = SetManager()
    items = [{key: values[place] for key, values in batch.items()} for batch in sets.train_loader for place in range(8)]
    sets.train_loader = DataLoader(items, 8)
    return sets


def engine_of(kind, manager):
    seed_everything(process_rank())  # the processes must agree on the first one's weights themselves
    if kind == "vkd":
        model = tiny_sets()
        seed_everything(5)
        teacher = tiny_sets()  # a given teacher is read from one file, so it is the same everywhere
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        # As many views as the teacher's: fewer are drawn at random, by every process for its own sets.
        return VKDEngine(set_manager(), model, optimizer, teacher=teacher, num_student_views=4, beta=0.1, use_gpu=False)
    model = TinyNet(manager.num_train_pids, "triplet")
    loss = ReidLoss(manager.num_train_pids, weight_t=1.0, center_weight=0.01)
    options = {"loss": loss, "use_gpu": False}
    if kind == "kd++":
        seed_everything(5)
        teacher = TinyNet(manager.num_train_pids, "triplet")
        graph = trace_module(teacher, (3, 32, 16))
        model = make_baseline("slice", teacher, graph, ratio_plan(graph, 0.5))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        return DistillationEngine(manager, model, optimizer, teacher=teacher, heads=graph.heads, **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    if kind in ("oskt", "nested"):
        seed_everything(5)
        teacher, nested = TinyNet(manager.num_train_pids, "triplet"), kind == "nested"
        chain = WeightChain.from_teacher(teacher, 0.5, input_size=(3, 32, 16), nested=nested)
        options |= {"distil_weight": 0.25, "levels": (0.75,), "level_start": 0.0} if nested else {}
        return OSKTEngine(manager, model, optimizer, chain=chain, lambda_weight=0.1, **options)
    return TransferEngine(manager, model, optimizer, **options)


def trained(kind, manager, batches):
    """Terms of each step, and the weights and centers after the last."""
    engine = engine_of(kind, manager)
    engine.epoch, engine.max_epoch = 0, 10
    engine.set_model_mode("train")
    terms = []
    seed_everything(3)  # centers are drawn in the first step
    with synchronised_norms(engine.networks()):
        for number, batch in enumerate(batches):
            engine.batch_idx = number
            share = len(batch["pid"]) // world_size()
            own = slice(process_rank() * share, (process_rank() + 1) * share)
            terms.append(engine.forward_backward({"img": batch["img"][own], "pid": batch["pid"][own]}))
    weights = {name: tensor.detach().clone() for name, tensor in engine.model.state_dict().items()}
    weights |= {
        f"centers {place}": centers for place, loss in enumerate(engine.losses()) for centers in loss.parameters()
    }
    return terms, weights


@pytest.mark.parametrize("kind", ["reid", "oskt", "nested", "vkd", "kd++"])
def test_two_processes_have_the_losses_of_one(manager, tmp_path, kind):
    """Cross-entropy, hard triplets, centers, distillation and all pairs' distances, batch norms included."""
    torch.manual_seed(1)
    data = set_manager() if kind == "vkd" else manager
    batches = [batch for _ in range(3) for batch in data.train_loader][:STEPS]
    assert len(batches) == STEPS
    expected, weights = trained(kind, manager, batches)
    results = together(tmp_path / "two", lambda: trained(kind, manager, batches))
    for terms, own in results:
        for found, wanted in zip(terms, expected, strict=True):
            assert found == pytest.approx(wanted, abs=1e-5)
        assert own.keys() == weights.keys()
        for name, tensor in weights.items():
            assert torch.allclose(own[name], tensor, atol=1e-4), name
    assert_same(results[0][1], results[1][1])


def test_norms_get_their_classes_back(tmp_path):
    def classes():
        model = TinyNet(3)
        before = [type(module) for module in model.modules()]
        with synchronised_norms([model]):
            inside = [type(module) for module in model.modules()]
        return before == [type(module) for module in model.modules()], before == inside

    assert classes() == (True, True), "one process has nothing to synchronise"
    assert together(tmp_path / "two", classes) == [(True, False)] * 2


# ---- shares ----------------------------------------------------------------------------------------------------------


def test_identities_are_shared_without_overlap(manager, tmp_path):
    """Of every batch each process has whole identities, and together they have the order that one would draw."""
    loader = manager.train_loader
    identity = [item[1] for item in loader.dataset.train]

    def shares():
        torch.manual_seed(process_rank())
        sampler = SharedSampler(loader.sampler, 8)
        before = torch.get_rng_state()
        order = list(sampler)
        return order, is_rank_zero() or torch.equal(before, torch.get_rng_state()), len(sampler)

    (first, _, length), (second, untouched, _) = together(tmp_path / "two", shares)
    assert untouched and length == len(loader.sampler) // 8 * 4 >= len(first) == len(second) > 0
    for start in range(0, len(first), 4):
        own, other = ([identity[place] for place in order[start : start + 4]] for order in (first, second))
        assert own[0] == own[1] != own[2] == own[3] and other[0] == other[1] != other[2] == other[3]
        assert not set(own) & set(other)
    torch.manual_seed(0)
    whole = list(SharedSampler(loader.sampler, 8))
    assert whole == [place for start in range(0, len(first), 4) for place in first[start:][:4] + second[start:][:4]]


def test_what_cannot_be_shared(manager, tmp_path, market_root):
    def message(work):
        try:
            work()
        except ConfigError as error:
            return str(error)
        return ""

    def refused():
        config = load_config(options=["engine=softmax", "train.batch_size=8", f"data.save_dir={tmp_path / 'run'}"])
        return [
            message(lambda: check_share(8, 4)),
            message(lambda: check_share(8, 2)),
            message(lambda: engine_of("reid", manager)),
            message(lambda: run(config)),
            message(lambda: TransferEngine(SetManager(), TinyNet(4), use_gpu=False)),
            message(lambda: run(tiny(market_root, tmp_path / "run", "oskt.students=['latency=5ms']"))),
        ]

    fine, half, engine, batch, loader, latency = together(tmp_path / "three", refused, 3)[0]
    assert fine.startswith(
        "a batch of 8 has 2 identities of 4 images each, and 3 processes share it: more processes than"
    )
    assert "has 4 identities of 2 images each, and 3 processes share it: 3 does not divide 4" in half
    assert engine == half
    assert batch.startswith("train: a batch of 8 has 8 images, and 3 processes share it: 3 does not divide 8; start a")
    assert "batches of a torch DataLoader with a batch_size, and this is a list" in loader
    assert latency.startswith("'latency=5ms' requires a latency, which 3 processes would measure differently")
    assert not (tmp_path / "run").exists()


def test_small_parts(tmp_path):
    def work():
        images = torch.arange(5.0)[:, None]
        return {
            "features": features_by_shares(lambda own: 10 * own, images).flatten().tolist(),
            "first": broadcast(process_rank),
            "all": all_gather(process_rank()),
            "whole": whole_batch((torch.tensor([process_rank()]), [torch.tensor([7])])),
        }

    expected = {"features": [0, 10, 20, 30, 40], "first": 0, "all": [0, 1]}
    for result in together(tmp_path / "two", work):
        whole, (others,) = result.pop("whole")
        assert result == expected and whole.tolist() == [0, 1] and others.tolist() == [7, 7]
    alone = work()
    assert alone["all"] == [0] and alone["features"] == expected["features"]


# ---- whole runs ------------------------------------------------------------------------------------------------------


RUN = [
    "loss.name=triplet",
    "sampler.train_sampler=RandomIdentitySampler",
    "data.transforms=['random_flip', 'random_erase']",
    "oskt.refine.max_epoch=2",
    "train.sync_batch_norm=True",
]


@pytest.fixture(scope="module")
def whole_run(tiny_net, data_root, tmp_path_factory):
    """Folder and rows of a run by two processes that nothing stops."""
    folder = tmp_path_factory.mktemp("two")
    config = tiny(data_root, folder / "run", *RUN)
    rows = together(folder, lambda: [(row.name, row.map_before, row.map_after) for row in run(config).rows])
    return folder / "run", rows


def test_a_run_by_two_processes_writes_one_set_of_files(whole_run):
    folder, (first, second) = whole_run
    assert first == second and [name for name, *_ in first] == ["teacher", "width=0.5"]
    check_whole(folder)
    rows = read_results(folder / "results.json").rows
    assert [(row.name, row.map_before, row.map_after) for row in rows] == first
    events = [path.parent.name for path in folder.rglob("events.*")]
    assert sorted(events) == ["refine", "teacher", "width=0.5"], "one process writes for TensorBoard"
    assert (folder / "size_vs_map.png").is_file() and (folder / "config.yaml").is_file()


def test_one_process_told_to_stop_stops_all_and_they_go_on_bit_equal(whole_run, data_root, tmp_path):
    folder, _ = whole_run
    config = tiny(data_root, tmp_path / "run", *RUN)

    def stopped():
        prepare = TransferEngine.prepare

        def told(engine, data):
            if process_rank() == 1 and engine.epoch == 1 and isinstance(engine, OSKTEngine):
                signal.raise_signal(signal.SIGTERM)
            return prepare(engine, data)

        TransferEngine.prepare = told  # in this process alone
        run(config)

    for result in together(tmp_path / "stop", stopped):
        assert result.startswith("Terminated: terminated at epoch 2, batch 1; the state is in")
    check_whole(tmp_path / "run")
    assert len(load_checkpoint(tmp_path / "run" / "refine" / "model" / "model.pth.tar-last")["training"]["random"]) == 2
    shutil.copytree(tmp_path / "run", tmp_path / "alone")
    together(tmp_path / "again", lambda: len(run(config).rows))
    assert sha256(tmp_path / "run" / "chain.safetensors") == sha256(folder / "chain.safetensors")
    whole, found = (
        load_checkpoint(path / "students" / "width=0.5" / "student.pth") for path in (folder, tmp_path / "run")
    )
    assert_same(found["state_dict"], whole["state_dict"])
    alone = run(tiny(data_root, tmp_path / "alone", *RUN))  # the number of processes is no setting of a run
    assert [row.name for row in alone.rows] == ["teacher", "width=0.5"]


def test_processes_agree_on_what_channels_contribute(tiny_net, data_root, tmp_path):
    """Each measures, on the same images: clusters, leaders and rows are the same."""
    nested = ["oskt.nested=True", "oskt.contributions=1", "oskt.refine.distil_weight=0.25", "oskt.refine.levels=1"]
    config = tiny(data_root, tmp_path / "run", *RUN, *nested)

    def work():
        chains, make = [], OSKTEngine.__init__

        def noting(engine, *arguments, **options):
            chains.append(options["chain"])
            make(engine, *arguments, **options)

        OSKTEngine.__init__ = noting  # in this process alone
        rows = [(row.name, row.map_before, row.map_after) for row in run(config).rows]
        tensors = {name: torch.from_numpy(found) for name, found in chains[0].importance.items()}
        return rows, tensors | {f"own {name}": tensor for name, tensor in chains[0].own.items()}

    (rows, first), (others, second) = together(tmp_path / "two", work)
    assert rows == others and len(first) > 5
    assert_same(first, second)


# ---- the command -----------------------------------------------------------------------------------------------------


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.mark.slow
def test_two_nodes_on_loopback_addresses(data_root, tmp_path):
    """torchrun on two "machines" with one process each, meeting at 127.0.0.1."""
    words = [*without_method(SMALL), "engine=softmax", f"data.root={data_root}", f"data.save_dir={tmp_path / 'run'}"]
    port = free_port()
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1"]
    command += ["--rdzv_backend", "c10d", "--rdzv_endpoint", f"127.0.0.1:{port}", "--rdzv_id", "run"]
    nodes = [
        subprocess.Popen(
            [*command, "--local_addr", "127.0.0.1", str(ROOT / "tools" / "main.py"), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    outputs = [node.communicate(timeout=600) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], outputs
    printed = [output for output, _ in outputs if "written to" in output]
    assert len(printed) == 1, "one process prints the table"
    assert read_results(tmp_path / "run" / "results.json").rows[0].map_after is not None
    check_whole(tmp_path / "run")
