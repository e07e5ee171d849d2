"""V-MoE's recipes: shared places, schedules, losses, attacks, and experts without work."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from harness.building import build_model
from harness.errors import ModelError
from harness.tensors import Noise
from harness.training import (
    Batch,
    Progress,
    TrainingContext,
    TrainingData,
    cosine,
    fit,
    new_fabric,
    wrapped_for_training,
)
from harness.weights import _attack_named
from harness_vmoe.recipes import expert_loads, falling_to

COUNT = 64
RECIPES = ["vmoe-pretrain", "vmoe-finetune", "vmoe-adversarial-finetune"]
every_recipe = pytest.mark.parametrize("recipe", RECIPES)


def data():
    """Four classes, each a level of grey under noise."""
    labels = torch.arange(COUNT) % 4
    speckle = Noise(3, torch.arange(COUNT), (1, 8, 8)).uniform(0) * 60
    images = 50 * labels[:, None, None, None] + 30 + speckle.abs()
    return TrainingData(images.to(torch.uint8), labels)


def batch(count=16):
    ids = torch.arange(count)
    return Batch(*data().rows(ids, torch.device("cpu")), Noise(1, ids, (1, 8, 8)))


def context_of(registry, name="vmoe/digits", **changes):
    model = build_model(registry, name, num_classes=10, image_shape=(1, 8, 8), seed=1, **changes)
    wrapped = wrapped_for_training(new_fabric(torch.device("cpu")), model.train())
    losses = lambda name: registry.find("objectives", name).load()  # noqa: E731
    return TrainingContext(wrapped, COUNT, 5, _attack_named(registry), losses)


def training_of(registry, recipe, context, **changes):
    entry = registry.find("recipes", recipe)
    return entry.load()(context, **entry.settle(changes, "the test"))


def loss_of(training, seed=2):
    """The loss of the first phase, with one draw of the router's noise."""
    torch.manual_seed(seed)
    return training.phases[0].loss(batch())


@every_recipe
@pytest.mark.parametrize("name", ["vmoe/digits", "vit/digits"])
def test_every_recipe_lowers_its_loss_on_a_sparse_and_a_dense_model(
    registry, tmp_path, recipe, name
):
    context = context_of(registry, name)
    training = training_of(registry, recipe, context, epochs=6)
    progress = Progress(tmp_path / "checkpoint.pt", name, lambda _: None)

    history = fit(
        new_fabric(torch.device("cpu")), training, context, data(), data(), progress
    )  # fmt: skip

    assert history[-1]["loss"] < 0.8 * history[0]["loss"]
    assert ("emptiest_expert" in history[-1]) == (name == "vmoe/digits")


@every_recipe
def test_places_are_shared_by_groups_in_training_alone(registry, recipe):
    context = context_of(registry)
    training_of(registry, recipe, context)
    images = batch().images

    trained = context.model.routed(images)
    evaluated = context.model.eval().routed(images)

    # untrained gates are nearly even, so that in groups of 8 images some expert is over-full
    assert trained.auxiliary_loss.shape == (2,)
    assert evaluated.auxiliary_loss.shape == (16,)
    assert not trained.routes[0].kept.all()
    assert evaluated.routes[0].kept.all()


def test_a_group_without_images_is_refused(registry):
    with pytest.raises(ModelError, match="group_size=0 images are no group; set 1 or more"):
        training_of(registry, "vmoe-pretrain", context_of(registry), group_size=0)


@pytest.mark.parametrize("factor", [0.0, 2.0])
def test_the_loss_is_the_mean_of_images_plus_the_mean_of_groups(registry, factor):
    context = context_of(registry)
    training = training_of(registry, "vmoe-finetune", context, auxiliary=factor)

    found = loss_of(training)

    torch.manual_seed(2)
    routed = context.model.routed(batch().images)
    own = functional.cross_entropy(routed.logits, batch().labels)
    assert torch.allclose(found, own + factor * routed.auxiliary_loss.mean())
    assert routed.auxiliary_loss.mean() > 0


def test_a_dense_model_has_no_auxiliary_loss(registry):
    context = context_of(registry, "vit/digits")

    found = loss_of(training_of(registry, "vmoe-pretrain", context, auxiliary=100.0))

    wanted = functional.one_hot(batch().labels, 10).float()
    logits = context.model(batch().images)
    own = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    assert torch.allclose(found, own.sum(dim=1).mean())


