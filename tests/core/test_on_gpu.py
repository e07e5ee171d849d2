"""What only a GPU can show: captured passes, short numbers, and verdicts that stay the CPU's."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from harness.modes import Mode
from harness.numerics import Batches, frozen, use_exact_float32
from harness.passes import objective_of
from harness.prepare import prepared
from harness.recipes import Course
from harness.tensors import Noise

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]
COUNT = 24
MODES = [
    Mode(),
    Mode("tf32"),
    Mode("bfloat16-gradients"),
    Mode(is_captured=True),
    Mode("bfloat16-gradients", is_captured=True),
    Mode(is_compiled=True),
]


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(),
        nn.Linear(16 * 64, 10),
    ).eval().cuda()  # fmt: skip


def images():
    return (Noise(0, torch.arange(COUNT), (3, 8, 8)).uniform(0) / 2 + 0.5).cuda()


def cross_entropy(outcome):
    return functional.cross_entropy(outcome.logits, outcome.labels, reduction="none")


def gradient_in(mode, batch_size=COUNT):
    """The score and the gradient that a mode gives."""
    from dataclasses import replace

    use_exact_float32()
    model, labels = network(), (torch.arange(COUNT) % 10).cuda()
    with frozen(model):
        objective = replace(
            objective_of(model, cross_entropy, labels, batch_size=batch_size),
            surrogate=prepared(model, images()[:8], mode),
            batches=Batches(batch_size, is_bucketed=mode.is_bucketed),
        )
        return objective.gradient(images())


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_a_mode_gives_the_gradient_of_the_model(mode):
    expected = gradient_in(Mode())[1]

    found = gradient_in(mode)[1]

    agree = functional.cosine_similarity(found.flatten(1), expected.flatten(1), dim=1)
    assert float(agree.min()) > 0.99


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_no_mode_changes_who_is_fooled(mode):
    assert torch.equal(gradient_in(mode)[0].fooled, gradient_in(Mode())[0].fooled)


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_captured_and_compiled_passes_serve_every_size_of_a_batch(mode):
    whole = gradient_in(mode)[1]

    parts = gradient_in(mode, batch_size=8)[1]

    agree = functional.cosine_similarity(parts.flatten(1), whole.flatten(1), dim=1)
    assert float(agree.min()) > 0.99


def test_exact_float32_is_restored_after_short_numbers():
    gradient_in(Mode("tf32"))

    assert torch.backends.cuda.matmul.fp32_precision == "ieee"


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_fused_step_is_that_of_the_cpu_but_for_rounding(name):
    course = Course(
        epochs=4, batch_size=64, optimizer=name, learning_rate=0.1, momentum=0.9, nesterov=False,
        weight_decay=0.5, schedule="cosine", warm_up=0.0, translate=0, crop=0, flip=False,
        cutout=0,
    )  # fmt: skip
    start = torch.linspace(-1, 1, 999)
    here, there = nn.Parameter(start), nn.Parameter(start.cuda())
    optimizers = [course.optimizer_of([parameter]) for parameter in (here, there)]

    here.grad = start.cos()
    there.grad = here.grad.cuda()
    [optimizer.step() for optimizer in optimizers * 3]

    assert optimizers[1].defaults["fused"]
    torch.testing.assert_close(there.detach().cpu(), here.detach(), rtol=1e-5, atol=1e-6)
