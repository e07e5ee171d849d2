"""MoE convolutional networks: their published sizes, and laws of their routing."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional
from torchvision.models import resnet18

from harness.api import ModelError
from harness.building import build_model
from harness.flops import count_flops
from harness.numerics import ROW_GROUP, Batches, frozen
from harness.passes import objective_of
from harness.seeing import predict, router_is_hard
from harness_moe_cnn.convolution import MoEConv, assigned
from harness_moe_cnn.router import hard_routing

# parameters, those of one image, and multiply-adds of one image at 32 and at 64 pixels, for 10
# classes; AdvMoE's networks have 5.565 + 0.269 M, 18.240 + 0.269 M and 7.690 + 0.269 M parameters
# and 0.1923, 1.3515 and 0.1196 G multiply-adds with the router's 0.0406; its DenseNet has none
COSTS = {
    "moe-cnn/resnet18": (5_834_652, 3_079_068, 192_268_928, 769_067_648),
    "moe-cnn/wrn28-10": (18_508_804, 9_395_204, 1_351_494_912, 5_405_969_664),
    "moe-cnn/vgg16": (7_959_420, 4_282_236, 119_622_272, 477_497_984),
    "moe-cnn/densenet40": (354_316, 315_004, 58_808_084, 235_229_972),
    "moe-cnn/resnet14w24": (217_108, 119_908, 20_202_016, 80_806_432),
}
ROUTER = 269_202
"""Parameters of the published router, for two experts."""

SMALL = ["moe-cnn/digits", "moe-cnn/digits-layer"]
RESNETS = ["moe-cnn/resnet14w24", "moe-cnn/resnet14w24-layer", *SMALL]
EVERY = ["moe-cnn/densenet40-layer", *RESNETS]


def build(registry, name, size=32, device="cpu", **parameters):
    with torch.device(device):
        channels = 1 if size == 8 else 3
        shape = (channels, size, size)
        return build_model(
            registry, name, num_classes=10, image_shape=shape, seed=1, **parameters
        ).eval()


def spread(registry, name, **parameters):
    """A network whose routers send some images to each expert, and images that it takes."""
    size = 8 if "digits" in name else 32
    model = build(registry, name, size, **parameters)
    random = torch.Generator().manual_seed(3)
    images = torch.rand(24, 1 if size == 8 else 3, size, size, generator=random)
    for router in model.routers:
        router.head.weight.data.mul_(20)
    with torch.no_grad():
        for layer, router in enumerate(model.routers):
            scores = model.routed(images).routes[layer].gate_logits[:, 0]
            router.head.bias.sub_(scores.median(dim=0).values)
    return model, images


@pytest.mark.parametrize("name", COSTS)
def test_has_the_parameters_and_the_cost_of_the_published_network(registry, name):
    model = build(registry, name, device="meta")

    parameters = sum(parameter.numel() for parameter in model.parameters())
    operations = [count_flops(model, (3, size, size), name) for size in (32, 64)]

    # a multiply-add is two operations
    found = (parameters, model.active_parameters(), *[count // 2 for count in operations])
    assert found == COSTS[name]


def test_the_published_router_has_its_parameters_and_its_cost(registry):
    router = build(registry, "moe-cnn/resnet18", device="meta").routers[0]

    parameters = sum(parameter.numel() for parameter in router.parameters())

    # 0.0406 G multiply-adds
    assert (parameters, count_flops(router, (3, 32, 32), "router") // 2) == (ROUTER, 40_550_528)


def test_the_network_for_large_images_routes_its_shortcuts_too(registry):
    with torch.device("meta"):
        model = build_model(
            registry, "moe-cnn/resnet18-large", num_classes=10, image_shape=(3, 224, 224), seed=1
        ).eval()

    # 16 convolutions of 3x3 and 3 shortcuts of 1x1
    assert sum(isinstance(module, MoEConv) for module in model.modules()) == 19
    # multiply-adds of the router grow by 49 from 32 pixels, where its head of 128 does not
    cost = count_flops(model.routers[0], (3, 224, 224), "router") // 2
    assert cost == 49 * (40_550_528 - 128) + 128


def test_the_cost_of_an_image_is_counted_alike_where_images_are_grouped(registry):
    there, here = (build(registry, SMALL[0], 8, device=device) for device in ("meta", "cpu"))

    assert count_flops(here, (1, 8, 8), "here") == count_flops(there, (1, 8, 8), "there")


@pytest.mark.parametrize("backbone", ["digits", "resnet14w24"])
@pytest.mark.parametrize("count", [3, 4, 5])
def test_more_experts_cost_an_image_one_row_of_the_routers_head_each(registry, backbone, count):
    size = 8 if backbone == "digits" else 32
    two, more = (
        build(registry, f"moe-cnn/{backbone}{suffix}", size, device="meta")
        for suffix in ("", f"-e{count}")
    )

    # 32 features and a bias for each gate logit
    assert more.active_parameters() - two.active_parameters() == 33 * (count - 2)
    layers = [
        [item for item in model.modules() if isinstance(item, MoEConv)] for model in (two, more)
    ]
    assert all(2 * len(b.weight) == count * len(a.weight) for a, b in zip(*layers, strict=True))


@pytest.mark.parametrize("backbone", ["digits", "resnet14w24"])
@pytest.mark.parametrize(("suffix", "dense"), [("-r25", "-r25"), ("", "-half"), ("-r75", "-r75")])
def test_an_expert_is_as_wide_as_its_dense_twin(registry, backbone, suffix, dense):
    size = 8 if backbone == "digits" else 32
    model = build(registry, f"moe-cnn/{backbone}{suffix}", size, device="meta")
    twin = build(registry, f"cnn/{backbone}{dense}", size, device="meta")

    widths = {len(m.weight) // 2 for m in model.modules() if isinstance(m, MoEConv)}
    assert widths == {
        len(m.weight) for m in twin.modules() if isinstance(m, nn.Conv2d) and m.weight.shape[2] == 3
    }


@pytest.mark.parametrize("name", EVERY)
def test_the_groups_of_parameters_are_all_of_them_once(registry, name):
    model = build(registry, name, 8 if "digits" in name else 32, device="meta")

    groups = model.parameter_groups()

    every = [id(parameter) for group in groups.values() for parameter in group]
    assert sorted(every) == sorted(map(id, model.parameters()))
    assert all(groups.values())


@pytest.mark.parametrize("name", EVERY)
def test_there_is_one_routing_for_all_layers_or_one_for_each(registry, name):
    model, images = spread(registry, name)

    routes = model.routed(images).routes

    layers = [module for module in model.modules() if isinstance(module, MoEConv)]
    assert len(routes) == len(model.routers) == (len(layers) if name.endswith("-layer") else 1)
    assert [routing.experts.unique().tolist() for routing in routes] == [[0, 1]] * len(routes)


def masked(layer, features, routing):
    """The released form of a layer: every block computed, a mask, and its gradient at will."""
    every = functional.conv2d(
        features, layer.weight, None, layer.stride, layer.weight.shape[2] // 2
    )
    scores = routing.gate_logits[:, 0]
    hard = (
        torch.zeros_like(scores).scatter(1, routing.experts[:, 0], 1.0) + scores - scores.detach()
    )
    blocks = every.unflatten(1, (layer.num_experts, -1)) * hard[:, :, None, None, None]
    return blocks[torch.arange(len(features)), routing.experts[:, 0, 0]]


@pytest.mark.parametrize(("size", "stride"), [(3, 1), (3, 2), (1, 2)])
@pytest.mark.parametrize("num_experts", [1, 2, 5])
@pytest.mark.parametrize("count", [24, 13], ids=["padded", "odd"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_grouped_by_expert_equals_all_experts_under_a_mask(
    layout, count, num_experts, size, stride
):
    torch.manual_seed(0)
    layer = MoEConv(6, 8, size, num_experts=num_experts, stride=stride).to(memory_format=layout)
    features, scores = torch.randn(count, 6, 9, 9), torch.randn(count, num_experts)
    features = features.to(memory_format=layout)
    inputs = [features.requires_grad_(), scores.requires_grad_(), layer.weight]
    routing = hard_routing(scores)
    goal = torch.randn(8, 1, 1)

    here = layer(features, assigned(routing))
    there = masked(layer, features, routing)
    mine = torch.autograd.grad((here * goal).sum(), inputs)
    theirs = torch.autograd.grad((there * goal).sum(), inputs)

    torch.testing.assert_close(here, there, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_features_and_gradients_stay_as_they_lie_in_memory(layout):
    torch.manual_seed(0)
    layer = MoEConv(6, 8, 3, num_experts=2).to(memory_format=layout)
    features = torch.randn(24, 6, 9, 9).to(memory_format=layout).requires_grad_()

    output = layer(features, assigned(hard_routing(torch.randn(24, 2))))
    [gradient] = torch.autograd.grad(output.square().sum(), features)

    assert output.is_contiguous(memory_format=layout)
    assert gradient.is_contiguous(memory_format=layout)


def test_the_gradient_of_a_score_is_that_of_the_loss_along_the_output():
    torch.manual_seed(0)
    layer, features = MoEConv(3, 4, 3, num_experts=2), torch.randn(8, 3, 5, 5)
    scores = torch.tensor([[1.0, 0.0], [0.0, 1.0]] * 4).requires_grad_()

    output = layer(features, assigned(hard_routing(scores)))
    output.square().sum().backward()

    # d/ds of |s * y|^2 at s = 1 is 2 |y|^2, for the chosen expert alone
    expected = 2 * output.detach().square().sum(dim=(1, 2, 3))
    torch.testing.assert_close(scores.grad, expected[:, None] * scores.detach())


DENSE = {
    "digits": ("cnn/digits", {"ratio": 1.0}, {}),
    "vgg16": ("cnn/vgg16", {"ratio": 0.125}, {"ratio": 0.125}),
    "densenet40": ("cnn/densenet40", {"ratio": 0.5}, {"ratio": 0.5}),
    "wrn28-10": ("cnn/wrn28-10", {"ratio": 0.0625, "repaired": True}, {"ratio": 0.0625}),
}


@pytest.mark.parametrize("router", ["", "-layer"])
@pytest.mark.parametrize("name", DENSE)
def test_a_single_expert_is_the_dense_network(registry, name, router):
    twin, own, its = DENSE[name]
    size = 8 if name == "digits" else 32
    dense = build(registry, twin, size, **its)
    model = build(registry, f"moe-cnn/{name}{router}", size, num_experts=1, **own)
    names = model.backbone.state_dict()
    model.backbone.load_state_dict(dict(zip(names, dense.state_dict().values(), strict=True)))
    images = torch.rand(4, 1 if size == 8 else 3, size, size)

    logits = model(images)

    # the dense twin reads 2 * image - 1
    torch.testing.assert_close(logits, dense((images + 1) / 2), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("router", ["", "-layer"])
def test_a_single_expert_for_large_images_is_the_network_of_torchvision(registry, router):
    name = f"moe-cnn/resnet18-large{router}"
    dense = resnet18(num_classes=10).eval()
    model = build(registry, name, 64, num_experts=1, ratio=1.0)
    names = model.backbone.state_dict()
    model.backbone.load_state_dict(dict(zip(names, dense.state_dict().values(), strict=True)))
    images = torch.rand(2, 3, 64, 64)

    torch.testing.assert_close(model(images), dense(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", RESNETS)
def test_permuting_a_batch_permutes_the_logits_bit_for_bit(registry, name):
    model, images = spread(registry, name)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(5))

    with torch.no_grad():
        logits, permuted = model(images), model(images[order])

    assert torch.equal(permuted, logits[order])


@pytest.mark.parametrize("name", RESNETS)
def test_an_image_alone_equals_itself_in_a_batch_bit_for_bit(registry, name):
    model, images = spread(registry, name)

    together = predict(model, images, batches=Batches(len(images)))
    alone = [predict(model, image, batches=Batches(1)) for image in images.split(1)]

    assert torch.equal(torch.cat(alone), together)


def test_the_choices_of_a_densenet_do_not_depend_on_the_batch(registry):
    model, images = spread(registry, "moe-cnn/densenet40-layer")

    with torch.no_grad():
        together, fewer = model.routed(images), model.routed(images[:ROW_GROUP])

    # its head of 66 features is a matrix product that rounds by the place of a row
    torch.testing.assert_close(together.logits[:ROW_GROUP], fewer.logits, rtol=1e-6, atol=1e-6)
    for routing, part in zip(together.routes, fewer.routes, strict=True):
        assert torch.equal(routing.gate_logits[:ROW_GROUP], part.gate_logits)


def ascent(model, images):
    labels = torch.zeros(len(images), dtype=torch.int64)
    objective = objective_of(model, lambda outcome: -outcome.margin, labels, batch_size=64)
    return objective.gradient(images)[1]


@pytest.mark.parametrize("name", EVERY)
def test_the_gradient_of_an_image_does_not_depend_on_its_batch(registry, name):
    model, images = spread(registry, name)

    with frozen(model):
        together, fewer = ascent(model, images), ascent(model, images[:ROW_GROUP])

    torch.testing.assert_close(together[:ROW_GROUP], fewer, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", EVERY)
def test_replaying_its_own_routes_gives_the_same_logits(registry, name):
    model, images = spread(registry, name)

    routed = model.routed(images)
    again = model.routed(images, routes=routed.routes)

    assert torch.equal(again.logits, routed.logits)
    assert all(
        map(torch.equal, *([item.experts for item in found.routes] for found in (again, routed)))
    )


@pytest.mark.parametrize("name", SMALL)
def test_another_expert_replayed_gives_other_logits(registry, name):
    model, images = spread(registry, name)
    routed = model.routed(images)

    forced = model.routed(images, routes=tuple(routing.forced(1) for routing in routed.routes))

    assert (forced.logits - routed.logits).abs().amax(dim=1).min() > 1e-4


@pytest.mark.parametrize("name", SMALL)
def test_a_dropped_choice_gives_nothing(registry, name):
    model, images = spread(registry, name)
    layer = MoEConv(1, 4, 3, num_experts=2)
    [routing, *_] = model.routed(images).routes
    routing.kept[:3] = False

    output = layer(images, assigned(routing))

    assert not output[:3].any()
    assert output[3:].any()


def test_relaxed_mixes_the_experts_by_their_gates():
    torch.manual_seed(0)
    layer, features = MoEConv(3, 4, 3, num_experts=2), torch.randn(5, 3, 6, 6)
    routing = hard_routing(torch.randn(5, 2))

    mixed = layer(features, assigned(routing, relaxed=True))

    first, second = (
        functional.conv2d(features, block, padding=1) for block in layer.weight.chunk(2)
    )
    share = routing.gates[:, :, :1, None]
    torch.testing.assert_close(mixed, share * first + (1 - share) * second, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_a_gradient_comes_through_the_router_unless_it_is_detached(registry, name):
    model, images = spread(registry, name)
    images.requires_grad_()

    attached, detached = (
        torch.autograd.grad(model.routed(images, detach_router=cut).logits.sum(), images)[0]
        for cut in (False, True)
    )

    assert not router_is_hard(model, images)
    assert not torch.allclose(attached, detached, rtol=1e-3)


def test_weights_are_drawn_as_the_released_code_draws_them(registry):
    model = build(registry, "moe-cnn/resnet18")

    [first, *_] = [module for module in model.modules() if isinstance(module, MoEConv)]
    stem = model.backbone.stem.weight

    # sqrt(2 / fan_out): 2 * 32 channels of both experts, and 64 of the stem, of 9 weights each
    assert first.weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)
    assert stem.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)
    assert model.backbone.head.weight.std().item() == pytest.approx(0.01, rel=0.1)
    # the router keeps torch's own: uniform within 1 / sqrt(fan_in)
    assert model.routers[0].stem.weight.abs().max() <= 27**-0.5
    assert isinstance(model.routers[0].head, nn.Linear)
    assert model.routers[0].head.bias.abs().max() > 0


@pytest.mark.parametrize(
    ("parameters", "advice"),
    [
        ({"router": "lair"}, "did you mean 'layer'"),
        ({"ratio": 0.01}, "must be at least 1/64"),
        ({"num_experts": 0}, "num_experts must be at least 1"),
    ],
)
def test_parameters_that_make_no_network_are_refused(registry, parameters, advice):
    with pytest.raises(ModelError, match=advice):
        build(registry, "moe-cnn/resnet18", **parameters)
