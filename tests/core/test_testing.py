"""The checks for authors of plugins notice what they are there to notice."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from harness.errors import ModelError
from harness.plugins import load_plugins
from harness.tensors import is_fooled
from harness.testing import (
    LinearModel,
    ToyMoE,
    check_attack,
    check_model,
    linear_distance,
    linear_samples,
)

PLUGIN = """
import itertools
import torch
from torch import nn
from harness import AttackCard, ModelCard, hookimpl

builds = itertools.count()

class Model(nn.Module):
    def __init__(self, fault):
        super().__init__()
        self.fault = fault
        self.head = nn.Linear(48, 10)
        self.secret = next(builds) if fault == "hidden state" else 0
        if fault == "unseeded":
            nn.init.constant_(self.head.bias, next(builds))

    def forward(self, images):
        flat = images.flatten(1)
        if self.fault == "no gradient":
            flat = flat.detach()
        if self.fault == "coupled":
            flat = flat - flat.mean(dim=0)
        return self.head(flat) + self.secret

def builder(fault):
    return lambda context: Model(fault)

def outside(objective, images, labels, threat, *, noise):
    return images - 1.1 * threat.epsilon

def vandal(objective, images, labels, threat, *, noise):
    return images.sub_(threat.epsilon)

def unkeyed(objective, images, labels, threat, *, noise):
    return images - threat.epsilon * torch.rand_like(images)

def lazy(objective, images, labels, threat, *, noise):
    return images

@hookimpl
def register_models(register):
    for fault in ("honest", "hidden state", "unseeded", "no gradient", "coupled"):
        register(fault.replace(" ", "-"), builder(fault), card=ModelCard(sizes=(4,)))

@hookimpl
def register_attacks(register):
    for attack in (outside, vandal, unkeyed, lazy):
        register(attack.__name__, attack, card=AttackCard())
"""


@pytest.fixture
def faulty(tmp_path):
    path = tmp_path / "faulty.py"
    path.write_text(PLUGIN)
    return load_plugins([str(path)])


def test_an_honest_model_passes(faulty):
    check_model(faulty, "honest", image_shape=(3, 4, 4))


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("unseeded", "draw random numbers from torch alone"),
        ("hidden-state", "does not carry all"),
        ("no-gradient", "do not detach"),
        ("coupled", "group=N"),
    ],
)
def test_a_model_with_a_fault_is_told_what_to_change(faulty, name, advice):
    with pytest.raises(AssertionError, match=advice):
        check_model(faulty, name, image_shape=(3, 4, 4))


def test_a_model_with_the_wrong_number_of_classes_is_refused(faulty):
    with pytest.raises(ModelError, match="build the model for 7 classes"):
        check_model(faulty, "honest", num_classes=7, image_shape=(3, 4, 4))


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("outside", r"end with threat\.project"),
        ("vandal", "changes the images that it is given"),
        ("unkeyed", "take random numbers from the noise"),
        ("lazy", "misses images within 1.05"),
    ],
)
def test_an_attack_with_a_fault_is_told_what_to_change(faulty, name, advice):
    with pytest.raises(AssertionError, match=advice):
        check_attack(faulty, name)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_plane_of_the_linear_model_is_where_it_is_said_to_be(norm):
    samples = linear_samples()
    step = linear_distance(norm) if norm == "linf" else linear_distance(norm) / (3 * 64) ** 0.5

    before = is_fooled(LinearModel()(samples.images - 0.99 * step), samples.labels)
    after = is_fooled(LinearModel()(samples.images - 1.01 * step), samples.labels)

    assert not before.any()
    assert after.all()


def toy(gradient):
    torch.manual_seed(0)
    return ToyMoE(10, (3, 8, 8), gradient=gradient)


@pytest.mark.parametrize("gradient", ["none", "straight-through", "soft"])
def test_replaying_the_own_routes_changes_no_logit(gradient):
    model, images = toy(gradient), torch.rand(6, 3, 8, 8)

    routed = model.routed(images)

    assert torch.equal(model.routed(images, routes=routed.routes).logits, routed.logits)


@pytest.mark.parametrize("gradient", ["none", "straight-through", "soft"])
def test_gates_sum_to_one_and_the_chosen_expert_has_the_largest(gradient):
    routing = toy(gradient).routed(torch.rand(6, 3, 8, 8)).routes[0]

    assert torch.allclose(routing.gates.sum(dim=2), torch.ones(6, 1))
    assert torch.equal(routing.gates.argmax(dim=2, keepdim=True), routing.experts)
    assert routing.kept.all()


def test_hard_and_straight_through_routers_give_the_same_logits():
    images = torch.rand(6, 3, 8, 8)

    assert torch.allclose(toy("none")(images), toy("straight-through")(images), atol=1e-6)


@pytest.mark.parametrize(
    ("gradient", "reaches_router"), [("none", False), ("straight-through", True), ("soft", True)]
)
def test_the_card_of_a_router_is_what_its_gradient_does(gradient, reaches_router):
    model = toy(gradient)

    model(torch.rand(6, 3, 8, 8)).square().sum().backward()

    assert (model.router.weight.grad is not None) == reaches_router


@pytest.mark.parametrize("gradient", ["straight-through", "soft"])
def test_detaching_cuts_the_router_off(gradient):
    model = toy(gradient)

    model.routed(torch.rand(6, 3, 8, 8), detach_router=True).logits.square().sum().backward()

    assert model.router.weight.grad is None


def test_relaxing_gives_a_hard_router_a_gradient():
    model = toy("none")

    model.routed(torch.rand(6, 3, 8, 8), relaxed=True).logits.square().sum().backward()

    assert model.router.weight.grad.abs().sum() > 0


def test_the_parameter_groups_hold_every_parameter_once():
    model = toy("none")

    grouped = [parameter for group in model.parameter_groups().values() for parameter in group]

    assert sorted(map(id, grouped)) == sorted(map(id, model.parameters()))
    # router 192 * 4 + 4, one expert 10 * 192
    assert model.active_parameters() == 772 + 1920


def test_one_expert_is_a_linear_model():
    torch.manual_seed(0)
    model = ToyMoE(10, (3, 8, 8), num_experts=1)
    images = torch.rand(6, 3, 8, 8)

    expected = nn.functional.linear(images.flatten(1) - 0.5, model.experts[0])

    assert torch.allclose(model(images), expected, atol=1e-6)
