"""Recipes of dual models: which half each phase moves, and by which loss."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from harness.api import TrainingError
from harness.building import build_model
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
from harness_dual_moe.recipes import unwrapped

COUNT = 16
SMALL = {"expert_parameters": {"widths": (4, 4, 4)}, "num_experts": 2}
QUICK = {"epochs": 2, "batch_size": 8, "steps": 1, "relative_step_size": 1.0, "watch_steps": 1}
recipes = pytest.mark.parametrize("name", ["jtdmoe", "dual-separate"])


class Stopped(Exception):  # noqa: N818 - it stands for no error
    """Stands for a kill between two epochs."""


def stop_after_one(event):
    if event.epoch == 1:
        raise Stopped


def data():
    labels = torch.arange(COUNT) % 10
    pixels = Noise(3, torch.arange(COUNT), (1, 8, 8)).uniform(0).abs() * 255
    return TrainingData(pixels.to(torch.uint8), labels)


def batch():
    images, labels = data().rows(torch.arange(COUNT), torch.device("cpu"))
    return Batch(images, labels, Noise(1, torch.arange(COUNT), (1, 8, 8)))


def context_of(registry, name="dual/digits", **parameters):
    halves = {"standard_parameters": SMALL, "robust_parameters": SMALL}
    settled = {**halves, **parameters} if name == "dual/digits" else parameters
    model = build_model(registry, name, num_classes=10, image_shape=(1, 8, 8), seed=1, **settled)
    return TrainingContext(
        wrapped_for_training(new_fabric(torch.device("cpu")), model).train(),
        COUNT,
        5,
        _attack_named(registry),
        lambda loss: registry.find("objectives", loss).load(),
    )


def training_of(registry, name, context, **parameters):
    entry = registry.find("recipes", name)
    return entry.load()(context, **entry.settle({**QUICK, **parameters}, "here"))


def trained(registry, folder, name, *, told=lambda event: None):
    context = context_of(registry)
    training = training_of(registry, name, context)
    progress = Progress(folder / "checkpoint.pt", "small", told)
    history = fit(new_fabric(torch.device("cpu")), training, context, data(), data(), progress)
    return unwrapped(context.model).state_dict(), history


def halves_with_a_gradient(model):
    return {
        name.partition(".")[0]
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and parameter.grad.any()
    }


@recipes
@pytest.mark.parametrize(("place", "half"), [(0, "robust"), (1, "standard")])
def test_each_phase_moves_its_half_alone(registry, name, place, half):
    context = context_of(registry)
    phase, model = training_of(registry, name, context).phases[place], unwrapped(context.model)
    before = {key: value.clone() for key, value in model.state_dict().items()}

    phase.loss(batch()).backward()
    phase.optimizer.step()

    moved = {
        key for key, value in model.state_dict().items() if not torch.equal(before[key], value)
    }
    assert halves_with_a_gradient(model) == {half}
    assert {key.partition(".")[0] for key in moved} == {half}
    assert any(key.endswith("running_mean") for key in moved)
    assert not any("router" in key for key in moved)


@recipes
def test_the_optimisers_share_no_parameter_and_leave_none_that_learns(registry, name):
    context = context_of(registry)
    phases = training_of(registry, name, context).phases

    sets = [
        {id(parameter) for group in phase.optimizer.param_groups for parameter in group["params"]}
        for phase in phases
    ]

    learning = {id(p) for p in context.model.parameters() if p.requires_grad}
    assert not sets[0] & sets[1]
    assert sets[0] | sets[1] == learning


@pytest.mark.parametrize("combine", ["logits", "probabilities"])
def test_the_standard_half_of_joint_training_learns_by_the_dual_model(registry, combine):
    context = context_of(registry, alpha=0.6, combine=combine)
    model = unwrapped(context.model)
    labels = batch().labels

    loss = training_of(registry, "jtdmoe", context).phases[1].loss(batch())

    model.robust.eval()
    standard, robust = model.standard(batch().images), model.robust(batch().images)
    expected = {
        "logits": functional.cross_entropy(0.4 * standard + 0.6 * robust, labels),
        "probabilities": functional.nll_loss(
            (0.4 * standard.softmax(dim=1) + 0.6 * robust.softmax(dim=1)).log(), labels
        ),
    }
    assert torch.allclose(loss, expected[combine], atol=1e-6)


def test_the_standard_half_trained_apart_learns_by_itself(registry):
    context = context_of(registry)

    loss = training_of(registry, "dual-separate", context).phases[1].loss(batch())

    own = unwrapped(context.model).standard(batch().images)
    assert torch.equal(loss, functional.cross_entropy(own, batch().labels))


def test_alpha_plays_no_part_where_the_halves_are_trained_apart(registry):
    losses = [
        [phase.loss(batch()) for phase in training_of(registry, "dual-separate", context).phases]
        for context in (context_of(registry, alpha=alpha) for alpha in (0.1, 0.9))
    ]

    assert torch.equal(torch.stack(losses[0]), torch.stack(losses[1]))


def test_joint_training_robustifies_every_expert_on_every_image(registry):
    phase = training_of(registry, "jtdmoe", context_of(registry)).phases[0]

    attacked = phase.loss.attacked(batch())

    assert [term.experts.unique().tolist() for term in attacked.alone] == [[0], [1]]
    assert [len(term.images) for term in attacked.alone] == [COUNT, COUNT]


@pytest.fixture(scope="module")
def unbroken(registry, tmp_path_factory):
    """Small trainings, one for each recipe: state and numbers."""
    names = ("jtdmoe", "dual-separate")
    return {name: trained(registry, tmp_path_factory.mktemp(name), name) for name in names}


@recipes
def test_a_stopped_training_goes_on_to_the_same_bits(registry, tmp_path, unbroken, name):
    with pytest.raises(Stopped):
        trained(registry, tmp_path, name, told=stop_after_one)
    resumed, numbers = trained(registry, tmp_path, name)

    state, history = unbroken[name]
    assert all(torch.equal(state[key], resumed[key]) for key in state)
    assert numbers == history


@recipes
def test_every_epoch_tells_of_the_whole_and_of_both_halves(unbroken, name):
    _, history = unbroken[name]

    assert set(history[-1]) == {
        "loss",
        "validation_accuracy",
        "robust_accuracy",
        "standard_half_accuracy",
        "standard_half_fullest_expert",
        "robust_half_accuracy",
        "robust_half_fullest_expert",
    }


@recipes
def test_a_model_that_is_not_dual_is_refused(registry, name):
    with pytest.raises(TrainingError, match="take a model such as 'dual/digits'"):
        training_of(registry, name, context_of(registry, "moe/digits"))


@recipes
def test_a_robust_half_that_is_no_mixture_is_refused(registry, name):
    context = context_of(registry, robust="cnn/digits", robust_parameters={})

    with pytest.raises(TrainingError, match="take a model such as 'moe/digits'"):
        training_of(registry, name, context)
