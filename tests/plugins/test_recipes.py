"""Recipes for every model, on a small network and images whose classes differ in brightness."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from harness.errors import TrainingError
from harness.tensors import Noise
from harness.training import (
    Batch,
    Progress,
    TrainingContext,
    TrainingData,
    fit,
    new_fabric,
    wrapped_for_training,
)
from harness.weights import _attack_named
from harness_recipes.sparse import largest

COUNT = 40
WEIGHTS = 54 + 270
"""Of the network's convolutions: 6 * 1 * 3 * 3 and 5 * 6 * 3 * 3."""

QUICK = {
    "epochs": 3, "batch_size": 8, "learning_rate": 0.01, "epsilon": "8/255", "steps": 2,
    "relative_step_size": 0.5,
}  # fmt: skip


def data():
    labels = torch.arange(COUNT) % 4
    speckle = Noise(3, torch.arange(COUNT), (1, 8, 8)).uniform(0) * 60
    images = 64 * labels[:, None, None, None] + 30 + speckle.abs()
    return TrainingData(images.to(torch.uint8), labels)


def batch():
    images, labels = data().rows(torch.arange(COUNT), torch.device("cpu"))
    return Batch(images, labels, Noise(1, torch.arange(COUNT), (1, 8, 8)))


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3, stride=2),
        nn.Flatten(), nn.Linear(20, 4),
    )  # fmt: skip


@pytest.fixture
def given(registry):
    """A context of a network, and the training that a recipe asks of it."""

    def ask(name, model=None, **changes):
        wrapped = wrapped_for_training(
            new_fabric(torch.device("cpu")), network() if model is None else model
        )
        losses = lambda key: registry.find("objectives", key).load()  # noqa: E731
        context = TrainingContext(wrapped, COUNT, 5, _attack_named(registry), losses)
        entry = registry.find("recipes", name)
        quick = {key: value for key, value in QUICK.items() if key in entry.defaults}
        return context, entry.load()(context, **entry.settle({**quick, **changes}, "test"))

    return ask


def trained(folder, context, training, told=lambda event: None):
    """The numbers of the epochs."""
    progress = Progress(folder / "checkpoint.pt", "small", told)
    return fit(new_fabric(torch.device("cpu")), training, context, data(), data(), progress)


@pytest.mark.parametrize("name", ["standard", "pgd-adversarial", "trades"])
def test_the_loss_falls(tmp_path, given, name):
    history = trained(tmp_path, *given(name, epochs=10))

    assert history[-1]["loss"] < 0.8 * history[0]["loss"]


def test_trades_without_its_divergence_is_standard_training(given):
    _, standard = given("standard")
    _, trades = given("trades", beta=0.0)

    losses = [asked.phases[0].loss(batch()) for asked in (standard, trades)]

    assert torch.equal(*losses)


def test_trades_weighs_a_divergence_that_its_attack_has_climbed(given):
    asked = [given("trades", beta=6.0, steps=steps)[1] for steps in (0, 10)]

    clean, random, climbed = (
        float(training.phases[0].loss(batch()).detach())
        for training in (given("standard")[1], *asked)
    )

    assert 0 < random - clean < 0.5 * (climbed - clean)


def test_the_full_settings_are_those_of_advmoes_code(registry):
    defaults = registry.find("recipes", "trades-full").defaults

    # a step is 5/255 at epsilon 8/255
    assert defaults["relative_step_size"] == 5 / 8
    named = ("epochs", "batch_size", "optimizer", "learning_rate", "momentum", "weight_decay")
    assert [defaults[name] for name in named] == [100, 128, "sgd", 0.1, 0.9, 5e-4]
    assert (defaults["beta"], defaults["steps"], defaults["epsilon"]) == (6.0, 2, "8/255")


def zeros(model):
    """How many weights of the convolutions are zero."""
    return sum(int((value == 0).sum()) for value in model.state_dict().values() if value.ndim == 4)


class Stopped(Exception):  # noqa: N818 - it stands for no error
    """Stands for a kill between two epochs."""


def stop_after(epoch):
    def told(event):
        if event.epoch == epoch:
            raise Stopped

    return told


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("density", [0.5, 0.1])
def test_a_sparse_network_has_exactly_the_zeros_that_it_shall_have(
    tmp_path, given, density, optimizer
):
    context, asked = given("sparse-robust", density=density, optimizer=optimizer)

    history = trained(tmp_path, context, asked)

    # prune_at is 0.5: the second of three epochs is the first with zeros
    kept = round(density * WEIGHTS)
    assert zeros(context.model) == WEIGHTS - kept
    assert [told["density"] for told in history] == [1.0, kept / WEIGHTS, kept / WEIGHTS]


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_sparse_training_goes_on_to_the_same_bits_and_zeros(tmp_path, given, epoch):
    unbroken = given("sparse-robust", density=0.2)
    trained(tmp_path / "a", *unbroken)

    with pytest.raises(Stopped):
        trained(tmp_path / "b", *given("sparse-robust", density=0.2), stop_after(epoch))
    resumed = given("sparse-robust", density=0.2)
    trained(tmp_path / "b", *resumed)

    assert zeros(resumed[0].model) == WEIGHTS - round(0.2 * WEIGHTS)
    found, expected = (context.model.state_dict() for context, _ in (resumed, unbroken))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_what_is_kept_is_the_largest_of_all_layers_together():
    weights = [torch.tensor([[1.0, -5.0]]), torch.tensor([4.0, -2.0, 2.0])]

    masks = largest(weights, 0.6)

    # three of five: 5, 4 and the first of the two 2s
    assert [mask.tolist() for mask in masks] == [[[False, True]], [True, True, False]]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"density": 0.0}, "density must be above 0"),
        ({"density": 1.5}, "at most 1"),
        ({"prune_at": 1.0}, "from 0 to below 1"),
        ({"model": nn.Sequential(nn.Flatten(), nn.Linear(64, 4))}, "'pgd-adversarial'"),
    ],
    ids=["nothing kept", "more than all", "too late", "no convolutions"],
)
def test_what_cannot_be_pruned_is_refused(given, changes, told):
    with pytest.raises(TrainingError, match=told):
        given("sparse-robust", **changes)
