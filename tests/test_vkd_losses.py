"""VKD's losses and metrics: by hand, and equal to the authors' program's where its numbers are at hand."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from oskt_torchreid.errors import ConfigError
from oskt_torchreid.host.losses import kd_loss, soft_margin_triplet_loss
from oskt_torchreid.host.ranking import rank_distances
from oskt_torchreid.vkd import distance_preservation_loss
from oskt_torchreid.vkd.losses import scaled_distances, squared_distances

REFERENCE = Path(os.environ.get("OSKT_REFERENCE") or Path(__file__).parents[2] / "shared" / "fixtures")
NUMBERS = REFERENCE / "official_vkd" / "vkd_losses_and_metrics.pth"
needs_reference = pytest.mark.skipif(not NUMBERS.is_file(), reason="no authors' numbers there (OSKT_REFERENCE)")
ALPHA, BETA = 0.1, 1e-4


@pytest.fixture(scope="module")
def reference():
    return torch.load(NUMBERS, weights_only=True)


def test_distance_preservation_by_hand():
    student, teacher = torch.tensor([[0.0], [1], [2], [3]]), torch.tensor([[0.0], [1], [2], [5]])
    assert distance_preservation_loss(student, teacher).item() == 29
    assert distance_preservation_loss(student, student.clone()).item() == 0


def test_distances_without_a_scale_by_hand():
    """(0, 1, 2, 3) has squared distances of 1, 4, 9, 1, 4, 1, mean 20/6; (0, 1, 2, 5) 1, 4, 25, 1, 16, 9, mean 56/6."""
    student, teacher = torch.tensor([[0.0], [1], [2], [3]]), torch.tensor([[0.0], [1], [2], [5]])
    ours, theirs = torch.tensor([1.0, 4, 9, 1, 4, 1]) * 6 / 20, torch.tensor([1.0, 4, 25, 1, 16, 9]) * 6 / 56
    expected = 2 * (theirs - ours).square().sum() / 16 / 2
    torch.testing.assert_close(distance_preservation_loss(student, teacher, "mean"), expected)
    torch.testing.assert_close(distance_preservation_loss(7 * student, teacher, "mean"), expected)
    # Unit vectors: (1, 0), (0, 1) and (3, 4) / 5 have the squared distances 2, 2 - 6/5 and 2 - 8/5.
    vectors = torch.tensor([[2.0, 0], [0, 3], [3, 4]])
    found = scaled_distances(vectors, "unit")
    torch.testing.assert_close(found[0, 1:], torch.tensor([2, 0.8]))
    torch.testing.assert_close(found[1, 2], torch.tensor(0.4))
    equal = torch.ones(3, 2, requires_grad=True)
    loss = distance_preservation_loss(equal, torch.eye(3), "mean")
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(equal.grad).all()
    with pytest.raises(ConfigError, match="the scale of distances is 'units'; did you mean 'unit'"):
        scaled_distances(vectors, "units")


def test_distance_preservation_compares_networks_of_different_widths():
    student = torch.randn(5, 3, requires_grad=True)
    teacher = torch.randn(5, 7, requires_grad=True)
    distance_preservation_loss(student, teacher).backward()
    assert student.grad.abs().sum() > 0 and teacher.grad is None
    expected = torch.cdist(teacher, teacher).square()
    torch.testing.assert_close(squared_distances(teacher), expected, atol=1e-5, rtol=1e-5)


def test_distillation_teaches_the_student_alone():
    student, teacher = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    kd_loss(student, teacher, 4.0).backward()
    assert student.grad.abs().sum() > 0 and teacher.grad is None
    assert kd_loss(student, student).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: kd_loss(torch.zeros(2, 3), torch.zeros(2, 4)),
            r"same classes.*\(2, 3\) of .* \(2, 4\)",
        ),
        (
            lambda: kd_loss(torch.zeros(2, 3), torch.zeros(2, 3), 0),
            "temperature of kd_loss is 0; allowed",
        ),
        (
            lambda: distance_preservation_loss(torch.zeros(2, 3), torch.zeros(3, 3)),
            "embeddings of the same sets",
        ),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


@needs_reference
def test_losses_and_gradients_are_the_authors(reference):
    embeddings = reference["student_embeddings"].clone().requires_grad_()
    logits = reference["student_logits"].clone().requires_grad_()
    terms = {
        "loss_kd": kd_loss(logits, reference["teacher_logits"], reference["temperature"]),
        "loss_dp": distance_preservation_loss(embeddings, reference["teacher_embeddings"]),
        "loss_triplet_soft_margin": soft_margin_triplet_loss(embeddings, reference["labels"]),
        "loss_ce": functional.cross_entropy(logits, reference["labels"]),
    }
    for name, term in terms.items():
        torch.testing.assert_close(term, reference[name], rtol=1e-5, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")
    assert (reference["alpha_kd"], reference["beta_dp"]) == (ALPHA, BETA)
    total = terms["loss_ce"] + terms["loss_triplet_soft_margin"] + ALPHA * terms["loss_kd"] + BETA * terms["loss_dp"]
    torch.testing.assert_close(total, reference["loss_total"], rtol=1e-5, atol=1e-5)
    total.backward()
    torch.testing.assert_close(embeddings.grad, reference["grad_student_embeddings"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits.grad, reference["grad_student_logits"], rtol=1e-5, atol=1e-5)


@needs_reference
def test_cmc_and_average_precision_are_the_authors(reference):
    labels = [reference[name] for name in ("q_pids", "g_pids", "q_camids", "g_camids")]
    found = rank_distances(reference["distmat"], *labels, ap="trapezoid", max_rank=90)
    np.testing.assert_allclose(found.cmc, reference["cmc"].numpy(), atol=1e-6)
    assert found.mean_ap == pytest.approx(reference["mAP_trapezoid"], abs=1e-6)
    assert rank_distances(reference["distmat"], *labels).mean_ap != pytest.approx(found.mean_ap, abs=1e-3)
