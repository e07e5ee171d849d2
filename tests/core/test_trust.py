"""Flags that a model raises by itself: models built to trip them, and honest ones."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from harness.numerics import frozen
from harness.routing import Routing
from harness.tensors import Noise, Routed, Samples
from harness.testing import LinearModel, ToyMoE
from harness.threat import ThreatModel
from harness.trust import CHECKED, checks

THREAT = ThreatModel("linf", 8 / 255)


def cross_entropy(outcome):
    return nn.functional.cross_entropy(outcome.logits, outcome.labels, reduction="none")


def images(count=16):
    """Different images, brighter and darker ones, that show nothing."""
    noise = Noise(0, torch.arange(count), (3, 8, 8))
    brightness = torch.linspace(0.35, 0.65, count)[:, None, None, None]
    return (brightness + noise.uniform(0) / 4).clamp(0, 1)


def seen(model, count=16):
    """Images that the model has right: their labels are what it says of them."""
    found = images(count)
    with torch.no_grad():
        return Samples(torch.arange(count), found, model(found).argmax(dim=1))


def found(model, samples=None, threat=THREAT):
    with frozen(model):
        samples = seen(model) if samples is None else samples
        return checks(model, samples, cross_entropy, threat=threat)


class Random(LinearModel):
    def forward(self, images):
        return super().forward(images) + torch.rand(len(images), 2)


class Coupled(LinearModel):
    def forward(self, images):
        return super().forward(images - images.mean())


class Rounding(LinearModel):
    def forward(self, images):
        return super().forward((images * 15).round() / 15)


class Gradient(torch.autograd.Function):
    """The identity, with another gradient than its own."""

    @staticmethod
    def forward(context, images, change):
        context.change = change
        return images.clone()

    @staticmethod
    def backward(context, gradient):
        return context.change(gradient), None


class Changed(LinearModel):
    """A model that lets attacks see another gradient than its own."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def forward(self, images):
        return super().forward(Gradient.apply(images, self.change))


class HidesRounding(LinearModel):
    """Rounds, and passes the gradient straight through."""

    def forward(self, images):
        return super().forward(images + ((images * 255).round() / 255 - images).detach())


class Loud(LinearModel):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, images):
        return super().forward(images) * self.factor


class Root(LinearModel):
    """The root of the distance to the image itself: at 0 its slope is infinite, times 0."""

    def forward(self, images):
        away = (images - images.detach()).square().flatten(1).sum(dim=1).sqrt()
        return super().forward(images) + away[:, None]


class Squashed(LinearModel):
    """A sigmoid so steep that it is 1 or 0 in float32 nearly everywhere."""

    def forward(self, images):
        return super().forward((1e5 * (images - 0.5)).sigmoid())


TRIPPED = {
    "random": (Random(), {"not-deterministic"}),
    "coupled": (Coupled(), {"batch-dependent"}),
    "rounding": (Rounding(), {"zero-gradient", "quantised-input"}),
    "rounding, straight through": (HidesRounding(), {"quantised-input"}),
    "steep sigmoid": (Squashed(), {"zero-gradient"}),
    "logits times 1000": (Loud(1e3), {"saturated"}),
    "logits times 1e6": (Loud(1e6), {"saturated", "zero-gradient", "loss-not-rising"}),
    "root at 0": (Root(), {"nan-gradient"}),
    "same gradient": (Changed(torch.ones_like), {"constant-gradient"}),
    "backwards": (Changed(torch.neg), {"robust-at-huge-epsilon", "loss-not-rising"}),
}


@pytest.mark.parametrize(("model", "flags"), TRIPPED.values(), ids=TRIPPED)
def test_a_model_built_to_trip_a_check_raises_its_flag(model, flags):
    assert flags <= set(found(model).flags)


@pytest.mark.parametrize("threat", [THREAT, ThreatModel("l2", 0.5), None], ids=str)
@pytest.mark.parametrize("gradient", ["none", "straight-through", "soft"])
def test_an_honest_routed_model_raises_none(gradient, threat):
    torch.manual_seed(0)
    model = ToyMoE(4, (3, 8, 8), gradient=gradient)

    assert found(model, threat=threat).flags == ()