def test_adversarial_images_are_found_without_the_routers_noise(registry):
    context = context_of(registry)
    plain = training_of(registry, "vmoe-finetune", context)
    adversarial = training_of(registry, "vmoe-adversarial-finetune", context, epsilon="32/255")

    # the same noise in the training pass alone: one draw fewer or more would give another number
    assert loss_of(adversarial) > loss_of(plain)
    assert torch.equal(loss_of(adversarial), loss_of(adversarial))
    assert context.model.training


def test_the_attack_of_the_paper_reaches_the_ball_in_ten_steps_from_the_image(registry):
    parameters = registry.find("recipes", "vmoe-adversarial-finetune-paper").defaults

    assert parameters["steps"] * parameters["relative_step_size"] == pytest.approx(1)
    assert (parameters["steps"], parameters["init"]) == (10, "clean")


@pytest.mark.parametrize(
    ("done", "fall", "expected"),
    [
        (0.0, cosine, 1.0),
        (0.5, cosine, 0.55),
        (1.0, cosine, 0.1),
        (0.25, lambda done: 1 - done, 0.775),
        (1.0, lambda done: 1 - done, 0.1),
    ],
)
def test_a_fall_ends_at_the_last_rate(done, fall, expected):
    assert falling_to(0.1, fall)(done) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("recipe", "rates"),
    [
        # 4 epochs a quarter each; a fifth warms up, then 0.03 falls to 1e-5 by a cosine
        ("vmoe-finetune", {0.1: 0.015, 0.2: 0.03, 0.6: 0.015005, 1.0: 1e-5}),
        ("vmoe-pretrain", {0.1: 0.0015, 0.2: 0.003, 0.6: 0.001505, 1.0: 1e-5}),
    ],
)
def test_rates_rise_and_fall_as_published(registry, recipe, rates):
    training = training_of(registry, recipe, context_of(registry), warm_up=0.2)
    [group] = training.phases[0].optimizer.param_groups

    found = {done: group["lr"] * training.schedule(done) for done in rates}

    assert found == pytest.approx(rates)


@pytest.mark.parametrize(
    ("recipe", "optimizer", "facts", "clip"),
    [
        ("vmoe-pretrain-paper", "AdamW", {"lr": 8e-4, "weight_decay": 0.1}, None),
        ("vmoe-finetune-paper", "SGD", {"lr": 0.03, "momentum": 0.9, "weight_decay": 0}, 10.0),
        ("vmoe-adversarial-finetune-paper", "SGD", {"lr": 0.03, "momentum": 0.9}, 10.0),
    ],
)
def test_the_papers_trainings_have_their_optimisers(registry, recipe, optimizer, facts, clip):
    [phase] = training_of(registry, recipe, context_of(registry)).phases

    [group] = phase.optimizer.param_groups
    assert type(phase.optimizer).__name__ == optimizer
    assert {key: group[key] for key in facts} == facts
    assert phase.clip == clip


@pytest.mark.parametrize("recipe", ["vmoe-finetune-paper", "vmoe-adversarial-finetune-paper"])
def test_the_papers_fine_tuning_takes_ten_thousand_steps_of_imagenet(registry, recipe):
    parameters = registry.find("recipes", recipe).defaults

    steps = parameters["epochs"] * (1_281_167 // parameters["batch_size"])
    assert steps == pytest.approx(10_000, rel=0.01)
    assert steps * parameters["warm_up"] == pytest.approx(500, rel=0.01)


def test_experts_without_work_are_told(registry):
    context = context_of(registry)
    [router] = [layer for name, layer in context.model.named_modules() if name.endswith("dense")]
    with torch.no_grad():
        router.weight.zero_()

    found = expert_loads(context)(batch())

    # of equal gates the first two of four experts are chosen, by every token
    assert found == {"emptiest_expert": 0.0, "fullest_expert": 0.5}


def test_of_experts_that_all_work_the_gates_are_told(registry):
    context = context_of(registry, num_selected=4)
    [routing] = context.model.eval().routed(batch().images).routes

    found = expert_loads(context)(batch())

    shares = routing.gates.detach().mean(dim=(0, 1))
    assert found["emptiest_expert"] == pytest.approx(float(shares.min()))
    assert 0 < found["emptiest_expert"] < 0.25 < found["fullest_expert"] < 1


def test_a_dense_model_has_no_experts_to_watch(registry):
    assert expert_loads(context_of(registry, "vit/digits")) is None
