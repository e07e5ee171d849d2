"""Flags that a model raises by itself: models built to trip them, and honest ones."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from harness.numerics import frozen
from harness.tensors import Noise, Samples
from harness.testing import LinearModel, ToyMoE, linear_samples
from harness.trust import model_flags


def loss(outcome):
    return -outcome.margin


class Random(LinearModel):
    def forward(self, images):
        return super().forward(images) + torch.rand(len(images), 2)


class Coupled(LinearModel):
    def forward(self, images):
        return super().forward(images - images.mean())


class Quantised(LinearModel):
    def forward(self, images):
        return super().forward((images * 15).round() / 15)


class Backwards(torch.autograd.Function):
    """The identity, with a gradient that points the wrong way."""

    @staticmethod
    def forward(context, images):
        return images.clone()

    @staticmethod
    def backward(context, gradient):
        return -gradient


class Misleading(LinearModel):
    def forward(self, images):
        return super().forward(Backwards.apply(images))


class Saturated(LinearModel):
    def forward(self, images):
        return super().forward(images) * 1e6


def cross_entropy(outcome):
    return nn.functional.cross_entropy(outcome.logits, outcome.labels, reduction="none")


def test_a_gradient_that_misleads_is_noticed_by_the_loss():
    found = model_flags(Misleading(), linear_samples(gap=0.2), loss)

    assert found == ["robust-at-huge-epsilon", "loss-not-rising"]


def test_logits_so_large_that_cross_entropy_is_flat_are_noticed():
    # a gap of 2e5 between logits: exp(-2e5) is 0 in float32, and so is the gradient
    found = model_flags(Saturated(), linear_samples(), cross_entropy)

    assert found == ["zero-gradient", "robust-at-huge-epsilon", "loss-not-rising"]


def test_a_model_that_has_nothing_right_is_not_blamed():
    samples = linear_samples()

    found = model_flags(LinearModel(), samples._replace(labels=samples.labels * 0), loss)

    assert found == []


@pytest.mark.parametrize(
    ("model", "flag"),
    [
        (Random(), "not-deterministic"),
        (Coupled(), "batch-dependent"),
        (Quantised(), "zero-gradient"),
    ],
    ids=["random", "coupled", "quantised"],
)
def test_a_model_built_to_trip_a_check_raises_its_flag(model, flag):
    samples = linear_samples()
    samples.images[0] += 0.1

    assert model_flags(model, samples, loss)[:1] == [flag]


@pytest.mark.parametrize("gradient", ["none", "straight-through", "soft"])
def test_honest_models_raise_none(gradient):
    torch.manual_seed(0)
    images = Noise(0, torch.arange(8), (3, 8, 8)).uniform(0) / 2 + 0.5
    samples = Samples(torch.arange(8), images, torch.zeros(8, dtype=torch.int64))

    with frozen(ToyMoE(4, (3, 8, 8), gradient=gradient)) as model:
        found = model_flags(model, samples, loss)

    assert found == []


def test_batch_norm_left_in_training_mode_is_seen_as_batch_dependence():
    model = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), LinearModel())

    assert "batch-dependent" in model_flags(model.eval(), _two_brightnesses(), loss)


def _two_brightnesses():
    samples = linear_samples()
    samples.images[::2] += 0.2
    return samples
