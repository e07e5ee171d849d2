"""FAB-T's projections against brute force, and its laws on models whose boundary is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import Bounds, LinearConstraint, linprog, minimize
from torch import nn

from harness.api import AttackError, ThreatModel
from harness.ledger import Ledger
from harness.passes import objective_of
from harness.tensors import Noise, Samples, is_fooled
from harness.testing import LinearModel, ToyMoE, linear_distance, linear_samples
from harness_attacks.fab import fab, l2_step, linf_step
from harness_attacks.objectives import negative_margin

NORMS = pytest.mark.parametrize("norm", ["linf", "l2"])
RADII = pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.02), ("l2", 0.2)])
STEPS = {"linf": linf_step, "l2": l2_step}
EVERYWHERE = {"linf": ThreatModel("linf", 1.0), "l2": ThreatModel("l2", 100.0)}


def planes(share, *, count=20, pixels=6):
    """Points in [0, 1] and planes that lie at a share of the way to the last corner of the box."""
    torch.manual_seed(0)
    points = torch.rand(count, 1, 1, pixels)
    normal = torch.randn_like(points)
    points[:5, ..., 0], normal[:5, ..., 1] = 0, 0  # no room, no influence
    room = torch.where(normal * share > 0, 1 - points, points)
    return points, normal, share * (normal.abs() * room).flatten(1).sum(dim=1)


def brute_force(norm, points, normal, rise):
    rows = (part.flatten(1).double().numpy() for part in (points, normal, rise[:, None]))
    solve = {"linf": solved_linf, "l2": solved_l2}[norm]
    return np.stack([solve(*row) for row in zip(*rows, strict=True)])


def solved_linf(point, normal, rise):
    """The length of the step, from the linear programme min m, |d_i| <= m."""
    pixels = len(point)
    eye, ones = np.eye(pixels), np.ones((pixels, 1))
    solution = linprog(
        np.append(np.zeros(pixels), 1),
        A_ub=np.block([[eye, -ones], [-eye, -ones]]),
        b_ub=np.zeros(2 * pixels),
        A_eq=np.append(normal, 0)[None],
        b_eq=rise,
        bounds=[*zip(-point, 1 - point, strict=True), (0, None)],
    )
    assert solution.success
    return solution.x[-1:]


def solved_l2(point, normal, rise):
    """The step itself, which is unique."""
    solution = minimize(
        lambda step: (step**2).sum(),
        np.zeros_like(point),
        jac=lambda step: 2 * step,
        bounds=Bounds(-point, 1 - point),
        constraints=LinearConstraint(normal[None], rise, rise),
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 500},
    )
    assert solution.success
    return solution.x


@pytest.mark.parametrize("share", [0.05, 0.4, 0.9, 0.999, -0.4, -0.9])
def test_the_linf_step_is_as_short_as_the_linear_programme_says(share):
    problem = planes(share)

    step = linf_step(*problem).flatten(1)

    expected = brute_force("linf", *problem)[:, 0]
    np.testing.assert_allclose(step.abs().amax(dim=1).numpy(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("share", [0.05, 0.4, 0.9, 0.999, -0.4, -0.9])
def test_the_l2_step_is_the_quadratic_programmes(share):
    problem = planes(share)

    step = l2_step(*problem).flatten(1)

    np.testing.assert_allclose(step.numpy(), brute_force("l2", *problem), rtol=0, atol=1e-4)


@NORMS
@pytest.mark.parametrize("pixels", [6, 3072])
@pytest.mark.parametrize("share", [0.05, 0.4, 0.9, 1.0, -0.4, 0.0])
def test_a_step_ends_on_the_plane_and_in_the_box(norm, pixels, share):
    points, normal, rise = planes(share, pixels=pixels)

    step = STEPS[norm](points, normal, rise)

    reached = (normal * step).flatten(1).sum(dim=1)
    assert torch.allclose(reached, rise, rtol=1e-4, atol=1e-5)
    assert (points + step).min() >= -1e-6
    assert (points + step).max() <= 1 + 1e-6


@NORMS
@pytest.mark.parametrize("share", [1.5, -1.5, float("inf")])
def test_a_plane_outside_the_box_is_approached_to_the_nearest_corner(norm, share):
    points, normal, rise = planes(share)

    step = STEPS[norm](points, normal, rise)

    uphill = normal * share > 0
    corner = torch.where(normal == 0, points, uphill.float())
    assert torch.allclose(points + step, corner, atol=1e-6)


@NORMS
def test_the_length_of_the_normal_does_not_matter(norm):
    points, normal, rise = planes(0.4)

    step = STEPS[norm](points, normal * 1e-25, rise * 1e-25)

    assert torch.allclose(step, STEPS[norm](points, normal, rise), atol=1e-6)


@NORMS
@pytest.mark.parametrize("rise", [0.0, 1.0])
def test_without_a_gradient_there_is_no_step(norm, rise):
    points, normal, _ = planes(1.0)

    step = STEPS[norm](points, torch.zeros_like(normal), torch.full((20,), rise))

    assert torch.equal(step, torch.zeros_like(points))


def attack(samples, threat, *, ledger=None, model=None, **parameters):
    count = len(samples.ids)
    objective = objective_of(
        model or LinearModel(),
        negative_margin,
        samples.labels,
        batch_size=count,
        ledger=ledger,
    )
    noise = Noise(0, samples.ids, (3, 8, 8))
    parameters = {"steps": 20, **parameters}
    return fab(objective, samples.images, samples.labels, threat, noise=noise, **parameters)


def random_case(count=64):
    """A model of four classes with curved boundaries, and images that it gets right."""
    torch.manual_seed(0)
    model = ToyMoE(4, (3, 8, 8), gradient="soft").requires_grad_(False)
    images = Noise(5, torch.arange(count), (3, 8, 8)).uniform(0) / 2 + 0.5
    return model, Samples(torch.arange(count), images, model(images).argmax(dim=1))


class Steep(nn.Module):
    """Three classes; of those the image is not, the likelier one grows ten times more slowly."""

    def forward(self, images):
        darker = 0.6 - images.flatten(1).mean(dim=1)
        # the others lead where the image is 0.5 and 0.1 darker
        return torch.stack([0 * darker, 0.2 * darker - 0.1, 2 * darker - 0.2], dim=1)


class Bowl(nn.Module):
    """Two classes; the margin has no gradient where every pixel is 0.6."""

    def forward(self, images):
        square = (images - 0.6).square().flatten(1).mean(dim=1)
        return torch.stack([1 - 200 * square, 0 * square], dim=1)


def grey_samples():
    """Images whose pixels are all 0.6, of class 0."""
    samples = linear_samples()
    return samples._replace(labels=torch.zeros_like(samples.labels))


@NORMS
def test_finds_the_true_distance_to_the_boundary(norm):
    samples, threat = linear_samples(), EVERYWHERE[norm]

    found = attack(samples, threat, stop="never")

    assert is_fooled(LinearModel()(found), samples.labels).all()
    expected = pytest.approx([linear_distance(norm)] * 8, rel=0.01)
    assert threat.size(found - samples.images).tolist() == expected


@NORMS
@pytest.mark.parametrize(("factor", "fooled"), [(1.05, True), (0.95, False)])
def test_fools_exactly_the_images_within_reach(norm, factor, fooled):
    samples = linear_samples()

    found = attack(samples, ThreatModel(norm, factor * linear_distance(norm)))

    assert is_fooled(LinearModel()(found), samples.labels).tolist() == [fooled] * 8


@NORMS
def test_an_image_whose_fooling_points_lie_outside_comes_back_clean(norm):
    samples = linear_samples()

    found = attack(samples, ThreatModel(norm, 0.95 * linear_distance(norm)))

    assert torch.equal(found, samples.images)


@RADII
@pytest.mark.parametrize("stop", ["first", "never"])
def test_stays_in_the_ball_and_the_pixel_range(norm, epsilon, stop):
    model, samples = random_case()
    threat = ThreatModel(norm, epsilon)

    found = attack(samples, threat, model=model, stop=stop)

    assert threat.contains(found, samples.images).all()


@RADII
def test_the_same_seed_gives_the_same_images_and_changes_no_input(norm, epsilon):
    model, samples = random_case()
    before = samples.images.clone()

    found = attack(samples, ThreatModel(norm, epsilon), model=model, restarts=2)
    again = attack(samples, ThreatModel(norm, epsilon), model=model, restarts=2)

    assert torch.equal(found, again)
    assert torch.equal(samples.images, before)


@RADII
def test_an_image_fares_the_same_alone_and_in_a_batch(norm, epsilon):
    model, samples = random_case(16)
    threat = ThreatModel(norm, epsilon)

    together = attack(samples, threat, model=model, restarts=2)
    alone = [
        attack(samples.rows(torch.tensor([row])), threat, model=model, restarts=2)
        for row in range(16)
    ]

    assert torch.allclose(torch.cat(alone), together, atol=1e-5)


@RADII
def test_leaving_the_race_changes_no_verdict(norm, epsilon):
    model, samples = random_case()

    stopped = attack(samples, ThreatModel(norm, epsilon), model=model)
    endured = attack(samples, ThreatModel(norm, epsilon), model=model, stop="never")

    fooled = is_fooled(model(stopped), samples.labels)
    assert torch.equal(fooled, is_fooled(model(endured), samples.labels))
    assert 0 < fooled.sum() < 64


@pytest.mark.parametrize(("targets", "fooled"), [(1, False), (2, True), (9, True)])
def test_the_nearest_class_need_not_be_the_likeliest(targets, fooled):
    samples = grey_samples()

    found = attack(samples, ThreatModel("linf", 0.2), model=Steep(), targets=targets)

    assert is_fooled(Steep()(found), samples.labels).tolist() == [fooled] * 8


@NORMS
@pytest.mark.parametrize(("restarts", "fooled"), [(1, False), (2, True)])
def test_a_random_start_leaves_a_flat_place(norm, restarts, fooled):
    samples = grey_samples()
    # epsilon is 0.1 in each pixel; the boundary lies at (1 / 200) ** 0.5 = 0.0707
    threat = ThreatModel(norm, linear_distance(norm))

    found = attack(samples, threat, model=Bowl(), restarts=restarts)

    assert is_fooled(Bowl()(found), samples.labels).tolist() == [fooled] * 8


def test_an_image_that_is_wrong_from_the_start_comes_back_as_it_is():
    samples = linear_samples()
    wrong = samples._replace(labels=1 - samples.labels)

    found = attack(wrong, ThreatModel("linf", 0.3))

    assert torch.equal(found, samples.images)


def test_passes_are_counted_as_the_card_says():
    model, samples = random_case(2)
    ledger = Ledger(2, torch.device("cpu"))

    attack(samples, ThreatModel("linf", 1e-4), model=model, ledger=ledger, steps=10, restarts=2)

    # one pass ranks the 3 other classes; 2 * 3 walks of 10 steps, of one gradient and one verdict
    assert ledger.forwards.tolist() == [121, 121]
    assert ledger.backwards.tolist() == [60, 60]


@pytest.mark.parametrize(
    ("norm", "stop", "remedy"),
    [("linf", "always", "write 'first' or 'never'"), ("severity", "first", "write 'linf' or 'l2'")],
    ids=["stop", "norm"],
)
def test_what_it_does_not_know_is_refused(norm, stop, remedy):
    with pytest.raises(AttackError, match=remedy):
        attack(linear_samples(), ThreatModel(norm, 1), stop=stop)
