"""Probes of routes: numbers worked out by hand, and laws that every model's routes keep."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from harness.api import Routing, ThreatModel
from harness.testing import LinearModel, LinearMoE, ToyMoE, observed
from harness_metrics import routes
from harness_metrics.probes import input_gradient, mediation
from harness_metrics.routing_probes import (
    expert_load,
    noisy,
    router,
    routing_change,
    routing_noise,
)

LINF = ThreatModel("linf", 0.2)
ALL = (routing_change, routing_noise, router, expert_load, mediation)


def moe(gradient="none"):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ToyMoE(3, (1, 4, 4), gradient=gradient)
        torch.nn.init.normal_(model.router.weight)
    return model.eval().requires_grad_(requires_grad=False)


def observation(model=None, *, shift=0.2, threat=LINF, count=11):
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(count, 1, 4, 4, generator=generator) / 2 + 0.25
    signs = torch.randint(0, 2, clean.shape, generator=generator) * 2 - 1
    labels = torch.arange(count) % 3
    return observed(model or moe(), labels, clean, clean + shift * signs, threat=threat)


def routing(logits, num_selected, kept=None):
    scores = torch.tensor(logits)
    experts = scores.argsort(dim=2, descending=True)[:, :, :num_selected]
    is_kept = torch.ones_like(experts).bool() if kept is None else torch.tensor(kept)
    return Routing(scores, scores.softmax(2), experts, is_kept)


@pytest.mark.parametrize(
    ("num_experts", "num_selected", "expected"),
    [
        # K = 1: the same expert with chance 1/E
        (8, 1, 7 / 8),
        # two of four: 1/6 share both (1), 4/6 one (1/3), 1/6 none: 1 - 7/18
        (4, 2, 11 / 18),
        # two of three: 1/3 share both, 2/3 one: 1 - (1/3 + 2/9)
        (3, 2, 4 / 9),
        (5, 5, 0),
    ],
)
def test_the_level_of_chance_by_hand(num_experts, num_selected, expected):
    assert routes.chance_change(num_experts, num_selected) == pytest.approx(expected)


@pytest.mark.parametrize(("num_experts", "num_selected"), [(6, 2), (7, 3), (5, 4)])
def test_the_level_of_chance_is_the_mean_over_all_pairs_of_sets(num_experts, num_selected):
    sets = [set(chosen) for chosen in combinations(range(num_experts), num_selected)]
    overlaps = [len(one & other) / len(one | other) for one in sets for other in sets]

    found = routes.chance_change(num_experts, num_selected)

    assert found == pytest.approx(1 - sum(overlaps) / len(overlaps))


def test_a_drop_changes_what_was_executed_but_not_what_was_intended():
    before = routing([[[3.0, 2.0, 1.0]]], 2)
    after = routing([[[3.0, 2.0, 1.0]]], 2, kept=[[[True, False]]])

    assert routes.change(before, after).item() == 0.5
    assert routes.change(before.intended, after.intended).item() == 0
    assert routes.drops(after).item() == 0.5


def test_flips_count_first_experts_alone_and_change_counts_sets():
    before, after = routing([[[3.0, 2.0, 1.0]]], 2), routing([[[2.0, 3.0, 1.0]]], 2)

    assert routes.flips(before, after).item() == 1
    assert routes.change(before, after).item() == 0


def test_the_margin_is_the_gap_between_the_last_chosen_and_the_next():
    # token 0: 2 - 1; token 1: 5 - 1
    found = routes.router_margin(routing([[[3.0, 2.0, 1.0], [1.0, 5.0, 7.0]]], 2))

    assert found.item() == pytest.approx(2.5)


def test_the_divergence_of_gates_by_hand():
    before = routing([[[0.0, 0.0]]], 1)
    after = routing([[[0.0, 1.0986122886681098]]], 1)  # log 3: gates 1/4 and 3/4

    # 1/2 log(1/2 / 1/4) + 1/2 log(1/2 / 3/4) = 1/2 log(4/3)
    assert routes.divergence(before, after).item() == pytest.approx(0.14384, abs=1e-5)


def test_loads_count_the_choices_that_were_kept():
    chosen = routing([[[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]]], 2, [[[True, True], [True, False]]])

    # token 0: experts 0 and 1; token 1: expert 2, and expert 1 without a place
    assert routes.loads(chosen).tolist() == [[1, 1, 1]]


def test_images_that_nobody_changed_keep_their_routes():
    found = routing_change(observation(shift=0.0))

    measured = {name: values for name, values in found.items() if not name.startswith("chance.")}
    assert len(measured) == 4
    assert not torch.stack(list(measured.values())).any()


def test_expert_loads_sum_to_the_choices_of_an_image():
    found = expert_load(observation())

    attacked = [values for name, values in found.items() if name.startswith("load.")]
    assert len(attacked) == 4
    assert torch.stack(attacked).sum(dim=0).tolist() == [1.0] * 11


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_noise_is_as_large_as_the_perturbation_of_each_image(norm):
    threat = ThreatModel(norm, 1.0)
    seen = observation(threat=threat, shift=0.1)

    images = noisy(seen)

    wanted = threat.size(seen.adversarial_images - seen.clean_images)
    assert torch.allclose(threat.size(images - seen.clean_images), wanted, atol=1e-6)
    assert not torch.equal(images, seen.adversarial_images)


def test_noise_stays_in_the_pixel_range():
    images = noisy(observation(shift=0.25))

    assert images.min() >= 0
    assert images.max() <= 1


def test_a_corruption_has_no_noise_of_its_size():
    assert routing_noise(observation(threat=ThreatModel("severity", 1))) == {}


@pytest.mark.parametrize("probe", ALL)
def test_a_dense_model_has_no_routes_to_measure(probe):
    assert probe(observation(LinearModel(3))) == {}


@pytest.mark.parametrize("probe", ALL)
def test_an_image_is_measured_alike_alone_and_among_others(probe):
    whole = observation()
    parts = [part[3:4] for part in whole[1:6]]
    alone = whole._replace(
        labels=parts[0],
        clean_images=parts[1],
        adversarial_images=parts[2],
        clean_logits=parts[3],
        adversarial_logits=parts[4],
        clean_routes=tuple(item.rows(torch.tensor([3])) for item in whole.clean_routes),
        adversarial_routes=tuple(item.rows(torch.tensor([3])) for item in whole.adversarial_routes),
        noise=whole.noise.rows(torch.tensor([3])),
    )

    together, single = probe(whole), probe(alone)

    assert together.keys() == single.keys()
    assert {name: values[3].item() for name, values in together.items()} == pytest.approx(
        {name: values.item() for name, values in single.items()}, abs=1e-6
    )


def test_mediation_is_right_exactly_where_each_combination_is():
    seen = observation()
    model, labels = seen.model, seen.labels
    clean, attacked = seen.clean_images, seen.adversarial_images
    combined = {
        "neither": model(clean),
        "experts": model.routed(attacked, routes=seen.clean_routes).logits,
        "router": model.routed(clean, routes=seen.adversarial_routes).logits,
        "both": model(attacked),
    }

    found = mediation(seen)

    right = {
        f"mediation.{name}": (logits.argmax(dim=1) == labels).float().tolist()
        for name, logits in combined.items()
    }
    assert {name: values.tolist() for name, values in found.items() if name in right} == right


def test_experts_that_are_all_alike_leave_nothing_to_the_router():
    model = LinearMoE()
    clean = torch.full((8, 3, 8, 8), 0.55)
    seen = observed(model, torch.ones(8, dtype=torch.int64), clean, clean - 0.1, threat=LINF)

    found = mediation(seen)

    assert found["mediation.router"].all()
    assert not found["mediation.experts"].any()
    assert not found["mediation.both"].any()


@pytest.mark.parametrize(("norm", "order"), [("linf", 1), ("l2", 2)])
def test_the_gradient_is_measured_in_the_dual_norm(norm, order):
    seen = observation(LinearModel(3), threat=ThreatModel(norm, 0.2))
    points = seen.clean_images.clone().requires_grad_()
    torch.nn.functional.cross_entropy(seen.model(points), seen.labels, reduction="sum").backward()

    found = input_gradient(seen)

    expected = points.grad.flatten(1).norm(order, dim=1)
    assert torch.allclose(found["clean.input_gradient"], expected, atol=1e-6)
