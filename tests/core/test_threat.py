"""Threat models: the laws of the ball and the box, and numbers worked out by hand."""

from __future__ import annotations

import re

import pytest
import torch

from harness.errors import UsageError
from harness.threat import ThreatModel, radius

THREATS = [
    pytest.param(ThreatModel("linf", 0.1), id="linf"),
    pytest.param(ThreatModel("l2", 0.5), id="l2"),
]
GREY = torch.full((4, 3, 8, 8), 0.5)


def uniform(seed, *, low=0.0, high=1.0):
    """Four images of uniform noise."""
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(4, 3, 8, 8, generator=generator)


def row(*pixels):
    """One grey image of a single row."""
    return torch.tensor(pixels).reshape(1, 1, 1, -1)


@pytest.mark.parametrize(
    ("norm", "size"),
    [
        pytest.param("linf", 0.4, id="linf"),
        # sqrt(0.3^2 + 0.4^2) = sqrt(0.09 + 0.16) = 0.5
        pytest.param("l2", 0.5, id="l2"),
    ],
)
def test_the_size_is_the_norm_over_all_pixels_of_an_image(norm, size):
    perturbation = row(0.3, 0.0, -0.4)

    found = ThreatModel(norm, 1.0).size(perturbation)

    assert found.tolist() == pytest.approx([size])


@pytest.mark.parametrize("threat", THREATS)
def test_each_image_has_a_size_of_its_own(threat):
    perturbation = uniform(0)

    together = threat.size(perturbation)

    assert together[2:3].tolist() == pytest.approx(threat.size(perturbation[2:3]).tolist())
    assert together.shape == (4,)


@pytest.mark.parametrize(
    ("norm", "expected"),
    [
        # each pixel alone: 0.6 becomes 0.5, -0.8 becomes -0.5
        pytest.param("linf", [0.5, -0.5], id="linf"),
        # size 1, so both are halved
        pytest.param("l2", [0.3, -0.4], id="l2"),
    ],
)
def test_projection_takes_the_nearest_image_of_the_ball(norm, expected):
    threat = ThreatModel(norm, 0.5, box="none")

    projected = threat.project(row(0.6, -0.8), row(0.0, 0.0))

    assert projected.flatten().tolist() == pytest.approx(expected)


@pytest.mark.parametrize("threat", THREATS)
def test_projection_ends_in_the_ball_and_the_box(threat):
    clean = uniform(0)

    projected = threat.project(uniform(1, low=-2, high=3), clean)

    assert threat.contains(projected, clean).all()
    assert (threat.size(projected - clean) <= threat.epsilon + 1e-6).all()
    assert projected.min() >= 0
    assert projected.max() <= 1


@pytest.mark.parametrize("threat", THREATS)
def test_projecting_twice_is_projecting_once(threat):
    clean = uniform(0)
    once = threat.project(uniform(1, low=-2, high=3), clean)

    twice = threat.project(once, clean)

    torch.testing.assert_close(twice, once, rtol=0, atol=1e-6)


@pytest.mark.parametrize("threat", THREATS)
def test_projection_leaves_an_allowed_image_as_it_is(threat):
    # 0.01 in each of 192 pixels: Linf size 0.01, L2 size 0.01 * sqrt(192) = 0.14
    allowed = GREY + 0.01

    projected = threat.project(allowed, GREY)

    torch.testing.assert_close(projected, allowed, rtol=0, atol=1e-6)


@pytest.mark.parametrize("threat", THREATS)
def test_projection_changes_neither_of_its_inputs(threat):
    clean, adversarial = uniform(0), uniform(1, low=-2, high=3)
    before = clean.clone(), adversarial.clone()

    threat.project(adversarial, clean)

    assert torch.equal(clean, before[0])
    assert torch.equal(adversarial, before[1])


def test_without_a_box_pixels_may_leave_the_range():
    threat = ThreatModel("linf", 0.2, box="none")

    projected = threat.project(row(2.0, -2.0), row(0.9, 0.1))

    assert projected.flatten().tolist() == pytest.approx([1.1, -0.1])


@pytest.mark.parametrize("threat", THREATS)
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_the_steepest_direction_has_unit_norm(threat, scale):
    gradient = uniform(0, low=-1, high=1) * scale

    direction = threat.steepest(gradient)

    assert threat.size(direction).tolist() == pytest.approx([1.0] * 4, rel=1e-5)


@pytest.mark.parametrize(
    ("norm", "dual"),
    [
        # the most that a direction of unit norm can gain: 3 + 4 in Linf, sqrt(9 + 16) in L2
        pytest.param("linf", 7.0, id="linf"),
        pytest.param("l2", 5.0, id="l2"),
    ],
)
def test_the_steepest_direction_gains_the_dual_norm_of_the_gradient(norm, dual):
    gradient = row(3.0, -4.0)

    gain = (ThreatModel(norm, 0.5).steepest(gradient) * gradient).sum()

    assert gain.item() == pytest.approx(dual)


@pytest.mark.parametrize("threat", THREATS)
def test_a_flat_loss_has_no_direction(threat):
    flat = torch.zeros(4, 3, 8, 8)

    direction = threat.steepest(flat)

    assert torch.equal(direction, flat)


