"""Routings: an expert forced in the place of another, worked out by hand."""

from __future__ import annotations

import torch

from harness.routing import Routing


def routing():
    """One image, two tokens, three experts, two of them chosen for each token."""
    scores = torch.tensor([[[3.0, 2.0, 1.0], [0.0, 1.0, 2.0]]])
    gates = torch.tensor([[[0.6, 0.3, 0.1], [0.2, 0.3, 0.5]]])
    experts = torch.tensor([[[0, 1], [2, 1]]])
    return Routing(scores, gates, experts, torch.tensor([[[False, True], [True, False]]]))


def test_a_forced_expert_changes_places_with_the_first():
    forced = routing().forced(1)

    # token 0: 0 and 1 change places; token 1: 2 and 1
    assert forced.experts.tolist() == [[[1, 0], [1, 2]]]
    expected = torch.tensor([[[0.3, 0.6, 0.1], [0.2, 0.5, 0.3]]])
    assert torch.equal(forced.gates, expected)
    assert forced.gate_logits.tolist() == [[[2.0, 3.0, 1.0], [0.0, 2.0, 1.0]]]


def test_a_forced_expert_from_outside_replaces_the_first():
    forced = routing().forced(2)

    # token 0: expert 2 for 0; token 1: expert 0 for 2
    assert forced.experts.tolist() == [[[2, 1], [0, 1]]]
    assert torch.equal(forced.gates, torch.tensor([[[0.1, 0.3, 0.6], [0.5, 0.3, 0.2]]]))


def test_capacity_does_not_drop_a_forced_expert_and_nothing_given_is_changed():
    given = routing()

    forced = given.forced(2)

    assert forced.kept.tolist() == [[[True, True], [True, False]]]
    assert given.kept.tolist() == [[[False, True], [True, False]]]
    assert torch.equal(forced.gates.sum(dim=2), given.gates.sum(dim=2))


def test_the_intended_routing_dropped_nothing():
    assert routing().intended.kept.all()
    assert torch.equal(routing().intended.experts, routing().experts)


def test_some_images_of_a_routing_are_replaced_by_anothers():
    two = routing().rows(torch.tensor([0, 0]))

    mixed = two.replaced(torch.tensor([1]), routing().forced(1))

    assert torch.equal(mixed.experts[0], routing().experts[0])
    assert torch.equal(mixed.experts[1], routing().forced(1).experts[0])
    assert torch.equal(mixed.gates[1], routing().forced(1).gates[0])
