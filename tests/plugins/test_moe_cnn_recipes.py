"""AdvMoE's recipes on a small network, and what they minimise."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from harness.building import build_model
from harness.errors import AttackError, TrainingError
from harness.routing import Routing
from harness.tensors import Noise, Outcome
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
from harness_moe_cnn.losses import expert_shares, joint_divergence, router_loss
from harness_moe_cnn.recipes import watched_loads

COUNT = 40
QUICK = {
    "epochs": 2, "batch_size": 8, "learning_rate": 0.003, "epsilon": "8/255", "crop": 0,
    "flip": False,
}  # fmt: skip
RECIPES = ["moe-trades", "advmoe-alternating", "advmoe-released"]


def data():
    labels = torch.arange(COUNT) % 4
    speckle = Noise(3, torch.arange(COUNT), (1, 8, 8)).uniform(0) * 60
    images = 64 * labels[:, None, None, None] + 30 + speckle.abs()
    return TrainingData(images.to(torch.uint8), labels)


def batch(count=16):
    images, labels = data().rows(torch.arange(count), torch.device("cpu"))
    return Batch(images, labels, Noise(1, torch.arange(count), (1, 8, 8)))


@pytest.fixture
def given(registry):
    """A context of a small MoE, and the training that a recipe asks of it."""

    def ask(name, model="moe-cnn/digits", **changes):
        if isinstance(model, str):
            shape = (1, 8, 8)
            model = build_model(registry, model, num_classes=4, image_shape=shape, seed=3)
        losses = lambda key: registry.find("objectives", key).load()  # noqa: E731
        wrapped = wrapped_for_training(new_fabric(torch.device("cpu")), model)
        context = TrainingContext(wrapped.train(), COUNT, 5, _attack_named(registry), losses)
        entry = registry.find("recipes", name)
        return context, entry.load()(context, **entry.settle({**QUICK, **changes}, "test"))

    return ask


def trained(folder, context, training, told=lambda event: None):
    """The numbers of the epochs."""
    progress = Progress(folder / "checkpoint.pt", "small", told)
    return fit(new_fabric(torch.device("cpu")), training, context, data(), data(), progress)


def gradients(context, loss):
    """The size of the gradient of each group of parameters."""
    context.model.zero_grad()
    loss.backward()
    groups = context.model.parameter_groups()
    return {
        name: sum(float(p.grad.norm()) for p in parameters if p.grad is not None)
        for name, parameters in groups.items()
    }


@pytest.mark.parametrize("name", RECIPES)
def test_the_accuracy_rises_and_loads_are_told(tmp_path, given, name):
    history = trained(tmp_path, *given(name, epochs=8))

    assert history[-1]["validation_accuracy"] > 0.6
    assert all(0.5 <= told["fullest_expert"] <= 1 for told in history)
    assert all(told["expert_0"] + told["expert_1"] == pytest.approx(1) for told in history)


@pytest.mark.parametrize("name", ["advmoe-alternating", "advmoe-released"])
def test_a_stopped_training_of_two_phases_goes_on_to_the_same_bits(tmp_path, given, name):
    class Stopped(Exception):  # noqa: N818 - it stands for no error
        pass

    def stop(event):
        raise Stopped

    unbroken = given(name)
    trained(tmp_path / "a", *unbroken)
    with pytest.raises(Stopped):
        trained(tmp_path / "b", *given(name), stop)
    resumed = given(name)
    trained(tmp_path / "b", *resumed)

    found, expected = (context.model.state_dict() for context, _ in (resumed, unbroken))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("model", ["moe-cnn/digits", "moe-cnn/digits-layer"])
def test_each_phase_of_the_alternating_recipe_moves_its_own_part_alone(given, model):
    context, training = given("advmoe-alternating", model)

    experts, router = (gradients(context, phase.loss(batch())) for phase in training.phases)

    assert experts["router"] == 0
    assert min(experts["experts"], experts["other"]) > 0
    assert router["router"] > 0
    assert (router["experts"], router["other"]) == (0, 0)


def test_the_optimisers_of_both_phases_share_no_parameter_and_leave_none_out(given):
    context, training = given("advmoe-alternating", router_learning_rate=0.5)

    [rest], [router] = (phase.optimizer.param_groups for phase in training.phases)

    every = [id(parameter) for parameter in context.model.parameters()]
    found = [id(parameter) for group in (rest, router) for parameter in group["params"]]
    assert sorted(found) == sorted(every)
    assert (rest["lr"], router["lr"]) == (0.003, 0.5)


@pytest.mark.parametrize(("reuses", "seen"), [(False, [8, 8]), (True, [16, 16])])
def test_the_phases_of_the_alternating_recipe_see_other_images_unless_told(given, reuses, seen):
    context, training = given("advmoe-alternating", reuses_batch=reuses)
    passed = []
    context.model.register_forward_pre_hook(lambda module, given: passed.append(given[0]))

    for phase in training.phases:
        phase.loss(batch())

    # clean and attacked images of each phase
    assert [len(images) for images in passed] == [seen[0]] * 2 + [seen[1]] * 2
    assert torch.equal(passed[0], passed[2]) == reuses


def test_the_router_of_the_released_recipe_sees_the_labels_counted_round(given):
    context, training = given("advmoe-released", alpha=1.0, beta=0.0)
    scores = context.model.routers[0](batch().images)

    loss = training.phases[1].loss(batch())

    # two experts: even labels belong to the first
    wanted = scores.log_softmax(1)[torch.arange(16), batch().labels % 2]
    assert float(loss.detach()) == pytest.approx(-float(wanted.mean().detach()), rel=1e-5)
    assert gradients(context, loss)["experts"] == 0


def test_attacks_of_the_two_phases_begin_elsewhere(given):
    context, training = given("advmoe-released", steps=0)
    seen = []
    context.model.routers[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))

    training.phases[1].loss(batch())
    second = seen[-1]
    training.phases[0].loss(batch())

    assert (seen[-1] - second).abs().max() > 8 / 255


@pytest.mark.parametrize("name", ["moe-trades", "advmoe-alternating", "advmoe-released"])
def test_a_dense_model_is_refused_with_what_to_take(given, name):
    dense = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))

    with pytest.raises(TrainingError, match="take a model such as 'moe-cnn/resnet18'"):
        given(name, dense)


def test_the_released_recipe_refuses_routers_that_read_features(given):
    with pytest.raises(TrainingError, match="or recipe 'advmoe-alternating'"):
        given("advmoe-released", "moe-cnn/digits-layer")


def test_without_the_routers_gradient_the_joint_recipe_meets_other_images(given):
    losses = [
        given("moe-trades", view=view)[1].phases[0].loss(batch()) for view in ("full", "detached")
    ]

    assert not torch.equal(*losses)


def test_a_collapsed_router_has_all_images_on_one_expert(given):
    context, _ = given("moe-trades")
    context.model.routers[0].head.bias.data.copy_(torch.tensor([-1e3, 1e3]))

    told = watched_loads(context)(batch())

    assert told == {"fullest_expert": 1.0, "expert_0": 0.0, "expert_1": 1.0}


def test_of_several_layers_the_fullest_is_told(given):
    context, _ = given("moe-trades", "moe-cnn/digits-layer")
    routes = context.looked_at(batch()).clean_routes

    told = watched_loads(context)(batch())

    counts = [torch.bincount(routing.experts[:, 0, 0]).max() for routing in routes]
    assert len(routes) > 1
    assert told == {"fullest_expert": float(max(counts)) / 16}


def test_the_share_of_an_expert_counts_first_choices():
    experts = torch.tensor([[[0, 1]], [[2, 1]], [[2, 0]], [[2, 1]]])

    assert expert_shares(experts, 4).tolist() == [0.25, 0, 0.75, 0]


def test_the_routers_loss_is_worked_out_by_hand():
    clean = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]])
    attacked, labels = torch.zeros(2, 2), torch.tensor([3, 4])

    # label 3 wants expert 1, with 3/4; label 4 wants expert 0, with 1/2
    wanted = (math.log(4 / 3) + math.log(2)) / 2
    apart = (0.25 * math.log(0.5) + 0.75 * math.log(1.5)) / 2
    found = router_loss(clean, attacked, labels, alpha=6.0, beta=2.0)
    assert found == pytest.approx(6 * wanted + 2 * apart)


def routing(scores):
    experts = scores.argmax(dim=2, keepdim=True)
    return Routing(scores, scores.softmax(2), experts, torch.ones_like(experts).bool())


def test_the_joint_divergence_adds_that_of_every_layer_and_averages_over_tokens():
    flat, steep = torch.zeros(1, 2), torch.tensor([[0.0, math.log(3)]])
    apart = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    one, two = routing(steep[None]), routing(torch.stack([steep, flat], dim=1))
    still, moved = routing(flat[None]), routing(torch.stack([flat, flat], dim=1))

    found = joint_divergence(
        Outcome(
            flat, torch.tensor([0]), clean_logits=steep, routes=(still, moved),
            clean_routes=(one, two),
        )
    )  # fmt: skip

    # logits and the first layer move once, the second in one of its two tokens
    assert found.tolist() == pytest.approx([2.5 * apart])


def test_the_joint_divergence_refuses_a_dense_model():
    flat = torch.zeros(1, 2)

    with pytest.raises(AttackError, match="take 'trades-kl'"):
        joint_divergence(Outcome(flat, torch.tensor([0]), clean_logits=flat))


@pytest.mark.parametrize("gap", [104.0, 320.0])
def test_a_training_step_of_the_router_is_finite_at_any_gap_of_its_scores(given, gap):
    context, training = given("advmoe-released")
    head = context.model.routers[0].head
    head.weight.data.zero_()
    head.bias.data.copy_(torch.tensor([gap, 0.0]))

    training.phases[1].loss(batch()).backward()

    every = context.model.parameter_groups()["router"]
    assert all(parameter.grad.isfinite().all() for parameter in every)


def test_the_full_settings_are_those_of_the_released_code(registry):
    defaults = registry.find("recipes", "advmoe-released-full").defaults

    named = ("epochs", "batch_size", "optimizer", "learning_rate", "router_learning_rate",
             "momentum", "weight_decay", "alpha", "beta", "steps")  # fmt: skip
    assert [defaults[name] for name in named] == [
        100, 128, "sgd", 0.1, 0.1, 0.9, 5e-4, 6.0, 6.0, 2,
    ]  # fmt: skip
