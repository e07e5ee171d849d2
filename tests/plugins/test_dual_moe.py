"""Mixtures of complete classifiers: laws of choosing, mixing and grouping."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from harness.api import ModelError
from harness.building import build_model
from harness.flops import count_flops
from harness.seeing import router_is_hard

WAYS = ["moe/digits", "moe/digits-top2", "moe/digits-soft"]
ways = pytest.mark.parametrize("name", WAYS)
GRADIENTS = [
    ("moe/digits", {}, True),
    ("moe/digits", {"router_gradient": "straight-through"}, False),
    ("moe/digits-top2", {}, False),
    ("moe/digits-top2", {"router_gradient": "none"}, True),
    ("moe/digits-soft", {}, False),
]


def build(registry, name, *, device="cpu", **parameters):
    with torch.device(device):
        return build_model(
            registry, name, num_classes=10, image_shape=(1, 8, 8), seed=1, **parameters
        ).eval()


def digits(count=37):
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def outputs_of_all(model, images):
    """(batch, expert, class), without grouping."""
    return torch.stack([expert(images) for expert in model.experts], dim=1)


@torch.no_grad()
def test_the_hard_choice_is_the_output_of_the_first_expert_alone(registry):
    model, images = build(registry, "moe/digits"), digits()

    logits, (routing,), _ = model.routed(images)

    chosen = routing.gate_logits[:, 0].argmax(dim=1)
    expected = outputs_of_all(model, images)[torch.arange(37), chosen]
    assert chosen.unique().tolist() == [0, 1, 2, 3]
    assert torch.allclose(logits, expected, atol=1e-6)


@torch.no_grad()
def test_the_soft_mixture_is_the_sum_of_all_by_their_gates(registry):
    model, images = build(registry, "moe/digits-soft"), digits()

    logits, (routing,), _ = model.routed(images)

    expected = torch.einsum("ne,nec->nc", routing.gates[:, 0], outputs_of_all(model, images))
    assert torch.allclose(routing.gates.sum(dim=2), torch.ones(37, 1))
    assert torch.allclose(logits, expected, atol=1e-6)


@torch.no_grad()
def test_two_chosen_experts_share_the_weight(registry):
    model, images = build(registry, "moe/digits-top2"), digits()

    logits, (routing,), _ = model.routed(images)

    gates, chosen = routing.gates[:, 0].topk(2, dim=1)
    outputs = outputs_of_all(model, images)
    first, second = (outputs[torch.arange(37), chosen[:, place]] for place in (0, 1))
    share = (gates[:, 0] / gates.sum(dim=1))[:, None]
    assert torch.allclose(logits, share * first + (1 - share) * second, atol=1e-6)


@torch.no_grad()
@ways
def test_grouping_gives_what_one_image_after_the_other_gives(registry, name):
    model, images = build(registry, name), digits()

    alone = torch.cat([model(image) for image in images.split(1)])

    assert torch.equal(alone, model(images))


@torch.no_grad()
@ways
def test_permuting_a_batch_permutes_the_result(registry, name):
    model, images = build(registry, name), digits()
    order = torch.randperm(37, generator=torch.Generator().manual_seed(2))

    assert torch.equal(model(images[order]), model(images)[order])


@torch.no_grad()
@ways
def test_its_own_routes_replayed_give_the_same_logits(registry, name):
    model, images = build(registry, name), digits()
    routed = model.routed(images)

    again = model.routed(images, routes=routed.routes)

    assert torch.equal(again.logits, routed.logits)


@torch.no_grad()
@ways
def test_a_choice_that_was_dropped_adds_nothing(registry, name):
    model, images = build(registry, name), digits()
    routes = model.routed(images).routes
    routes[0].kept.zero_()

    assert not model.routed(images, routes=routes).logits.any()


@torch.no_grad()
def test_relaxed_the_hard_choice_is_the_soft_mixture(registry):
    hard, soft = build(registry, "moe/digits"), build(registry, "moe/digits-soft")
    images = digits()

    relaxed = hard.routed(images, relaxed=True).logits

    assert torch.allclose(relaxed, soft(images), atol=1e-6)


@torch.no_grad()
def test_one_expert_is_the_expert_itself(registry):
    model, images = build(registry, "moe/digits", num_experts=1), digits(8)

    assert torch.equal(model(images), model.experts[0](images))


def test_the_experts_have_weights_of_their_own(registry):
    model = build(registry, "moe/digits")

    heads = torch.stack([expert.head.weight for expert in model.experts])

    assert len(heads.unique(dim=0)) == 4


@pytest.mark.parametrize(("name", "parameters", "is_hard"), GRADIENTS)
def test_a_gradient_comes_through_the_router_only_where_the_card_says_so(
    registry, name, parameters, is_hard
):
    model = build(registry, name, **parameters)

    assert router_is_hard(model, digits(8)) is is_hard


@pytest.mark.parametrize("name", ["moe/digits-top2", "moe/digits-soft"])
def test_detached_the_router_gets_no_gradient(registry, name):
    model = build(registry, name)

    model.routed(digits(8), detach_router=True).logits.square().sum().backward()

    assert all(parameter.grad is None for parameter in model.router.parameters())
    assert model.experts[0].head.weight.grad.any()


@pytest.mark.parametrize("is_trainable", [True, False])
def test_whether_the_router_is_trained_is_said_in_so_many_words(registry, is_trainable):
    model = build(registry, "moe/digits-soft", router_trainable=is_trainable)

    model(digits(8)).square().sum().backward()

    assert [parameter.grad is not None for parameter in model.router.parameters()] == [
        is_trainable,
        is_trainable,
    ]


def test_padding_enters_no_statistics_in_training(registry):
    model = build(registry, "moe/digits", num_experts=1)
    twin = build(registry, "moe/digits", num_experts=1).experts[0]
    model.train(), twin.train()

    model(digits(3)), twin(digits(3))

    assert torch.equal(model.experts[0].bn.running_mean, twin.bn.running_mean)
    assert torch.equal(model.experts[0].bn.running_var, twin.bn.running_var)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(("name", "selected"), [*zip(WAYS, (1, 2, 4), strict=True)])
def test_an_image_costs_the_router_and_the_chosen_experts(registry, name, selected, device):
    model, expert = build(registry, name, device=device), build(registry, "cnn/digits")

    operations = count_flops(model, (1, 8, 8), name)

    # the router: 64 pixels times 4 experts, multiply and add; an expert has 77,754 parameters
    assert operations == 512 + selected * count_flops(expert, (1, 8, 8), "cnn/digits")
    assert model.active_parameters() == 260 + selected * 77_754


def test_the_groups_hold_every_parameter_once(registry):
    model = build(registry, "moe/digits")

    groups = model.parameter_groups()

    found = [id(parameter) for group in groups.values() for parameter in group]
    assert sorted(found) == sorted(id(parameter) for parameter in model.parameters())
    assert [id(parameter) for parameter in groups["router"]] == [
        id(model.router.linear.weight),
        id(model.router.linear.bias),
    ]


@torch.no_grad()
def test_a_small_network_can_route(registry):
    model, images = build(registry, "moe/digits", router="convolutional"), digits(16)

    logits, (routing,), _ = model.routed(images)

    assert any(isinstance(module, nn.Conv2d) for module in model.router.modules())
    assert routing.gates.shape == (16, 1, 4)
    assert torch.equal(model(images.flip(0)), logits.flip(0))


@pytest.mark.parametrize(
    ("parameters", "remedy"),
    [
        ({"router": "liner"}, "did you mean 'linear'"),
        ({"router_gradient": "hard"}, "write one of none, straight-through, soft"),
        ({"expert_input": "raw"}, "write one of images, normalised"),
        ({"num_selected": 5}, "must lie between 1 and num_experts, 4"),
        ({"router_gradient": "soft"}, "or raise num_selected"),
    ],
    ids=["router", "gradient", "input", "selected", "soft"],
)
def test_what_has_no_meaning_is_refused(registry, parameters, remedy):
    with pytest.raises(ModelError, match=remedy):
        build(registry, "moe/digits", **parameters)
