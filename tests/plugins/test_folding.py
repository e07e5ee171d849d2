"""Networks that the harness brings: every norm folded, and the same images fooled."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from harness.building import build_model
from harness.checkpoints import load_weights
from harness.judging import BoundAttack, Defence, attempt
from harness.ledger import Ledger
from harness.modes import Mode
from harness.numerics import Batches, frozen
from harness.prepare import folded, prepared
from harness.seeing import clean_pass
from harness.tensors import Noise, Samples, is_fooled
from harness.threat import ThreatModel

SHAPE = (3, 32, 32)
WEIGHTS = "weights/resnet14w24_cifar10_at.safetensors"


def norms(model):
    return [path for path, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("cnn/resnet14w24", 0),
        ("cnn/resnet18-half", 0),
        ("cnn/vgg16-half", 0),
        ("timm/resnet10t", 0),
    ],
)
def test_every_norm_after_a_convolution_is_folded(registry, name, left):
    model = build_model(registry, name, num_classes=10, image_shape=SHAPE, seed=0)
    images = Noise(0, torch.arange(8), SHAPE).uniform(0) / 2 + 0.5

    with frozen(model):
        twin = folded(model, images)

    assert norms(model)
    assert len(norms(twin)) == left


@pytest.fixture
def robust(registry, data_dir):
    """The robust ResNet with its weights; skipped where they are not."""
    if not (data_dir / WEIGHTS).is_file():
        pytest.skip(f"{data_dir / WEIGHTS}: no weights; name their folder in HARNESS_DATA")
    model = build_model(registry, "cnn/resnet14w24", num_classes=10, image_shape=SHAPE, seed=0)
    load_weights(model, data_dir / WEIGHTS)
    return model.to(memory_format=torch.channels_last)


def test_the_copy_fools_the_same_images(registry, robust):
    images = Noise(0, torch.arange(32), SHAPE).uniform(0) / 2 + 0.5
    images = nn.functional.interpolate(images[:, :, ::8, ::8], 32, mode="bilinear")
    pgd = registry.find("attacks", "pgd").load()
    loss = registry.find("objectives", "ce").load()
    attack = BoundAttack("pgd", pgd, loss, {"steps": 10, "relative_step_size": 0.25})
    with frozen(robust):
        samples = Samples(torch.arange(32), images, robust(images).argmax(dim=1))
        context = clean_pass(robust, samples, batches=Batches(32))
        copy = prepared(robust, images[:8], Mode())

        plain, climbed = (
            attempt(
                Defence(robust, Batches(32), surrogate=surrogate),
                attack,
                samples,
                context,
                ThreatModel("linf", 4 / 255),
                seed=0,
                ledger=Ledger(32, torch.device("cpu")),
            )
            for surrogate in (None, copy)
        )

    fooled = is_fooled(plain.look.logits, samples.labels)
    assert norms(copy.model) == []
    assert fooled.any()
    assert not fooled.all()
    assert torch.equal(is_fooled(climbed.look.logits, samples.labels), fooled)
