"""The compute of trainings: what is counted beforehand against what torch counts in a step."""

from runs import configured
from torch.utils.flop_counter import FlopCounterMode

from oskt_torchreid.baselines import DistillationEngine
from oskt_torchreid.config import get
from oskt_torchreid.host.engine import TransferEngine
from oskt_torchreid.host.oskt_engine import OSKTEngine
from oskt_torchreid.runs import run
from oskt_torchreid.runs.compute import epoch_images, epochs_compute, full_epochs, schedule_epochs
from oskt_torchreid.runs.trainer import Trainer, schedule

BATCH = 16


def counted_steps(monkeypatch, engine, counts):
    """Lets an engine note the multiply-adds of each of its steps, forward and backward."""
    step = engine.forward_backward

    def counting(self, data):
        with FlopCounterMode(display=False) as counter:
            summary = step(self, data)
        counts.setdefault(type(self), []).append(counter.get_total_flops() / 2)
        return summary

    monkeypatch.setattr(engine, "forward_backward", counting)


def test_steps_cost_what_is_counted(data_root, tmp_path, monkeypatch):
    """But for classifiers, and for the first layer, which needs no gradient of the images."""
    counts = {}
    counted_steps(monkeypatch, TransferEngine, counts)
    students = "oskt.students=['width=0.5', 'norm+kd:width=0.5']"
    nested = ["oskt.nested=True", "oskt.refine.distil_weight=0.25", "oskt.refine.levels=1"]
    # Of convolutions of groups torch counts the backward pass wrongly; ResNet-18 has none.
    options = [*nested, "oskt.refine.level_start=0.0", students, "model.name=resnet18"]
    config = configured(data_root, tmp_path, *options)
    results = run(config)
    steps = epoch_images(Trainer(config), get(config, "oskt.finetune")) / BATCH
    assert steps == len(counts[OSKTEngine]) == len(counts[DistillationEngine])
    teacher, student, distilled = results.rows
    assert teacher.training_flops is None, "the teacher's own training is not part of any comparison"
    parts = [
        (results.facts["refine"]["training_flops"], counts[OSKTEngine]),
        (distilled.training_flops, counts[DistillationEngine]),
        (student.training_flops, counts[TransferEngine][-len(counts[OSKTEngine]) :]),
    ]
    for counted, of_steps in parts:
        assert sum(of_steps) < counted < 1.05 * sum(of_steps)
    assert counts[DistillationEngine][0] > 2 * counts[DistillationEngine][1], "class means are taken in the first step"


def test_levels_come_last_and_at_full_resolution(data_root, tmp_path, monkeypatch):
    """Half of two epochs at half resolution, and the level in the other half alone."""
    counts = {}
    counted_steps(monkeypatch, OSKTEngine, counts)
    refine = {"max_epoch": 2, "half_resolution_epochs": 1, "levels": 1, "level_start": 0.5}
    words = [f"oskt.refine.{key}={value}" for key, value in refine.items()]
    size = ["data.height=64", "data.width=32"]  # so that half of it is a quarter of the work
    students = ["oskt.students=['width=0.5']", "oskt.finetune.max_epoch=0"]
    results = run(configured(data_root, tmp_path, *size, "oskt.nested=True", *words, *students, "model.name=resnet18"))
    counted, measured = results.facts["refine"]["training_flops"], sum(counts[OSKTEngine])
    assert 0.95 * measured < counted < 1.05 * measured


def test_epochs_and_costs_by_hand(data_root, tmp_path):
    """An epoch at half resolution counts a quarter; class means are taken once."""
    config = configured(data_root, tmp_path)
    partly = schedule(config, "oskt.finetune", max_epoch=4, half_resolution_epochs=2)
    assert [full_epochs(partly, since) for since in (0, 0.25, 0.5, 0.75)] == [2.5, 2.25, 2, 1]
    assert full_epochs(schedule(config, "oskt.finetune", max_epoch=1, half_resolution_epochs=3)) == 0.25
    assert [schedule_epochs(2.5, 2), schedule_epochs(0.1, 0), schedule_epochs(2.4, 0)] == [4, 1, 2]
    assert epochs_compute(2, own=10, read=5, class_means=True) == 2 * (3 * 10 + 5) + 5
