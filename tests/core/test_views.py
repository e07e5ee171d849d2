"""Views: what an attack sees of a routed model, and what decides whether it fooled it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from harness.errors import AttackError, UsageError
from harness.numerics import Batches
from harness.passes import objective_of
from harness.seeing import clean_pass, router_is_hard, seen
from harness.tensors import Noise, Samples
from harness.testing import LinearModel, ToyMoE, linear_samples
from harness.views import FULL, View

SHAPE = (3, 4, 4)
VARIANTS = ("none", "straight-through", "soft")
LABELS = torch.arange(12) % 5


def images(key=0):
    return Noise(key, torch.arange(12), SHAPE).uniform(0) / 2 + 0.5


def moe(gradient):
    """The same weights in every variant."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ToyMoE(5, SHAPE, gradient=gradient)
        torch.nn.init.normal_(model.router.weight)
    return model.eval().requires_grad_(requires_grad=False)


def objective(model, view="full", **about):
    samples = Samples(torch.arange(12), images(), LABELS)
    context = clean_pass(model, samples, batches=Batches(64))
    whole = objective_of(model, lambda outcome: -outcome.margin, LABELS, batch_size=64)
    return replace(whole, context=context).through(View(view, **about))


def logits_of_expert(model, content, chosen):
    """By hand: the rows of the chosen expert times the pixels around grey."""
    return torch.einsum("ncd,nd->nc", model.experts[chosen], content.flatten(1) - 0.5)


@pytest.mark.parametrize("gradient", VARIANTS)
def test_a_detached_gradient_is_that_of_the_experts_on_fixed_routes(gradient):
    model = moe(gradient)

    detached, cut = objective(model, "detached").gradient(images())
    experts, fixed = objective(model, "experts").gradient(images())

    assert torch.allclose(detached.logits, experts.logits, atol=1e-6)
    assert torch.allclose(cut, fixed, atol=1e-6)
    assert cut.any()


def test_the_gradient_of_a_hard_route_is_the_row_of_its_expert():
    model = moe("none")
    chosen = model.routed(images()).routes[0].experts[:, 0, 0]

    score, gradient = objective(model, "detached").gradient(images())

    # -margin = (best other row - own row) . pixels, so that its gradient is that difference
    other = score.logits.scatter(1, LABELS[:, None], float("-inf")).argmax(dim=1)
    rows = model.experts[chosen, other] - model.experts[chosen, LABELS]
    assert torch.allclose(gradient.flatten(1), rows, atol=1e-6)


@pytest.mark.parametrize("gradient", ["none", "straight-through"])
def test_relaxed_a_hard_router_is_climbed_as_the_soft_one_it_is_not(gradient):
    soft, expected = objective(moe("soft")).gradient(images(1))

    score, found = objective(moe(gradient), "relaxed").gradient(images(1))

    assert torch.allclose(score.logits, soft.logits, atol=1e-6)
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("view", ["relaxed", "forced"])
def test_the_verdict_on_what_a_surrogate_view_climbs_is_the_models_own(view):
    own = objective(moe("none")).score(images(1))

    score = objective(moe("none"), view, rank=1).score(images(1))

    assert not torch.allclose(score.logits, own.logits, atol=1e-3)
    assert torch.equal(score.fooled, own.fooled)
    assert torch.equal(score.margin, own.margin)


def two_experts(second):
    """Two pixels: the first chooses the expert, the second is what they look at.

    With p = pixel - 0.5, the gates are softmax(-p0, p0); expert 0 gives the logits (p1, -p1),
    expert 1 gives `second` times these.
    """
    model = ToyMoE(2, (1, 1, 2), num_experts=2).eval().requires_grad_(requires_grad=False)
    model.router.weight.copy_(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))
    model.router.bias.zero_()
    first = torch.tensor([[0.0, 1.0], [0.0, -1.0]])
    model.experts.copy_(torch.stack([first, second * first]))
    return model


@pytest.mark.parametrize(
    ("shift", "second", "margin", "is_fooled"),
    [
        # expert 0 is chosen: margin 2 * 0.1; mixed 0.505 * 0.2 - 0.495 * 0.6 < 0 says fooled
        pytest.param(-0.01, -3.0, 0.2, False, id="only the mixture is fooled"),
        # expert 1 is chosen: margin -0.5 * 0.2; mixed 0.495 * 0.2 - 0.505 * 0.1 > 0 says right
        pytest.param(0.01, -0.5, -0.1, True, id="only the model is fooled"),
    ],
)
def test_a_mixture_that_disagrees_has_no_say(shift, second, margin, is_fooled):
    model = two_experts(second)
    point = torch.tensor([[[[0.5 + shift, 0.6]]]])
    samples = Samples(torch.tensor([0]), point, torch.tensor([0]))
    context = clean_pass(model, samples, batches=Batches(8))
    whole = objective_of(model, lambda outcome: -outcome.margin, samples.labels, batch_size=8)

    score = replace(whole, context=context).through(View("relaxed")).score(point)

    assert score.margin.item() == pytest.approx(margin, abs=1e-6)
    assert score.fooled.item() is is_fooled
    assert (score.loss > 0).item() is not is_fooled


