"""Recipes of mixtures: the loss of RT-ER, what it moves, and what is told of it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from harness.api import Routing, TrainingError
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
from harness_dual_moe.mixture import Mixing, Mixture
from harness_dual_moe.recipes import fullest, unwrapped
from harness_dual_moe.robustify import (
    Alone,
    Attacked,
    OneExpert,
    divergence,
    robust_loss,
    routing_to,
    second_ranked,
)
from harness_dual_moe.settings import triangular

COUNT = 16
SMALL = {"expert_parameters": {"widths": (4, 4, 4)}}
QUICK = {"epochs": 2, "batch_size": 8, "steps": 1, "relative_step_size": 1.0, "watch_steps": 1}
RECIPES = ["moe-standard", "moe-adversarial", "rt-er", "rt-er-released"]
recipes = pytest.mark.parametrize("name", RECIPES[:3])


class Stopped(Exception):  # noqa: N818 - it stands for no error
    """Stands for a kill between two epochs."""


class Scaled(nn.Module):
    """Two classes: the one pixel times a factor, and nothing."""

    def __init__(self, factor):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, images):
        pixel = images.flatten(1)
        return torch.cat([self.factor * pixel, 0 * pixel], dim=1)


class Ranking(nn.Module):
    """Gate logits of three experts, the same for every image: 2, 1, 0."""

    def forward(self, images):
        return torch.tensor([[2.0, 1.0, 0.0]]).expand(len(images), -1)


def alone(mixture, images, experts):
    """The logits of one expert for each image."""
    return mixture.routed(images, routes=(routing_to(mixture, experts),)).logits


def three_experts():
    experts = [Scaled(factor) for factor in (2.0, 4.0, 8.0)]
    mixing = Mixing(1, "none", "images")
    return Mixture(experts, Ranking(), mean=(0.0,), std=(1.0,), mixing=mixing)


def data():
    labels = torch.arange(COUNT) % 10
    pixels = Noise(3, torch.arange(COUNT), (1, 8, 8)).uniform(0).abs() * 255
    return TrainingData(pixels.to(torch.uint8), labels)


def context_of(registry, name="moe/digits", **parameters):
    model = build_model(
        registry, name, num_classes=10, image_shape=(1, 8, 8), seed=1, **SMALL, **parameters
    )
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


def batch():
    images, labels = data().rows(torch.arange(COUNT), torch.device("cpu"))
    return Batch(images, labels, Noise(1, torch.arange(COUNT), (1, 8, 8)))


def trained(registry, folder, name, *, told=lambda event: None, model="moe/digits", **parameters):
    """The state and the numbers of a small training."""
    context = context_of(registry, model, **parameters)
    training = training_of(registry, name, context)
    progress = Progress(folder / "checkpoint.pt", "small", told)
    history = fit(new_fabric(torch.device("cpu")), training, context, data(), data(), progress)
    return unwrapped(context.model).state_dict(), history


def stop_after_one(event):
    if event.epoch == 1:
        raise Stopped


def test_the_loss_is_the_one_worked_out_by_hand():
    mixture, dark = three_experts(), torch.zeros(1, 1, 1, 1)
    attacked = Attacked(dark, (Alone(torch.tensor([1]), dark),))

    loss = robust_loss(mixture, dark + 0.25, torch.tensor([0]), attacked, beta=6)

    # attacked logits (0, 0): cross-entropy ln 2 = 0.693147. Second expert: clean logits
    # (1, 0), so p = 0.731059 and 0.268941; attacked (0, 0), so 1/2 each:
    # 0.731059 ln 1.462117 + 0.268941 ln 0.537883 = 0.277724 - 0.166780 = 0.110944;
    # 0.693147 + 6 * 0.110944 = 1.358812
    assert float(loss.detach()) == pytest.approx(1.358812, abs=2e-6)


def test_every_robustified_expert_adds_its_divergence():
    mixture, dark = three_experts(), torch.zeros(2, 1, 1, 1)
    labels = torch.tensor([0, 1])
    terms = tuple(Alone(torch.full((2,), number), dark) for number in (0, 1, 2))

    together = robust_loss(mixture, dark + 0.25, labels, Attacked(dark, terms), beta=1)

    parts = [
        robust_loss(mixture, dark + 0.25, labels, Attacked(dark, (term,)), beta=1) for term in terms
    ]
    plain = functional.cross_entropy(mixture(dark), labels)
    assert torch.allclose(together - plain, sum(part - plain for part in parts))


def test_both_sides_of_the_divergence_have_a_gradient():
    clean, moved = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    sides = [clean.requires_grad_(), moved.requires_grad_()]

    gradients = torch.autograd.grad(divergence(*sides).sum(), sides)

    # the moved side's is softmax(moved) less softmax(clean): 0.5 less 0.731059; the clean side's
    # is p times ln p/q less the divergence: 0.731059 times what 0.379885 is above 0.110944
    assert gradients[1][0].tolist() == pytest.approx([-0.231059, 0.231059], abs=1e-5)
    assert gradients[0][0].tolist() == pytest.approx([0.196612, -0.196612], abs=1e-5)


def test_an_expert_alone_has_the_weight_one_whatever_the_gates():
    mixture, images = three_experts(), torch.full((3, 1, 1, 1), 0.5)

    logits = alone(mixture, images, torch.tensor([2, 0, 1]))

    assert logits[:, 0].tolist() == [4.0, 1.0, 2.0]  # 8, 2 and 4 times 0.5
    assert torch.equal(OneExpert(mixture, 2)(images)[:, 0], torch.full((3,), 4.0))


def test_an_expert_alone_is_the_same_in_a_soft_mixture(registry):
    context = context_of(registry, "moe/digits-soft")
    model, images = unwrapped(context.model).eval(), batch().images

    found = OneExpert(model, 3)(images)

    assert torch.allclose(found, model.experts[3](images), atol=1e-6)


def test_the_second_expert_has_the_second_largest_gate():
    gates = torch.tensor([[[0.1, 0.6, 0.3]], [[0.5, 0.1, 0.4]], [[0.4, 0.4, 0.2]]])
    first = gates.argmax(dim=2, keepdim=True)

    second = second_ranked(Routing(gates.log(), gates, first, first > -1))

    assert second.tolist() == [2, 2, 1]  # of two that are equal, the later is second


def test_the_second_expert_is_attacked_alone(registry):
    context = context_of(registry)
    training = training_of(registry, "rt-er", context, steps=8, relative_step_size=0.25)
    (phase,), model = training.phases, unwrapped(context.model)

    attacked = phase.loss.attacked(batch())

    ((experts, moved),) = attacked.alone
    second = second_ranked(context.looked_at(batch()).clean_routes[0])
    model.eval()
    losses = [
        functional.cross_entropy(alone(model, images, experts), batch().labels)
        for images in (moved, attacked.whole, batch().images)
    ]
    assert torch.equal(experts, second)
    assert losses[0] > losses[1]
    assert losses[0] > losses[2]


def test_attacking_moves_neither_weights_nor_statistics(registry):
    context = context_of(registry)
    (phase,) = training_of(registry, "rt-er", context).phases
    before = {name: value.clone() for name, value in context.model.state_dict().items()}

    attacked = phase.loss.attacked(batch())

    state = context.model.state_dict()
    assert context.model.training
    assert all(torch.equal(before[name], state[name]) for name in before)
    assert ((attacked.whole - batch().images).abs() <= 8 / 255 + 1e-6).all()


def test_batch_norm_takes_one_set_of_statistics_for_each_loss(registry):
    context = context_of(registry)
    (phase,) = training_of(registry, "rt-er", context).phases

    phase.loss(batch())

    state = context.model.state_dict()
    counters = [state[name].item() for name in state if name.endswith("num_batches_tracked")]
    assert set(counters) == {1}
    assert all(module.training for module in context.model.modules())


def test_without_beta_the_loss_is_that_of_adversarial_training():
    mixture, images = three_experts(), torch.full((2, 1, 1, 1), 0.25)
    labels = torch.tensor([0, 1])
    attacked = Attacked(images + 0.125, (Alone(torch.ones(2).long(), images),))

    loss = robust_loss(mixture, images, labels, attacked, beta=0)

    assert torch.equal(loss, functional.cross_entropy(mixture(images + 0.125), labels))


@pytest.mark.parametrize(
    ("beta", "reached"), [(0.0, [True, False, False]), (6.0, [True, True, False])]
)
def test_the_second_expert_learns_by_the_divergence_alone(beta, reached):
    mixture, images = three_experts(), torch.full((2, 1, 1, 1), 0.25)
    terms = (Alone(torch.ones(2).long(), images - 0.125),)
    labels = torch.tensor([0, 1])

    robust_loss(mixture, images, labels, Attacked(images + 0.125, terms), beta=beta).backward()

    found = [expert.factor.grad for expert in mixture.experts]
    assert [bool(gradient is not None and gradient) for gradient in found] == reached


@pytest.fixture(scope="module")
def unbroken(registry, tmp_path_factory):
    """Small trainings, one for each recipe: state and numbers."""
    return {name: trained(registry, tmp_path_factory.mktemp(name), name) for name in RECIPES[:3]}


@recipes
def test_all_experts_move_and_a_router_that_is_fixed_does_not(registry, unbroken, name):
    before, (after, _) = unwrapped(context_of(registry).model).state_dict(), unbroken[name]

    moved = {key.rpartition(".")[0] for key in before if not torch.equal(before[key], after[key])}
    assert {f"experts.{number}.stem" for number in range(4)} <= moved
    assert not any(module.startswith("router") for module in moved)


@recipes
def test_a_router_that_may_learn_gets_a_gradient_where_the_mixture_is_soft(registry, name):
    context = context_of(registry, "moe/digits-soft")
    (phase,) = training_of(registry, name, context).phases

    phase.loss(batch()).backward()

    assert unwrapped(context.model).router.linear.weight.grad.any()


@recipes
def test_a_stopped_training_goes_on_to_the_same_bits(registry, tmp_path, unbroken, name):
    with pytest.raises(Stopped):
        trained(registry, tmp_path, name, told=stop_after_one)
    resumed, numbers = trained(registry, tmp_path, name)

    state, history = unbroken[name]
    assert all(torch.equal(state[key], resumed[key]) for key in state)
    assert numbers == history


@recipes
def test_every_epoch_tells_robust_accuracy_and_the_fullest_expert(unbroken, name):
    _, history = unbroken[name]

    right = [(told["robust_accuracy"], told["validation_accuracy"]) for told in history]
    assert [0 <= robust <= clean for robust, clean in right] == [True, True]
    assert all(0.25 <= told["fullest_expert"] <= 1 for told in history)


def test_the_released_settings_are_a_training_too(registry):
    training = training_of(registry, "rt-er-released", context_of(registry), batch_size=512)

    (phase,) = training.phases
    # 16 images are one batch; two epochs are two steps of a cycle of 1000
    assert training.batch_size == COUNT
    assert [training.schedule(0), training.schedule(0.5)] == pytest.approx([0.5, 0.501])
    assert phase.optimizer.param_groups[0]["weight_decay"] == 0


def test_nothing_is_attacked_where_nothing_is_watched(registry):
    context = context_of(registry)
    training = training_of(registry, "rt-er", context, watch_steps=0)

    assert set(training.watch(batch())) == {"fullest_expert"}


def test_the_fullest_expert_is_told_as_a_share():
    assert fullest(torch.tensor([0, 3, 3, 1, 3])) == pytest.approx(0.6)


def test_the_triangle_goes_from_half_to_all_and_back():
    schedule = triangular(4, 8)

    # eight steps, four to a cycle: 1/2, 3/4, 1, 3/4 and again
    assert [schedule(step / 8) for step in range(8)] == [0.5, 0.75, 1, 0.75, 0.5, 0.75, 1, 0.75]


@recipes
def test_a_model_that_is_no_mixture_is_refused(registry, name):
    context = context_of(registry)
    dense = wrapped_for_training(new_fabric(torch.device("cpu")), nn.Linear(2, 2))
    other = TrainingContext(dense, 8, 0, context.attack_named, context.loss_named)

    with pytest.raises(TrainingError, match="take a model such as 'moe/digits'"):
        training_of(registry, name, other)


def test_a_mixture_of_one_is_refused(registry):
    context = context_of(registry, num_experts=1)

    with pytest.raises(TrainingError, match="take recipe 'pgd-adversarial'"):
        training_of(registry, "rt-er", context)


def test_a_word_for_the_robustified_that_is_not_known_is_refused(registry):
    with pytest.raises(TrainingError, match=r"did you mean 'second'.*second, all"):
        training_of(registry, "rt-er", context_of(registry), robustified="secnd")
