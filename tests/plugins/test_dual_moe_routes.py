"""Distances to other routes, the pixel box counted: held against brute force and a closed form."""

from __future__ import annotations

import pytest
import torch

from harness.api import ModelError
from harness.building import build_model
from harness_dual_moe.routes import (
    AffineRouter,
    affine_router,
    pair_radii,
    redirection_radius,
    route_radius,
)

norms = pytest.mark.parametrize("norm", ["linf", "l2"])


def router(experts=3, pixels=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(experts, pixels, generator=generator, dtype=torch.float64)
    return AffineRouter(weight, torch.randn(experts, generator=generator, dtype=torch.float64) / 4)


def images(count=6, pixels=2, seed=1):
    return torch.rand(count, 1, 1, pixels, generator=torch.Generator().manual_seed(seed)).double()


def everywhere(count=401):
    """All images of two pixels, on a fine grid."""
    axis = torch.linspace(0, 1, count, dtype=torch.float64)
    return torch.cartesian_prod(axis, axis).view(-1, 1, 1, 2)


def nearest(image, is_there, norm):
    """The distance of an image from the nearest point of the grid where something holds."""
    points = everywhere()[is_there].flatten(1)
    if len(points) == 0:
        return float("inf")
    order = {"linf": torch.inf, "l2": 2}[norm]
    return float((points - image.flatten()).norm(order, dim=1).min())


@norms
@pytest.mark.parametrize("seed", range(4))
def test_a_pair_of_experts_is_as_far_as_the_nearest_image_that_prefers_the_other(seed, norm):
    two, given = router(experts=2, seed=seed), images()

    radius = pair_radii(two, given, norm=norm)

    scores = two.gate_logits(everywhere())
    truth = [nearest(image, scores[:, 1] >= scores[:, 0], norm) for image in given]
    assert radius[:, 0, 1].tolist() == pytest.approx(truth, abs=0.005)


@norms
def test_leaving_the_own_region_is_the_nearest_of_all_pairs(registry, norm):
    model = build_model(registry, "moe/digits", num_classes=10, image_shape=(1, 1, 2), seed=1)
    given = images()

    radius = route_radius(model.double(), given, norm=norm)

    affine = affine_router(model, (1, 1, 2))
    chosen = affine.gate_logits(everywhere()).argmax(dim=1)
    own = affine.gate_logits(given).argmax(dim=1)
    truth = [nearest(image, chosen != at, norm) for image, at in zip(given, own, strict=True)]
    assert radius.tolist() == pytest.approx(truth, abs=0.005)


def test_an_affine_router_reads_what_the_mixture_reads(registry):
    model = build_model(
        registry, "moe/resnet14w24-e4", num_classes=10, image_shape=(3, 8, 8), seed=1
    ).double()
    given = torch.rand(4, 3, 8, 8, dtype=torch.float64)

    scores = affine_router(model, (3, 8, 8)).gate_logits(given)

    assert torch.allclose(scores, model.router((given - model.mean) / model.std))


@pytest.mark.parametrize("seed", range(4))
def test_of_two_experts_the_program_gives_the_closed_form(seed):
    two, given = router(experts=2, pixels=9, seed=seed), images(pixels=9)

    found = [redirection_radius(image.flatten(), [two], [1]) for image in given]

    assert found == pytest.approx(pair_radii(two, given, norm="linf")[:, 0, 1].tolist(), abs=1e-6)


@pytest.mark.parametrize("wanted", range(4))
def test_the_program_finds_the_nearest_image_that_goes_to_an_expert(wanted):
    four, given = router(experts=4), images()

    found = [redirection_radius(image.flatten(), [four], [wanted]) for image in given]

    chosen = four.gate_logits(everywhere()).argmax(dim=1)
    truth = [nearest(image, chosen == wanted, "linf") for image in given]
    assert found == pytest.approx(truth, abs=0.005)


def test_two_routers_of_one_image_are_asked_together():
    first, second, given = router(experts=2), router(experts=2, seed=5), images()

    found = [redirection_radius(image.flatten(), [first, second], [1, 0]) for image in given]

    chosen = [part.gate_logits(everywhere()).argmax(dim=1) for part in (first, second)]
    is_there = (chosen[0] == 1) & (chosen[1] == 0)
    truth = [nearest(image, is_there, "linf") for image in given]
    assert found == pytest.approx(truth, abs=0.005)


def test_an_expert_that_no_image_goes_to_is_infinitely_far():
    weight = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    never = AffineRouter(weight, torch.tensor([0.0, -3.0], dtype=torch.float64))

    assert redirection_radius(torch.tensor([0.5, 0.5]), [never], [1]) == float("inf")
    assert pair_radii(never, images(), norm="linf")[:, 0, 1].isinf().all()


def test_another_router_has_no_known_distance(registry):
    model = build_model(
        registry, "moe/digits", num_classes=10, image_shape=(1, 8, 8), seed=1,
        router="convolutional",
    )  # fmt: skip

    with pytest.raises(ModelError, match="linear routers alone"):
        route_radius(model, torch.rand(1, 1, 8, 8), norm="linf")


def test_a_norm_without_a_distance_is_refused():
    with pytest.raises(ModelError, match="in norm 'severity'"):
        pair_radii(router(), images(), norm="severity")