@pytest.mark.parametrize("threat", THREATS)
def test_the_surface_lies_at_distance_epsilon(threat):
    noise = uniform(0, low=-1, high=1)

    images = threat.surface(GREY, noise)

    assert threat.size(images - GREY).tolist() == pytest.approx([threat.epsilon] * 4, rel=1e-5)


def test_the_surface_of_linf_is_its_corners():
    threat = ThreatModel("linf", 0.1)

    images = threat.surface(row(0.5, 0.5), row(0.7, -0.2))

    assert images.flatten().tolist() == pytest.approx([0.6, 0.4])


def test_around_fills_the_ball_of_linf_as_the_noise_fills_its_range():
    threat = ThreatModel("linf", 0.1)

    images = threat.around(row(0.5, 0.5), row(0.7, -0.2))

    # 0.5 + 0.1 * 0.7 and 0.5 - 0.1 * 0.2
    assert images.flatten().tolist() == pytest.approx([0.57, 0.48])


def test_around_lies_on_the_sphere_of_l2():
    threat = ThreatModel("l2", 0.1)

    images = threat.around(row(0.5, 0.5), row(0.3, -0.4))

    # the noise has size 0.5: 0.5 + 0.1 * 0.6 and 0.5 - 0.1 * 0.8
    assert images.flatten().tolist() == pytest.approx([0.56, 0.42])


@pytest.mark.parametrize("threat", THREATS)
@pytest.mark.parametrize("method", ["around", "surface"])
def test_a_start_near_the_edge_of_the_pixel_range_stays_allowed(threat, method):
    clean = uniform(0).round()

    images = getattr(threat, method)(clean, uniform(1, low=-1, high=1))

    assert threat.contains(images, clean).all()


@pytest.mark.parametrize("threat", THREATS)
@pytest.mark.parametrize(
    ("factor", "inside"),
    [
        pytest.param(0.99, True, id="inside"),
        pytest.param(1.0, True, id="on-the-sphere"),
        pytest.param(1.000001, True, id="off-by-rounding"),
        pytest.param(1.001, False, id="outside"),
    ],
)
def test_contains_forgives_rounding_and_no_more(threat, factor, inside):
    step = factor * threat.epsilon * threat.steepest(uniform(0, low=-1, high=1))

    found = threat.contains(GREY + step, GREY)

    assert found.tolist() == [inside] * 4


@pytest.mark.parametrize("pixel", [-1e-6, 1.000001, float("nan")], ids=["below", "above", "nan"])
def test_an_image_outside_the_pixel_range_is_not_contained(pixel):
    threat = ThreatModel("linf", 0.5)

    found = threat.contains(row(0.5, pixel), row(0.5, 0.5))

    assert found.tolist() == [False]


def test_without_a_box_the_ball_alone_decides():
    threat = ThreatModel("linf", 0.5, box="none")

    found = threat.contains(row(1.2), row(0.9))

    assert found.tolist() == [True]


def test_each_image_is_judged_alone():
    threat = ThreatModel("linf", 0.1)
    adversarial = GREY.clone()
    adversarial[1, 0, 0, 0] = 0.7

    found = threat.contains(adversarial, GREY)

    assert found.tolist() == [True, False, True, True]


@pytest.mark.parametrize(
    ("written", "number"),
    [
        pytest.param("8/255", 8 / 255, id="fraction"),
        pytest.param(" 8 / 255 ", 8 / 255, id="spaces"),
        pytest.param("0.5/255", 0.5 / 255, id="broken-fraction"),
        pytest.param("0.5", 0.5, id="decimal"),
        pytest.param(".5", 0.5, id="no-leading-zero"),
        pytest.param("1e-3", 0.001, id="exponent"),
        pytest.param(0.5, 0.5, id="float"),
        pytest.param(1e-7, 1e-7, id="tiny-float"),
        pytest.param(3, 3.0, id="integer"),
    ],
)
def test_a_radius_is_read_as_it_is_written(written, number):
    found = radius(written)

    assert found == pytest.approx(number)


@pytest.mark.parametrize(
    "written", ["eight", "", "8/", "/255", "8/0", "nan", "inf", True, None, [0.5]], ids=repr
)
def test_what_is_no_radius_is_refused_with_the_remedy(written):
    with pytest.raises(UsageError, match=r'is no number; write "8/255" or 0\.5'):
        radius(written)


@pytest.mark.parametrize("epsilon", [0.0, -0.1, float("nan")], ids=["zero", "negative", "nan"])
def test_an_epsilon_that_is_not_positive_is_refused(epsilon):
    with pytest.raises(UsageError, match="epsilon must be positive"):
        ThreatModel("linf", epsilon)


@pytest.mark.parametrize("epsilon", [8, 8.0], ids=["integer", "float"])
def test_an_epsilon_in_pixel_values_is_refused_with_the_remedy(epsilon):
    with pytest.raises(UsageError, match="write '8/255', not 8"):
        ThreatModel("linf", epsilon)


def test_an_l2_radius_may_exceed_one():
    threat = ThreatModel("l2", 3.0)

    assert threat.epsilon == 3.0


def test_an_unknown_norm_is_refused_with_the_nearest():
    with pytest.raises(UsageError, match="norm 'linff' is not known; did you mean 'linf'"):
        ThreatModel("linff", 0.1)


def test_an_unknown_box_is_refused_with_the_known_ones():
    with pytest.raises(UsageError, match=re.escape("known are pixels, none")):
        ThreatModel("linf", 0.1, box="pixel-range")
