"""Dual models: what the weight of the robust half does, and whose routes are whose."""

from __future__ import annotations

import pytest
import torch

from harness.api import ModelError
from harness.building import build_model
from harness.tensors import RoutedClassifier

DENSE = "cnn/digits"
IMAGES = torch.rand(11, 1, 8, 8, generator=torch.Generator().manual_seed(1))

combinations = pytest.mark.parametrize("combine", ["logits", "probabilities"])


def build(registry, **parameters):
    return build_model(
        registry, "dual/digits", num_classes=10, image_shape=(1, 8, 8), seed=1, **parameters
    ).eval()


@torch.no_grad()
@pytest.mark.parametrize(("alpha", "half"), [(0.0, "standard"), (1.0, "robust")])
def test_the_ends_of_alpha_are_the_halves(registry, alpha, half):
    model = build(registry, alpha=alpha)

    assert torch.equal(model(IMAGES), getattr(model, half)(IMAGES))


@torch.no_grad()
@pytest.mark.parametrize(("alpha", "half"), [(0.0, "standard"), (1.0, "robust")])
def test_the_ends_of_alpha_are_the_probabilities_of_the_halves(registry, alpha, half):
    model = build(registry, alpha=alpha, combine="probabilities")

    expected = getattr(model, half)(IMAGES).softmax(dim=1)
    assert torch.allclose(model(IMAGES).softmax(dim=1), expected)


@torch.no_grad()
def test_logits_are_added_up_by_their_weights(registry):
    model = build(registry, alpha=0.7)

    expected = 0.3 * model.standard(IMAGES) + 0.7 * model.robust(IMAGES)
    assert torch.allclose(model(IMAGES), expected)


@torch.no_grad()
def test_probabilities_are_added_up_by_their_weights(registry):
    model = build(registry, alpha=0.7, combine="probabilities")

    standard, robust = (half(IMAGES).softmax(dim=1) for half in (model.standard, model.robust))
    assert torch.allclose(model(IMAGES).exp(), 0.3 * standard + 0.7 * robust)


@combinations
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_every_weight_has_a_finite_gradient(registry, alpha, combine):
    model, images = build(registry, alpha=alpha, combine=combine), IMAGES.clone().requires_grad_()

    model(images).square().sum().backward()

    assert images.grad.isfinite().all()
    assert images.grad.any()


def test_the_weight_is_no_part_of_what_is_trained(registry):
    one, other = build(registry, alpha=0.5), build(registry, alpha=0.9)

    other.load_state_dict(one.state_dict())

    assert other.combination.alpha == 0.9


def test_the_halves_have_weights_of_their_own(registry):
    model = build(registry)

    standard, robust = (half.router.linear.weight for half in (model.standard, model.robust))
    assert not torch.equal(standard, robust)


@torch.no_grad()
def test_the_routes_are_those_of_both_halves_in_order(registry):
    model = build(registry)

    routes = model.routed(IMAGES).routes

    [standard], [robust] = (half.routed(IMAGES).routes for half in (model.standard, model.robust))
    assert torch.equal(routes[0].gates, standard.gates)
    assert torch.equal(routes[1].gates, robust.gates)
    assert not torch.equal(routes[0].gates, routes[1].gates)


@torch.no_grad()
@combinations
def test_its_own_routes_replayed_give_the_same_logits(registry, combine):
    model = build(registry, combine=combine)
    routed = model.routed(IMAGES)

    again = model.routed(IMAGES, routes=routed.routes)

    assert torch.equal(again.logits, routed.logits)


@torch.no_grad()
def test_each_half_replays_the_routes_that_are_its_own(registry):
    model = build(registry)
    others = model.routed(IMAGES.flip(0)).routes

    found = model.routed(IMAGES, routes=others).logits

    expected = model.combination(
        model.standard.routed(IMAGES, routes=others[:1]).logits,
        model.robust.routed(IMAGES, routes=others[1:]).logits,
    )
    assert torch.equal(found, expected)


@torch.no_grad()
@combinations
def test_an_image_alone_and_a_permuted_batch_give_the_same_bits(registry, combine):
    model = build(registry, combine=combine)
    logits = model(IMAGES)

    assert torch.equal(torch.cat([model(image) for image in IMAGES.split(1)]), logits)
    assert torch.equal(model(IMAGES.flip(0)), logits.flip(0))


def test_two_dense_halves_have_no_routes(registry):
    model = build(registry, standard=DENSE, robust=DENSE)

    assert not isinstance(model, RoutedClassifier)
    assert model(IMAGES).shape == (11, 10)


@torch.no_grad()
@pytest.mark.parametrize("half", ["standard", "robust"])
def test_a_dense_half_beside_a_mixture_has_no_part_in_the_routes(registry, half):
    model = build(registry, **{half: DENSE})
    routed = model.routed(IMAGES)

    again = model.routed(IMAGES, routes=routed.routes)

    assert len(routed.routes) == 1
    assert torch.equal(again.logits, routed.logits)
    # an expert has 77,754 parameters, a router 260
    assert model.active_parameters() == 2 * 77_754 + 260


def test_the_groups_hold_every_parameter_once(registry):
    model = build(registry, standard=DENSE)

    groups = model.parameter_groups()

    found = [id(parameter) for group in groups.values() for parameter in group]
    assert sorted(found) == sorted(id(parameter) for parameter in model.parameters())
    assert len(groups["router"]) == 2


def test_halves_whose_routes_cannot_be_told_apart_are_refused(registry):
    model = build(registry, standard="dual/digits")

    with pytest.raises(ModelError, match="take halves with equally many"):
        model(IMAGES)


@pytest.mark.parametrize(
    ("parameters", "remedy"),
    [
        ({"alpha": 1.5}, "must lie in"),
        ({"combine": "probs"}, "write one of logits, probabilities"),
    ],
    ids=["alpha", "combine"],
)
def test_what_has_no_meaning_is_refused(registry, parameters, remedy):
    with pytest.raises(ModelError, match=remedy):
        build(registry, **parameters)