@pytest.mark.parametrize("factor", [1.0, 1e-3, 1e-6], ids=str)
def test_an_honest_linear_model_raises_none_at_any_size_of_its_logits(factor):
    assert found(Loud(factor)).flags == ()


def test_equal_images_may_have_equal_gradients():
    same = seen(LinearModel()).rows(torch.zeros(16, dtype=torch.int64))

    assert found(LinearModel(), same).flags == ()


def test_a_model_that_has_nothing_right_is_not_blamed():
    samples = seen(LinearModel())

    result = found(LinearModel(), samples._replace(labels=1 - samples.labels))

    assert (result.flags, result.samples, result.fooled) == ((), (), {})


def test_coupling_is_seen_on_images_that_the_model_has_wrong_too():
    samples = seen(Coupled())

    result = found(Coupled(), samples._replace(labels=1 - samples.labels))

    assert result.flags == ("batch-dependent",)


class Broken(LinearModel):
    """NaN at dark images."""

    def forward(self, images):
        return super().forward(images) / (images.flatten(1).mean(dim=1) > 0.4)[:, None]


def test_logits_that_are_not_finite_do_not_pass_for_random_ones():
    assert "not-deterministic" not in found(Broken(), seen(LinearModel())).flags


def test_batch_norm_left_in_training_mode_is_seen_as_batch_dependence():
    model = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), LinearModel())

    assert "batch-dependent" in found(model).flags


def test_only_the_first_images_that_the_model_has_right_are_checked():
    samples = seen(LinearModel(), 90)
    samples.labels[1] = 1 - samples.labels[1]

    result = found(LinearModel(), samples)

    assert result.looked == 90
    assert result.samples == (0, *range(2, CHECKED + 1))


def test_the_same_images_give_the_same_findings():
    assert found(Rounding()) == found(Rounding())


class Router(LinearModel):
    """Two experts that do the same, and a straight-through gate between them.

    The gate is 1 whatever the image shows, but its gradient says that it grows by `slope` away
    from the boundary: with a large negative slope attacks walk away from it.
    """

    def __init__(self, slope):
        super().__init__()
        self.slope = slope

    def forward(self, images):
        return self.routed(images).logits

    def routed(self, images, *, routes=None, relaxed=False, detach_router=False):
        half = images.flatten(1)[:, :96].mean(dim=1) - images.flatten(1)[:, 96:].mean(dim=1)
        gate_logits = torch.stack([half, -half], dim=1)[:, None]
        gate = self.slope * (images.flatten(1).mean(dim=1) - 0.5).abs()
        gate = gate - gate.detach() if not detach_router else torch.zeros_like(gate)
        experts = gate_logits.argmax(dim=2, keepdim=True)
        route = Routing(gate_logits, gate_logits.softmax(2), experts, torch.ones_like(experts) > 0)
        logits = super().forward(images) * (1 + gate)[:, None]
        return Routed(logits, (route,), gate.detach())


def test_a_router_whose_gradient_hides_the_experts_is_noticed():
    # score s, logits (-s, s): the slope of s (1 + gate) is 1 - 1e3 |s|, negative beyond 1e-3
    result = found(Router(slope=-1e3), threat=ThreatModel("linf", 0.1))

    assert "router-hides-experts" in result.flags


def test_a_router_whose_gradient_agrees_with_the_experts_is_not_blamed():
    assert found(Router(slope=1.0)).flags == ()


def collapsed(num_experts):
    torch.manual_seed(0)
    model = ToyMoE(4, (3, 8, 8), num_experts=num_experts)
    nn.init.zeros_(model.router.weight)
    return model


@pytest.mark.parametrize(
    ("num_experts", "count", "flags"),
    [(4, 16, ("one-expert",)), (1, 16, ()), (4, 7, ())],
    ids=["collapsed", "a single expert", "too few images"],
)
def test_all_images_on_one_expert_of_several_are_noticed(num_experts, count, flags):
    model = collapsed(num_experts)

    assert found(model, seen(model, count)).flags == flags
