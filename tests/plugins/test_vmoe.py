"""V-MoE: the papers' counts, and the laws of routers, capacity and losses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from harness.building import build_model
from harness.errors import ModelError
from harness.flops import count_flops
from harness.numerics import Batches
from harness.seeing import predict
from harness.tensors import RoutedClassifier
from harness.testing import check_model
from harness_vit.vit import Architecture, DenseViT
from harness_vmoe.dispatch import DISPATCHES
from harness_vmoe.losses import gshard_loss, importance_loss, load_loss
from harness_vmoe.model import VMoE
from harness_vmoe.moe import Sparsity
from harness_vmoe.router import best_experts, capacity_of, within_capacity

COUNTS = {
    ("vmoe/b32-e2", 384): 117_231_592,
    ("vmoe/b32-e4", 384): 173_909_992,
    ("vmoe/b32-e8", 384): 287_266_792,
    ("vmoe/b32-e16", 384): 513_980_392,
    ("vmoe/b32-e32", 384): 967_407_592,
    ("vmoe/b32-e32", 224): 967_334_632,
    ("vmoe/b32-e32-capacity", 384): 967_407_592,
    # dense: 27,595,240; in 2 blocks 7 more MLPs of 2 * 512 * 2048 + 2560 and a router of 512 * 8
    ("vmoe/s32-e8", 224): 27_595_240 + 2 * (7 * (2 * 512 * 2048 + 2560) + 4096),
    # dense: 86,567,656; in 6 blocks 7 more MLPs of 2 * 768 * 3072 + 3840 and a router of 768 * 8
    ("vmoe/b16-e8", 224): 86_567_656 + 6 * (7 * (2 * 768 * 3072 + 3840) + 6144),
    ("vmoe/b16-e8-capacity", 384): 86_859_496 + 6 * (7 * (2 * 768 * 3072 + 3840) + 6144),
}
"""Parameters for 1000 classes; those of B/32 as measured in the official code."""

PLAIN = Sparsity(4, 2)


def build(registry, name, size=224, classes=1000, device="meta", **parameters):
    with torch.device(device):
        return build_model(
            registry, name, num_classes=classes, image_shape=(3, size, size), seed=1, **parameters
        ).eval()


def small(sparsity=PLAIN, blocks=(0, 1), width=32):
    """Two blocks on 4x4 patches of 16-pixel images, with experts that differ."""
    torch.manual_seed(0)
    model = VMoE(
        Architecture(4, width, 2, 4, 2 * width),
        sparsity,
        moe_blocks=blocks,
        channels=3,
        num_classes=10,
        input_size=(16, 16),
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) / 10)
    return model


def pictures(count=8):
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(2))


def split(state, part):
    """The keys with a part, which is shortened to `mlp.`, and those without."""
    inside = {key.replace(part, "mlp."): value for key, value in state.items() if part in key}
    return inside, {key: value for key, value in state.items() if part not in key}


def image_gradient(model, images, **steering):
    images = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(
        model.routed(images, **steering).logits.square().sum(), images
    )
    return gradient


@pytest.mark.parametrize(("name", "size"), COUNTS)
def test_has_the_parameters_of_the_reference(registry, name, size):
    model = build(registry, name, size)

    assert sum(parameter.numel() for parameter in model.parameters()) == COUNTS[name, size]


@pytest.mark.parametrize("name", ["vmoe/digits", "vmoe/ti4-e8", "vmoe/ti8-e8"])
def test_a_small_variant_keeps_the_contract(registry, name):
    check_model(registry, name)


def test_a_card_tells_who_couples_images(registry):
    cards = {name: registry.find("models", name).card for name in ("vmoe/b32-e32", "vmoe/digits")}
    coupled = registry.find("models", "vmoe/b32-e32-capacity").card

    assert not any(card.group > 1 for card in cards.values())
    assert coupled.group == 4
    assert (coupled.num_experts, coupled.num_selected) == (32, 2)


def test_costs_the_dense_model_one_more_expert_in_six_blocks_and_the_routers(registry):
    dense, sparse = (
        count_flops(build(registry, name), (3, 224, 224), name)
        for name in ("vit/b32", "vmoe/b32-e32")
    )

    # 50 tokens; 2 operations a weight; an MLP has 2 * 768 * 3072 weights, a router 768 * 32
    assert sparse - dense == 6 * 50 * 2 * (2 * 768 * 3072 + 768 * 32)


def test_with_the_papers_padded_places_costs_what_the_paper_says(registry):
    flops = count_flops(build(registry, "vmoe/b32-e32"), (3, 224, 224), "vmoe/b32-e32")
    # 8 images of 50 tokens share ceil(400 * 2 * 1.05 / 32) = 27 places an expert, made 28
    places = capacity_of(8 * 50, 2, 32, 1.05)

    # 32 * 28 / 8 = 112 rows an image and layer, of which our grouped products have 2 * 50
    padded = flops + 6 * (32 * places // 8 - 2 * 50) * 2 * (2 * 768 * 3072)

    assert places == 28
    # theirs counts the element-wise operations, too
    assert padded / 1e9 == pytest.approx(12.4, rel=0.01)


@pytest.mark.parametrize("name", ["vmoe/digits", "vmoe/b32-e2"])
def test_costs_the_same_with_numbers_and_without(registry, name):
    # 2 blocks of B/32 are small enough to be built
    smaller = {} if name == "vmoe/digits" else {"depth": 2, "moe_blocks": (1,)}
    real, meta = (build(registry, name, 32, 10, device, **smaller) for device in ("cpu", "meta"))

    assert count_flops(real, (3, 32, 32), name) == count_flops(meta, (3, 32, 32), name)


def test_each_parameter_is_in_one_group_and_idle_experts_are_not_active():
    model = small()

    groups = model.parameter_groups()

    grouped = [parameter for group in groups.values() for parameter in group]
    assert sorted(map(id, grouped)) == sorted(map(id, model.parameters()))
    assert [tuple(router.shape) for router in groups["router"]] == [(4, 32), (4, 32)]
    # 2 blocks with 2 idle experts of 2 * 32 * 64 + 64 + 32
    total = sum(parameter.numel() for parameter in grouped)
    assert total - model.active_parameters() == 2 * 2 * (2 * 32 * 64 + 96)


def test_gates_sum_to_one_and_each_token_has_its_experts():
    routed = small().routed(pictures())

    assert isinstance(small(), RoutedClassifier)
    assert len(routed.routes) == 2
    for routing in routed.routes:
        assert torch.allclose(routing.gates.sum(dim=2), torch.ones(8, 17))
        assert routing.experts.shape == (8, 17, 2)
        assert (routing.experts[:, :, 0] != routing.experts[:, :, 1]).all()
        assert routing.kept.all()


def test_of_equal_gates_the_lowest_index_comes_first():
    gates = torch.tensor([[[0.2, 0.3, 0.2, 0.3]]])

    assert best_experts(gates, 3).tolist() == [[[1, 3, 0]]]


@pytest.mark.parametrize(
    ("tokens", "experts", "factor", "places"),
    [
        (400, 32, 1.05, 28),
        (400, 32, 1.5, 40),
        (1160, 32, 1.05, 80),
        (1160, 32, 1.5, 112),
        (1160, 16, 1.05, 156),
        (1160, 8, 1.5, 436),
        (1160, 2, 1.05, 1220),
        (2308, 8, 1.5, 868),
        (400, 8, 4.0, 400),
    ],
)
def test_an_expert_has_the_places_of_the_references_table(tokens, experts, factor, places):
    assert capacity_of(tokens, 2, experts, factor) == places


@pytest.mark.parametrize(
    ("batch_priority", "kept"),
    [
        # two places at each expert; first choices 0 0 0 1, then second choices 1 1 1 0
        pytest.param(
            False, [[True, True], [True, False], [False, False], [True, False]], id="order"
        ),
        # by gate the third token comes first, then the first
        pytest.param(True, [[True, False], [False, False], [True, True], [True, False]], id="gate"),
    ],
)
def test_first_choices_come_before_second_ones(batch_priority, kept):
    gates = torch.tensor([[[0.7, 0.3], [0.6, 0.4], [0.9, 0.1], [0.2, 0.8]]])
    gates[0, 3] = torch.tensor([0.45, 0.55])

    found = within_capacity(best_experts(gates, 2), gates, 2, batch_priority=batch_priority)

    assert found[0].tolist() == kept


@pytest.mark.parametrize(
    ("images", "first", "last"),
    [(8, 0, 4), (8, 4, 8), (7, 4, 7), (3, 0, 3)],
    ids=["full", "second", "rest", "less"],
)
def test_no_expert_takes_more_than_its_capacity_in_a_group(images, first, last):
    model = small(Sparsity(4, 2, group_size=4, capacity_factor=0.5))

    routing = model.routed(pictures(images)).routes[0].rows(torch.arange(first, last))

    taken = routing.experts[routing.kept].bincount()
    assert taken.max() == capacity_of(17 * (last - first), 2, 4, 0.5)
    assert not routing.kept.all()


@pytest.mark.parametrize(("count", "numbers"), [(8, 2), (7, 7), (3, 1)])
def test_there_is_a_loss_for_each_group_or_image(count, numbers):
    model = small(Sparsity(4, 2, group_size=4, capacity_factor=0.5))

    assert model.routed(pictures(count)).auxiliary_loss.shape == (numbers,)
    assert small().routed(pictures(count)).auxiliary_loss.shape == (count,)


def test_a_token_without_a_place_passes_by():
    model = small(blocks=(1,))
    images = pictures()
    [routing] = model.routed(images).routes
    nowhere = replace(routing, kept=torch.zeros_like(routing.kept))

    logits = model.routed(images, routes=(nowhere,)).logits

    tokens = model.blocks[0](model.embedding(images))
    assert torch.equal(logits, model.head(model.blocks[1].attended(tokens)))


def test_one_expert_is_the_dense_model():
    sparse = small(Sparsity(1, 1))
    dense = DenseViT(Architecture(4, 32, 2, 4, 64), channels=3, num_classes=10, input_size=(16, 16))
    experts, others = split(sparse.state_dict(), "mlp.experts.")
    weights = {name: value[0].T if value.ndim == 3 else value[0] for name, value in experts.items()}

    dense.load_state_dict(weights | split(others, "router")[1])

    assert torch.allclose(sparse(pictures()), dense(pictures()), atol=1e-5)
    assert not sparse.routed(pictures()).auxiliary_loss.any()


@pytest.mark.parametrize("factor", [0.0, 0.5], ids=["default", "capacity-of-an-image"])
def test_an_images_logits_have_the_same_bits_alone_in_a_batch_and_in_any_order(factor):
    model, images = small(Sparsity(4, 2, capacity_factor=factor), width=192), pictures(19)
    order = torch.randperm(19, generator=torch.Generator().manual_seed(3))

    with torch.no_grad():
        together = predict(model, images, batches=Batches(32))
        alone = torch.cat([predict(model, image, batches=Batches(8)) for image in images.split(1)])
        mixed = predict(model, images[order], batches=Batches(32))

    assert torch.equal(alone, together)
    assert torch.equal(mixed, together[order])


def test_with_the_published_capacity_logits_depend_on_the_group():
    model, images = small(Sparsity(4, 2, group_size=4, capacity_factor=0.5)), pictures()

    others = images.roll(1, 0)

    assert not torch.allclose(model(others).roll(-1, 0), model(images), atol=1e-3)


@pytest.mark.parametrize("factor", [0.0, 0.5])
def test_its_own_routes_give_the_same_logits_and_gradients(factor):
    model, images = small(Sparsity(4, 2, group_size=4, capacity_factor=factor)), pictures()
    routed = model.routed(images)

    again = model.routed(images, routes=routed.routes)

    assert torch.equal(again.logits, routed.logits)
    assert torch.equal(again.auxiliary_loss, routed.auxiliary_loss)
    assert again.routes == routed.routes


def test_gate_values_are_used_as_they_are_passed():
    model, images = small(), pictures()
    routes = tuple(
        replace(routing, gates=routing.gates.detach().requires_grad_())
        for routing in model.routed(images).routes
    )

    logits = model.routed(images, routes=routes).logits
    gradients = torch.autograd.grad(logits.sum(), [routing.gates for routing in routes])

    for routing, gradient in zip(routes, gradients, strict=True):
        worked = torch.zeros_like(gradient).scatter(2, routing.experts, 1.0).bool()
        assert (gradient[worked] != 0).any()
        assert not gradient[~worked].any()


def test_detached_the_gradient_is_that_of_routes_that_stand_still():
    model, images = small(), pictures()
    routes = model.routed(images, detach_router=True).routes

    detached = image_gradient(model, images, detach_router=True)
    replayed = image_gradient(model, images, routes=routes)

    assert torch.equal(detached, replayed)
    assert not torch.allclose(detached, image_gradient(model, images), atol=1e-4)
    assert not model.routed(images, detach_router=True).auxiliary_loss.requires_grad


def test_relaxed_all_experts_are_mixed_by_their_gates():
    model, all_selected = small(), small(Sparsity(4, 4))
    all_selected.load_state_dict(model.state_dict())
    images = pictures()

    relaxed = model.routed(images, relaxed=True)

    assert torch.allclose(relaxed.logits, all_selected(images), atol=1e-5)
    assert relaxed.routes[0].experts.shape[2] == 2


@pytest.mark.parametrize("dispatch", DISPATCHES)
@pytest.mark.parametrize("num_experts", [2, 4])
def test_every_dispatch_gives_the_same_logits_and_gradients(dispatch, num_experts):
    one = small(Sparsity(num_experts, 2, group_size=4, capacity_factor=0.5)).double()
    other = small(replace(one.blocks[0].mlp.sparsity, dispatch=dispatch)).double()
    images = pictures().double()

    assert torch.allclose(one(images), other(images), atol=1e-12)
    assert torch.allclose(image_gradient(one, images), image_gradient(other, images), atol=1e-12)


def test_at_exact_balance_the_losses_and_their_gradients_are_zero():
    logits = torch.zeros(2, 8, 4, requires_grad=True)

    losses = importance_loss(logits), load_loss(logits, logits, 2)
    (gradient,) = torch.autograd.grad(sum(loss.sum() for loss in losses), logits)

    assert not any(loss.any() for loss in losses)
    assert not gradient.any()


def test_the_gshard_loss_is_one_where_both_shares_are_equal():
    balanced = torch.tensor([[[0.6, 0.4], [0.4, 0.6]]])
    collapsed = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])

    # four times the mean of 0.25 and 0.25, and of 1 and 0
    assert gshard_loss(balanced).tolist() == pytest.approx([1.0])
    assert gshard_loss(collapsed).tolist() == pytest.approx([2.0])


@pytest.mark.parametrize(
    ("num_experts", "weight", "loss"), [(2, 0.01, gshard_loss), (4, 0.005, None)]
)
def test_the_auxiliary_loss_is_the_weighted_sum_of_the_layers(num_experts, weight, loss):
    routed = small(Sparsity(num_experts, 2)).routed(pictures())

    layers = [
        importance_loss(routing.gate_logits) if loss is None else loss(routing.gates)
        for routing in routed.routes
    ]

    assert torch.allclose(routed.auxiliary_loss, weight * (layers[0] + layers[1]))


def test_noise_is_drawn_in_training_alone_with_a_spread_of_one_by_the_experts():
    model = small()
    images = pictures(64)
    assert torch.equal(model(images), model(images))

    torch.manual_seed(4)
    [first, _] = model.train().routed(images).routes

    noise = first.gates.log() - first.gate_logits
    spread = (noise - noise.mean(dim=2, keepdim=True)).std(correction=0) * (4 / 3) ** 0.5
    assert float(spread.detach()) == pytest.approx(1 / 4, rel=0.03)


@pytest.mark.parametrize(
    ("parameters", "remedy"),
    [
        ({"num_selected": 5}, "num_selected=5 of 4 experts cannot be chosen; set it to 1 to 4"),
        ({"num_experts": 1}, "num_selected=2 of 1 experts"),
        ({"moe_blocks": (3,)}, "moe_blocks must name some of the blocks 0 to 2"),
        ({"moe_blocks": ()}, "moe_blocks must name some of the blocks 0 to 2"),
        ({"group_size": 0}, "group_size=0 images are no group; set 1 or more"),
        ({"capacity_factor": -1.0}, "capacity_factor is below 0; set 0 to drop nothing"),
        ({"dispatch": "groupd"}, "dispatch 'groupd' is not known; did you mean 'grouped'"),
        ({"heads": 5}, "5 heads do not share a width of 48"),
        ({"image_size": 9}, "patches of 2 pixels do not fill images of 9x9"),
    ],
)
def test_numbers_that_do_not_fit_are_refused_with_the_remedy(registry, parameters, remedy):
    with pytest.raises(ModelError, match=remedy):
        build(registry, "vmoe/digits", 8, 10, **parameters)
