"""Soft MoE: sums of its weights, the dense model as a special case, and its routes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from harness.building import build_model
from harness.errors import ModelError
from harness.flops import count_flops
from harness.tensors import RoutedClassifier
from harness.testing import check_model
from harness_vit.vit import Architecture, Mlp
from harness_vmoe.model import VMoE
from harness_vmoe.soft import SoftMlp, Softness

IMAGES = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def build(registry, **changes):
    return build_model(
        registry, "soft_moe/digits", num_classes=10, image_shape=(1, 8, 8), seed=1, **changes
    ).eval()


def tiny(registry, name):
    """A model of ViT-Ti's size for 32 pixels, without numbers."""
    with torch.device("meta"):
        return build_model(registry, name, num_classes=10, image_shape=(3, 32, 32), seed=1)


def layer(num_experts=3, slots=2):
    torch.manual_seed(0)
    return SoftMlp(8, 16, Softness(num_experts, slots)).double()


def tokens(count=5):
    return torch.randn(4, count, 8, generator=torch.Generator().manual_seed(2)).double()


def image_gradient(model, **steering):
    images = IMAGES.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(
        model.routed(images, **steering).logits.square().sum(), images
    )
    return gradient


def test_has_seven_more_mlps_a_router_and_a_scale_in_six_blocks(registry):
    dense, soft = (
        sum(parameter.numel() for parameter in tiny(registry, name).parameters())
        for name in ("vit/ti4", "soft_moe/ti-e8")
    )

    # an MLP has 2 * 192 * 768 + 768 + 192 parameters; 64 slots of length 192
    assert soft - dense == 6 * (7 * (2 * 192 * 768 + 960) + 192 * 64 + 1)


def test_costs_three_small_products_more_than_the_dense_model_and_a_token_less(registry):
    dense, soft = (
        count_flops(tiny(registry, name).eval(), (3, 32, 32), name)
        for name in ("vit/ti4", "soft_moe/ti-e8")
    )

    # 64 slots where there were 65 tokens; logits, slots and outputs are products of 65, 64 and 192
    one_token = 2 * (2 * 192 * 768)
    assert soft - dense == 6 * (3 * 2 * 65 * 64 * 192 - one_token)


@pytest.mark.parametrize("name", ["soft_moe/digits", "soft_moe/ti-e8"])
def test_keeps_the_contract_of_a_routed_model(registry, name):
    check_model(registry, name)


def test_gates_sum_to_one_over_the_slots_and_every_slot_works(registry):
    [routing] = build(registry).routed(IMAGES).routes

    # 16 patches and the class token; 4 experts with 4 slots
    assert routing.gates.shape == (6, 17, 16)
    assert torch.allclose(routing.gates.sum(dim=2), torch.ones(6, 17))
    assert routing.kept.all()
    assert (routing.experts.sort(dim=2).values == torch.arange(16)).all()


def test_experts_that_say_a_constant_give_each_token_that_constant():
    soft = layer()
    with torch.no_grad():
        soft.experts.out.weight.zero_()
        soft.experts.out.bias.copy_(torch.arange(8).expand(3, 8))

    outputs, _, _ = soft(tokens())

    assert torch.allclose(outputs, torch.arange(8).double().expand(4, 5, 8))


def test_one_expert_on_an_image_of_one_token_is_the_dense_mlp():
    soft, dense = layer(1, 3), Mlp(8, 16).double()
    with torch.no_grad():
        for name in ("hidden", "out"):
            getattr(dense, name).weight.copy_(getattr(soft.experts, name).weight[0].T)
            getattr(dense, name).bias.copy_(getattr(soft.experts, name).bias[0])

    outputs, _, _ = soft(tokens(1))

    assert torch.allclose(outputs, dense(tokens(1)))


def test_permuted_tokens_have_permuted_outputs():
    soft, order = layer(), torch.tensor([3, 0, 4, 1, 2])

    outputs, _, _ = soft(tokens())
    permuted, _, _ = soft(tokens()[:, order])

    assert torch.allclose(permuted, outputs[:, order])


def test_the_length_of_tokens_does_not_move_their_gates():
    soft = layer()

    _, routing, _ = soft(tokens())
    _, longer, _ = soft(7 * tokens())

    assert torch.allclose(longer.gates, routing.gates)


def test_slots_of_one_expert_are_neighbours():
    soft = layer(num_experts=2, slots=2)
    with torch.no_grad():
        soft.experts.out.weight.zero_()
        soft.experts.out.bias.copy_(torch.tensor([[1.0], [0.0]]).expand(2, 8))

    outputs, routing, _ = soft(tokens())

    # the first expert says 1, the other 0: what is left are the gates of the first one's slots
    assert torch.allclose(outputs[:, :, 0], routing.gates[:, :, :2].sum(dim=2))


def test_its_own_routes_give_the_same_logits(registry):
    model = build(registry)
    routed = model.routed(IMAGES)

    again = model.routed(IMAGES, routes=routed.routes)

    assert isinstance(model, RoutedClassifier)
    assert torch.equal(again.logits, routed.logits)
    assert not routed.auxiliary_loss.any()


def test_other_gates_are_used_as_they_are_passed(registry):
    model = build(registry)
    [routing] = model.routed(IMAGES).routes
    first = torch.zeros_like(routing.gates)
    first[:, :, 0] = 1

    logits = model.routed(IMAGES, routes=(replace(routing, gates=first),)).logits

    assert not torch.allclose(logits, model(IMAGES), atol=1e-4)


def test_detached_the_gradient_is_that_of_routes_that_stand_still(registry):
    model = build(registry)
    routes = model.routed(IMAGES, detach_router=True).routes

    detached = image_gradient(model, detach_router=True)

    attached = image_gradient(model)
    assert torch.allclose(detached, image_gradient(model, routes=routes))
    assert (detached - attached).abs().max() > 1e-3 * attached.abs().max()


def test_experts_start_apart_and_each_parameter_is_in_one_group(registry):
    model = build(registry)
    groups = model.parameter_groups()

    kernels = groups["experts"][0]
    assert not torch.equal(kernels[0], kernels[1])
    assert [tuple(parameter.shape) for parameter in groups["router"]] == [(48, 16), ()]
    grouped = [parameter for group in groups.values() for parameter in group]
    assert sorted(map(id, grouped)) == sorted(map(id, model.parameters()))


def test_takes_weights_of_another_size():
    one, other = (
        VMoE(
            Architecture(2, 16, 2, 2, 32),
            Softness(2, 2),
            moe_blocks=(1,),
            channels=1,
            num_classes=10,
            input_size=(size, size),
        )
        for size in (8, 16)
    )

    found = other.fitted(one.state_dict())

    assert found.state["embedding.positions"].shape == (1, 65, 16)


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"num_experts": 0}, "num_experts=0 and slots=4 make no layer; set 1 or more of each"),
        ({"slots": 0}, "num_experts=4 and slots=0 make no layer"),
        ({"moe_blocks": (3,)}, "moe_blocks must name some of the blocks 0 to 2"),
        ({"heads": 5}, "5 heads do not share a width of 48"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(registry, changes, remedy):
    with pytest.raises(ModelError, match=remedy):
        build(registry, **changes)
