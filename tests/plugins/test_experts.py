"""Attacks on experts: they find what hides behind a router, at the price that they state."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from harness.api import AttackError, Routing, ThreatModel
from harness.numerics import Batches
from harness.passes import objective_of
from harness.seeing import clean_pass
from harness.tensors import Noise, Routed, Samples, is_fooled, noise_key
from harness.testing import LinearModel, LinearMoE, linear_samples
from harness_attacks.apgd import apgd
from harness_attacks.experts import battery, forced_expert, moe_battery, steered
from harness_attacks.objectives import cross_entropy

THREAT = ThreatModel("linf", 0.1)


class Walled(nn.Module):
    """An affine hard router, and experts of which the one behind its wall is wrong in a strip.

    With p the pixels around grey: p0 below 0.05 goes to expert 0, which is right everywhere and
    whose loss falls towards the wall; above it to expert 1, which is wrong only where p1 lies
    below -0.08, and whose loss falls away from the wall, too, a little.

    Args:
        masked: A straight-through router, whose gradient drowns that of the experts.
    """

    def __init__(self, *, masked=False):
        super().__init__()
        self.masked = masked

    def forward(self, images):
        return self.routed(images).logits

    def routed(self, images, *, routes=None, relaxed=False, detach_router=False):
        p = images.flatten(1) - 0.5
        routing = routes[0] if routes else self.routing(p)
        gates = routing.gates[:, 0].detach() if detach_router else routing.gates[:, 0]
        first, second = p.unbind(dim=1)
        margins = torch.stack([2 + 9 * first + second, 3 * (second + 0.08) + first / 20], dim=1)
        hard = torch.zeros_like(gates).scatter(1, routing.experts[:, 0], 1.0)
        weights = gates if relaxed else hard
        if self.masked and not relaxed:
            weights = hard + gates - gates.detach()
        margin = (weights * margins).sum(dim=1)
        return Routed(torch.stack([margin, -margin], dim=1), (routing,), torch.zeros(len(p)))

    def routing(self, p):
        side = p[:, :1] - 0.05
        scores = 40 * torch.cat([-side, side], dim=1)[:, None]
        experts = scores.argmax(dim=2, keepdim=True)
        return Routing(scores, scores.softmax(dim=2), experts, torch.ones_like(experts).bool())


def grey(count=4, pixels=2):
    return Samples(
        torch.arange(count), torch.full((count, 1, 1, pixels), 0.5), torch.zeros(count).long()
    )


def attacked(run, model, samples, threat=THREAT, **parameters):
    """What an attack finds, and the ledger of its passes."""
    size = Batches(len(samples.ids))
    context = clean_pass(model, samples, batches=size)
    whole = objective_of(model, cross_entropy, samples.labels, batch_size=size.size)
    bound = replace(whole, context=context)
    noise = Noise(noise_key(0, "test"), samples.ids, tuple(samples.images.shape[1:]))
    found = run(bound, samples.images, samples.labels, threat, noise=noise, **parameters)
    return found, bound.ledger


def fools(run, model, samples=None, threat=THREAT, **parameters):
    samples = samples or grey()
    found, _ = attacked(run, model, samples, threat, **parameters)
    return is_fooled(model(found), samples.labels)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_steered_finds_what_hides_behind_the_wall(norm):
    assert fools(steered, Walled(), threat=ThreatModel(norm, 0.1), steps=20).all()


def test_neither_plain_nor_forced_ascent_finds_it():
    # the gradients of both experts point away from the wall; image 1 starts behind it by luck
    assert not fools(apgd, Walled(), grey(1), steps=20).any()
    assert not fools(forced_expert, Walled(), grey(1), steps=20).any()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("stop", ["first", "never"])
@pytest.mark.parametrize("epsilon", [0.04, 0.1, 0.7])
def test_steered_stays_in_the_ball_and_the_pixel_range(norm, stop, epsilon):
    threat = ThreatModel(norm, epsilon)

    found, _ = attacked(steered, Walled(), grey(), threat, steps=5, stop=stop)

    assert threat.contains(found, grey().images).all()


def test_an_expert_out_of_reach_does_no_harm():
    # the wall is 0.05 away: in a ball of 0.04 expert 1 is never chosen, and expert 0 is right
    assert not fools(steered, Walled(), threat=ThreatModel("linf", 0.04), steps=10).any()


def test_steered_attacks_the_expert_of_the_clean_image_first():
    samples = linear_samples()

    found, ledger = attacked(steered, LinearMoE(), samples, ThreatModel("linf", 0.105), steps=10)

    assert is_fooled(LinearModel()(found), samples.labels).all()
    assert ledger.forwards.max() <= 3 * 11


def test_never_keeps_what_an_earlier_expert_fooled():
    # expert 1 is tried second and fools; the ranks beyond the last try the clean one again
    class Backwards(Walled):
        def routing(self, p):
            found = super().routing(p)
            return replace(found, gate_logits=-found.gate_logits) if p.abs().max() == 0 else found

    first = fools(steered, Backwards(), steps=20)
    never = fools(steered, Backwards(), steps=20, stop="never")

    assert first.all()
    assert torch.equal(first, never)


def test_starting_points_replay_a_run_and_are_not_changed():
    start = [torch.full((4, 1, 1, 2), 0.5), torch.full((4, 1, 1, 2), 0.45)]

    first, _ = attacked(steered, Walled(), grey(), start=start, steps=9)
    again, _ = attacked(steered, Walled(), grey(), start=start, steps=9)

    assert torch.equal(first, again)
    assert (start[1] == 0.45).all()


def test_no_steps_look_at_the_start_alone():
    _, ledger = attacked(steered, Walled(), grey(), steps=0)

    assert ledger.forwards.tolist() == [3 * 2] * 4


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"init": "zero"}, "write 'random' or 'clean'"),
        ({"stop": "always"}, "write 'first' or 'never'"),
        ({"start": [grey().images]}, "start must hold 2 batches"),
        ({"experts": 0}, "experts must be at least 1"),
    ],
)
def test_steered_refuses_what_it_does_not_know(changes, remedy):
    with pytest.raises(AttackError, match=remedy):
        attacked(steered, Walled(), grey(), **changes)


@pytest.mark.parametrize("run", [steered, forced_expert])
def test_a_dense_model_has_no_experts_to_force(run):
    with pytest.raises(AttackError, match="the model has none; take 'apgd'"):
        attacked(run, LinearModel(), linear_samples())


class Masked(LinearMoE):
    """A straight-through router whose gradient points away from where the experts are wrong.

    Its values are those of `LinearModel`; the gate of the chosen expert adds a gradient ten times
    as long, towards brighter images.
    """

    def routed(self, images, *, routes=None, relaxed=False, detach_router=False):
        found = super().routed(images, routes=routes)
        bright = images.flatten(1).mean(dim=1, keepdim=True)
        is_cut = routes is not None or detach_router or relaxed
        slope = bright.detach() if is_cut else bright
        wrong = torch.cat([10 * slope, -10 * slope], dim=1)
        return found._replace(logits=found.logits + wrong - wrong.detach())


@pytest.mark.parametrize("run", [forced_expert, moe_battery])
def test_experts_are_found_whose_gradient_the_router_hides(run):
    samples, threat = linear_samples(), ThreatModel("linf", 0.105)

    assert not fools(apgd, Masked(), samples, threat, steps=20).any()
    assert fools(run, Masked(), samples, threat, steps=20).all()


def unbeatable(experts):
    """A dense model, or so many experts, and images out of reach."""
    return LinearModel() if experts == 0 else LinearMoE(num_experts=experts)


@pytest.mark.parametrize("experts", [0, 1, 2, 3, 5, 8])
def test_the_battery_costs_every_model_the_same(experts):
    steps = 10

    _, ledger = attacked(moe_battery, unbeatable(experts), linear_samples(), steps=steps, experts=4,
                         threat=ThreatModel("linf", 0.05))  # fmt: skip

    # detached 2N + 1; relaxed and four experts 3N + 2 each; one pass more judges each part:
    # 17N + 11 + 6 = 187 for N = 10; steering 5 experts by 5 (0.4N + 1) each, one pass to judge it:
    # 10N + 26 more; up to one restart of 2N + 1 more where restarts fill up
    spent = (ledger.forwards + ledger.backwards).unique().tolist()
    assert len(spent) == 1
    assert 27 * steps <= spent[0] <= 27 * steps + 43 + 2 * steps + 1


@pytest.mark.parametrize("experts", [0, 2, 5])
def test_the_card_of_the_battery_states_at_least_what_it_costs(registry, experts):
    card = registry.find("attacks", "moe-battery").card

    _, ledger = attacked(moe_battery, unbeatable(experts), linear_samples(), steps=7, experts=4,
                         threat=ThreatModel("linf", 0.05))  # fmt: skip

    assert ledger.forwards.max() <= card.passes({"steps": 7, "experts": 4})


def test_forcing_costs_what_its_card_states(registry):
    for_card = {"steps": 7, "experts": 3}
    card = registry.find("attacks", "forced-expert").card

    _, ledger = attacked(
        forced_expert, LinearMoE(), linear_samples(), ThreatModel("linf", 0.05), **for_card
    )

    assert ledger.forwards.tolist() == [card.passes(for_card)] * 8


@pytest.mark.parametrize("name", ["detached", "relaxed", "expert 1", "steered"])
def test_the_battery_is_no_weaker_than_its_parts(name):
    parts = {part.name: part for part in battery((2,), experts=1, steps=20)}

    alone = fools(parts[name], Walled(masked=True))
    together = fools(partial(moe_battery, steps=20, experts=1), Walled(masked=True))

    assert not (alone & ~together).any()
