"""The compute of trainings: what is counted beforehand against what torch counts in a step."""

import pytest
from runs import configured
from torch.utils.flop_counter import FlopCounterMode

from oskt_torchreid.baselines import DistillationEngine
from oskt_torchreid.config import get
from oskt_torchreid.host.engine import TransferEngine
from oskt_torchreid.host.oskt_engine import OSKTEngine
from oskt_torchreid.runs import run
from oskt_torchreid.runs.compute import seen_images
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
    steps = seen_images(Trainer(config), get(config, "oskt.finetune")) / BATCH
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


def test_images_at_half_resolution_count_a_quarter(data_root, tmp_path):
    trainer = Trainer(configured(data_root, tmp_path))
    whole = schedule(trainer.config, "oskt.finetune", max_epoch=4)
    partly = schedule(trainer.config, "oskt.finetune", max_epoch=4, half_resolution_epochs=2)
    assert seen_images(trainer, whole) == 4 * len(trainer.datamanager(BATCH).train_loader) * BATCH
    assert seen_images(trainer, partly) == pytest.approx(seen_images(trainer, whole) * 2.5 / 4)