def test_the_experts_view_replays_the_routes_of_the_clean_images():
    model = moe("none")
    clean = model.routed(images()).routes[0].experts[:, 0, 0]
    attacked = model.routed(images(1)).routes[0].experts[:, 0, 0]

    score = objective(model, "experts").score(images(1))

    assert (clean != attacked).any()
    assert torch.allclose(score.logits, logits_of_expert(model, images(1), clean), atol=1e-6)


def test_the_router_view_sees_the_attacked_images_through_their_routes_alone():
    model = moe("none")
    attacked = model.routed(images(1)).routes[0].experts[:, 0, 0]

    score = objective(model, "router").score(images(1))

    assert torch.allclose(score.logits, logits_of_expert(model, images(), attacked), atol=1e-6)


def test_a_hard_router_is_climbed_mixed_and_judged_hard_in_the_routers_view():
    model = moe("none")
    hard = objective(model, "router").score(images(1))

    score, gradient = objective(model, "router", is_mixed=True).gradient(images(1))

    assert router_is_hard(model, images())
    assert gradient.flatten(1).any(dim=1).all()
    assert torch.equal(score.fooled, hard.fooled)
    assert torch.equal(score.margin, hard.margin)


@pytest.mark.parametrize("gradient", ["straight-through", "soft"])
def test_the_routers_view_has_a_gradient_where_the_gates_have_one(gradient):
    model = moe(gradient)

    _, gradient = objective(model, "router").gradient(images(1))

    assert not router_is_hard(model, images())
    assert gradient.flatten(1).any(dim=1).all()


@pytest.mark.parametrize("gradient", ["none", "straight-through"])
def test_the_likeliest_expert_forced_is_the_clean_pass(gradient):
    model = moe(gradient)

    score = objective(model, "forced", rank=0).score(images())

    assert torch.allclose(score.logits, model(images()), atol=1e-6)


@pytest.mark.parametrize(("rank", "place"), [(1, 1), (3, 3), (9, 3)])
def test_the_expert_of_a_rank_is_forced_and_beyond_the_last_the_last(rank, place):
    model = moe("none")
    order = model.router(images().flatten(1) - 0.5).argsort(dim=1, descending=True)

    score = objective(model, "forced", rank=rank).score(images(1))

    expected = logits_of_expert(model, images(1), order[:, place])
    assert torch.allclose(score.logits, expected, atol=1e-6)


def test_the_routers_view_costs_two_passes_and_the_confirmation_two_more():
    plain, mixed = (objective(moe("none"), "router", is_mixed=mixed) for mixed in (False, True))

    plain.gradient(images())
    mixed.gradient(images())

    assert plain.ledger.forwards.tolist() == [2] * 12
    assert plain.ledger.backwards.tolist() == [2] * 12
    assert mixed.ledger.forwards.tolist() == [4] * 12


@pytest.mark.parametrize("name", ["detached", "relaxed", "forced"])
def test_a_dense_model_looks_the_same_in_the_views_of_attacks(name):
    whole = objective_of(LinearModel(), lambda outcome: -outcome.margin, LABELS, batch_size=8)

    assert whole.through(View(name, rank=0)).view == FULL


@pytest.mark.parametrize("name", ["experts", "router"])
def test_a_dense_model_cannot_be_judged_by_its_routes(name):
    whole = objective_of(LinearModel(), lambda outcome: -outcome.margin, LABELS, batch_size=8)

    with pytest.raises(AttackError, match="take view 'full'"):
        whole.through(View(name)).score(linear_samples(12).images)


def test_a_view_of_routes_asks_for_the_clean_images():
    with pytest.raises(AttackError, match="needs the clean images"):
        seen(moe("none"), images(), View("experts"))


@pytest.mark.parametrize("name", ["full", "relaxed", "router"])
def test_an_attack_with_views_of_its_own_is_not_judged_in_a_part_of_the_model(name):
    with pytest.raises(AttackError, match="judged in view 'experts'; take one that has no views"):
        objective(moe("none"), "experts").through(View(name))


def test_a_view_that_is_not_known_is_refused_with_the_nearest_name():
    with pytest.raises(UsageError, match="did you mean 'relaxed'"):
        View("relaxd")


def test_a_rank_below_the_likeliest_is_refused():
    with pytest.raises(UsageError, match="must be 0 or more"):
        View("forced", rank=-1)


@pytest.mark.parametrize(
    ("view", "judge"),
    [
        (View("full"), FULL),
        (View("detached"), FULL),
        (View("relaxed"), FULL),
        (View("forced", rank=2), FULL),
        (View("experts"), View("experts")),
        (View("router", is_mixed=True), View("router")),
    ],
)
def test_only_views_for_diagnosis_judge_themselves(view, judge):
    assert view.judge == judge
