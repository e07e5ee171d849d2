"""Certified radii: never more than the truth, and near it where the truth is simple."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from harness.api import ModelError
from harness.tensors import Noise
from harness_dual_moe.certificates import (
    added,
    as_printed,
    certified_radius,
    dual_radius,
    mixture_slopes,
    soft_mixture_radius,
    softmax_slopes,
)
from harness_dual_moe.slopes import gap_slopes, spectral_estimate

PIXELS = 3 * 8 * 8
SHAPE = (3, 8, 8)
IMAGES = (Noise(1, torch.arange(16), (3, 8, 8)).uniform(0) / 2 + 0.5).double()
DUAL = {"linf": 1, "l2": 2}

norms = pytest.mark.parametrize("norm", ["linf", "l2"])


def linear(outputs=5, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, outputs)).double().eval()


def two_layers(outputs=5, seed=0):
    torch.manual_seed(seed)
    layers = nn.Flatten(), nn.Linear(PIXELS, 16), nn.ReLU(), nn.Linear(16, outputs)
    return nn.Sequential(*layers).double().eval()


def convolutional(outputs=5, seed=0):
    torch.manual_seed(seed)
    norm = nn.BatchNorm2d(6)
    nn.init.uniform_(norm.weight, -2, 2)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    head = nn.ReLU(), nn.Flatten(), nn.Linear(6 * 4 * 4, outputs)
    convolution = nn.Conv2d(3, 6, 3, stride=2, padding=1)
    return nn.Sequential(convolution, norm, *head).double().eval()


NETWORKS = pytest.mark.parametrize(
    "make", [linear, two_layers, convolutional], ids=["linear", "two-layers", "convolutional"]
)


def steepest(gradient, norm):
    """The perturbation of size 1 that climbs fastest."""
    if norm == "linf":
        return gradient.sign()
    return gradient / gradient.flatten(1).norm(dim=1)[:, None, None, None]


def attacked(outputs_of, images, radius, norm, *, steps=20):
    """Images within a radius of their own that PGD leads across the nearest boundaries."""
    label = outputs_of(images).argmax(dim=1)
    found = []
    for other in range(outputs_of(images).shape[1]):
        moved = torch.zeros_like(images)
        for step in range(steps):
            points = (images + moved).requires_grad_()
            outputs = outputs_of(points)
            loss = outputs[:, other] - outputs.gather(1, label[:, None])[:, 0]
            (gradient,) = torch.autograd.grad(loss.sum(), points)
            share = 1 / (step + 1)
            ascent = steepest(gradient + 1e-30, norm) * radius[:, None, None, None]
            moved = (1 - share) * moved + share * ascent  # a mean of points of the ball is in it
        found.append(images + moved.detach())
    return torch.stack(found)


def assert_unmoved(outputs_of, radius, norm):
    label = outputs_of(IMAGES).argmax(dim=1)
    for points in attacked(outputs_of, IMAGES, radius, norm):
        assert torch.equal(outputs_of(points).argmax(dim=1), label)


@norms
@NETWORKS
def test_no_two_logits_part_faster_than_their_slope(make, norm):
    network = make()

    jacobian = torch.autograd.functional.jacobian(lambda images: network(images).sum(0), IMAGES)

    apart = (jacobian[:, None] - jacobian).flatten(3)
    steepness = torch.linalg.vector_norm(apart, ord=DUAL[norm], dim=3).amax(dim=2)
    assert (steepness <= gap_slopes(network, SHAPE, norm)).all()


def test_a_hidden_layer_moves_unit_by_unit_or_by_the_root_of_its_two_norms():
    hidden, head = nn.Linear(2, 2), nn.Linear(2, 2)
    hidden.weight = nn.Parameter(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    head.weight = nn.Parameter(torch.tensor([[3.0, -4.0], [0.0, 0.0]]))
    network = nn.Sequential(hidden, nn.ReLU(), head).eval()

    # rows sum up to 3 and 7, the head weighs them by 3 and 4: less than 7 * 7 by the largest row
    assert gap_slopes(network, (2,), "linf")[0].tolist() == pytest.approx([0, 3 * 3 + 4 * 7])
    # rows are 5 ** .5 and 5 long, the head 5, columns sum up to 4 and 6: the least of
    # 3 * 5 ** .5 + 4 * 5, of 5 * 42 ** .5, and of 5 * (5 + 25) ** .5
    assert gap_slopes(network, (2,), "l2")[0].tolist() == pytest.approx([0, 3 * 5**0.5 + 20])


def test_power_iteration_stays_below_the_bound_and_is_a_diagnosis_alone():
    torch.manual_seed(0)
    layer = nn.Linear(6, 4).double()

    estimate = spectral_estimate(layer, (6,))

    truth = float(torch.linalg.matrix_norm(layer.weight.detach(), ord=2))
    by_row, by_column = (layer.weight.detach().abs().sum(dim=side).max() for side in (1, 0))
    assert estimate == pytest.approx(truth, rel=1e-3)
    assert estimate <= float((by_row * by_column).sqrt())


@norms
def test_the_radius_of_a_linear_network_is_the_truth(norm):
    network = linear()
    outputs, weight = network(IMAGES).detach(), network[1].weight.detach()

    radius = certified_radius(outputs, gap_slopes(network, SHAPE, norm)[None])

    label = outputs.argmax(dim=1)
    apart = torch.linalg.vector_norm(weight[label][:, None] - weight, ord=DUAL[norm], dim=2)
    gap = outputs.gather(1, label[:, None]) - outputs
    truth = (gap / apart).scatter(1, label[:, None], torch.inf).amin(dim=1)
    assert (radius <= truth).all()
    assert torch.allclose(radius, truth, rtol=1e-12)


def test_the_slopes_of_both_classes_count():
    # margin 1, one logit rises and one falls at slope 2: 1 / (2 + 2), not 1 / 2
    radius = certified_radius(torch.tensor([[1.0, 0.0]]), added(torch.tensor([[2.0, 2.0]])))

    assert radius.item() == pytest.approx(0.25)
    assert radius.item() <= 0.25


@norms
@NETWORKS
def test_nothing_within_the_radius_of_a_network_changes_its_prediction(make, norm):
    network = make()
    with torch.no_grad():
        radius = certified_radius(network(IMAGES), gap_slopes(network, SHAPE, norm)[None])

    assert (radius > 0).all()
    assert_unmoved(network, radius, norm)


@norms
@NETWORKS
def test_nothing_within_the_radius_of_a_soft_mixture_changes_its_prediction(make, norm):
    experts, router = [make(seed=seed) for seed in range(3)], make(outputs=3, seed=9)

    radius = soft_mixture_radius(experts, router, IMAGES, norm=norm)

    def outputs_of(images):
        spoken = torch.stack([expert(images).softmax(dim=1) for expert in experts], dim=1)
        return torch.einsum("ne,nec->nc", router(images).softmax(dim=1), spoken)

    assert (radius > 0).all()
    assert_unmoved(outputs_of, radius, norm)


@norms
@pytest.mark.parametrize("seed", range(3))
def test_nothing_within_the_radius_of_a_dual_model_changes_its_prediction(seed, norm):
    robust, standard = linear(seed=seed), two_layers(seed=seed + 9)
    with torch.no_grad():
        sharp = (8 * robust(IMAGES)).softmax(dim=1)
    moved = added(softmax_slopes(8 * gap_slopes(robust, SHAPE, norm)))[None]

    radius = dual_radius(sharp, moved, alpha=0.8)

    def outputs_of(images):
        spoken = (50 * standard(images)).softmax(dim=1), (8 * robust(images)).softmax(dim=1)
        return 0.2 * spoken[0] + 0.8 * spoken[1]

    is_certified = radius > 0
    assert is_certified.any()
    assert torch.equal(
        outputs_of(IMAGES).argmax(dim=1)[is_certified], sharp.argmax(1)[is_certified]
    )
    assert_unmoved(outputs_of, radius, norm)


def test_a_worked_example():
    slopes_of_both = mixture_slopes(
        torch.tensor([[0.6, 0.4]]),
        gate_slopes=torch.tensor([0.5, 0.5]),
        expert_slopes=torch.tensor([[2.0, 2.0], [3.0, 3.0]]),
    )
    outputs = torch.tensor([[0.75, 0.25]])

    # .5 + .5 + .6 * 2 + .4 * 3 = 3.4; .5 / 6.8; (.8 * .5 - .2) / (.8 * 6.8)
    assert slopes_of_both.tolist() == [pytest.approx([3.4, 3.4])]
    assert certified_radius(outputs, added(slopes_of_both)).item() == pytest.approx(
        0.0735294, abs=1e-6
    )
    dual = dual_radius(outputs, added(slopes_of_both), alpha=0.8)
    assert dual.item() == pytest.approx(0.0367647, abs=1e-6)


def test_a_margin_that_the_standard_half_can_undo_has_no_radius():
    outputs = torch.tensor([[0.6, 0.4]])

    # .5 * .2 is less than .5
    assert dual_radius(outputs, added(torch.ones(1, 2)), alpha=0.5).item() == 0
    assert dual_radius(outputs, added(torch.ones(1, 2)), alpha=1.0).item() == pytest.approx(0.1)


def test_the_softmax_of_one_logit_does_not_move():
    assert softmax_slopes(torch.zeros(1, 1)).tolist() == [0]


@norms
def test_a_softmax_moves_no_faster_than_its_slope(norm):
    network = linear()

    jacobian = torch.autograd.functional.jacobian(
        lambda images: (3 * network(images)).softmax(dim=1).sum(dim=0), IMAGES
    )

    steepness = torch.linalg.vector_norm(jacobian.flatten(2), ord=DUAL[norm], dim=2).amax(dim=1)
    assert (steepness <= softmax_slopes(3 * gap_slopes(network, SHAPE, norm))).all()


@pytest.mark.parametrize(
    ("network", "remedy"),
    [
        (nn.Sequential(nn.GELU(), nn.Linear(2, 2)).eval(), "no slope is known of GELU"),
        (nn.Sequential(nn.Linear(2, 2)).train(), "call eval"),
        (nn.Bilinear(2, 2, 2).eval(), "no slope is known of bilinear"),
    ],
    ids=["layer", "training", "form"],
)
def test_a_network_whose_slopes_are_not_known_is_refused(network, remedy):
    with pytest.raises(ModelError, match=remedy):
        gap_slopes(network, (2,), "linf")


def test_a_network_with_a_hook_is_refused():
    network = nn.Sequential(nn.Linear(2, 2)).eval()
    network[0].register_forward_hook(lambda *_: None)

    with pytest.raises(ModelError, match="forward hooks"):
        gap_slopes(network, (2,), "linf")


def test_a_norm_whose_slopes_are_not_known_is_refused():
    with pytest.raises(ModelError, match="take 'linf' or 'l2'"):
        gap_slopes(linear().eval(), SHAPE, "severity")


def test_the_printed_form_certifies_images_that_move():
    # two probabilities that move apart at slope 1/4 each: the margin closes at 1/2
    logits = torch.tensor([[2.0, 0.0]], dtype=torch.float64)
    outputs = logits.softmax(dim=1)
    slopes = torch.tensor([[0.25, 0.25]])

    def margin(distance):
        moved = (logits + distance * torch.tensor([[-0.5, 0.5]])).softmax(dim=1)
        return float(moved[0, 0] - moved[0, 1])

    sound = certified_radius(outputs, added(slopes)).item()
    printed = certified_radius(outputs, as_printed(slopes)).item()
    assert margin(sound) > 0
    assert margin(printed) < 0
