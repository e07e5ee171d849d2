"""Batch mates: who loses its places to whom, and what that changes."""

from __future__ import annotations

import pytest
import torch

from harness.api import Evidence, ModelError, Record, Routing
from harness.building import build_model
from harness.numerics import Batches
from harness.seeing import clean_pass
from harness.tensors import CleanObservation, Noise, Samples
from harness.threat import ThreatModel
from harness_vmoe.batch_mates import (
    GROUP,
    SHOWN,
    SITUATIONS,
    Situation,
    batch_mates,
    denied,
    harmed,
    rivals,
    with_capacity,
)

COUNT = 33


def built(registry, **parameters):
    return build_model(
        registry, "vmoe/digits", num_classes=10, image_shape=(1, 8, 8), seed=1, **parameters
    ).eval()


def shown(model):
    """Images whose label is what the model says of them, with their routes."""
    ids = torch.arange(COUNT)
    images = Noise(5, ids, (1, 8, 8)).uniform(0) / 2 + 0.5
    with torch.no_grad():
        labels = model(images).argmax(dim=1)
    return clean_pass(model, Samples(ids, images, labels), batches=Batches(64))


def harm(registry, situation, **parameters):
    model = built(registry, **parameters)
    context = shown(model)
    return harmed(model, context.clean_images, context.labels, context.clean_routes, situation)


def routing(*experts):
    """One token an image, sent to one expert of three."""
    chosen = torch.tensor(experts)[:, None, None]
    gates = torch.full((len(experts), 1, 3), 0.1).scatter(2, chosen, 0.8)
    return Routing(gates.log(), gates, chosen, torch.ones_like(chosen, dtype=torch.bool))


def test_rivals_want_the_same_experts():
    first, second = routing(0, 1, 0, 2), routing(1, 2, 2, 1)

    found = rivals([first, second], by_gates=False)

    # image 0 shares expert 0 with image 2 and, in the other layer, expert 1 with image 3; ties
    # keep the images' order
    assert found.tolist() == [[2, 3, 1], [2, 0, 3], [0, 1, 3], [0, 1, 2]]


def test_places_for_all_harm_nobody(registry):
    found = harm(registry, Situation(4.0, "arrival", "last", GROUP - 1))

    assert found.right.all()
    assert not (found.denied | found.redirected | found.denied_by_drawn).any()


def test_the_first_of_a_group_loses_no_place_where_each_token_has_one_choice(registry):
    found = harm(registry, Situation(0.5, "arrival", "first", GROUP - 1), num_selected=1)

    assert not found.denied.any()


def test_the_last_of_a_group_is_harmed_most_by_its_rivals(registry):
    last = harm(registry, Situation(0.5, "arrival", "last", GROUP - 1), num_selected=1)
    first = harm(registry, Situation(0.5, "priority", "first", GROUP - 1), num_selected=1)

    assert (last.denied | ~last.right).sum() > (first.denied | ~first.right).sum()


def test_whoever_is_denied_was_right(registry):
    found = harm(registry, Situation(1.0, "arrival", "last", GROUP - 1))

    assert not (found.denied & ~found.right).any()
    assert not (found.redirected & ~found.denied).any()


def test_a_copy_has_the_capacity_and_the_same_parameters(registry):
    model = built(registry)

    copy = with_capacity(model, Situation(0.5, "priority", "last", 1), 8)

    pairs = zip(model.parameters(), copy.parameters(), strict=True)
    assert all(mine is other for mine, other in pairs)
    images = torch.rand(16, 1, 8, 8)
    with torch.no_grad():
        assert not torch.equal(copy(images), model(images))
        assert torch.equal(model(images), built(registry)(images))


def test_too_few_images_are_refused(registry):
    model = built(registry)
    context = shown(model)
    images, labels = context.clean_images[:9], context.labels[:9]
    routes = tuple(part.rows(torch.arange(9)) for part in context.clean_routes)

    with pytest.raises(ModelError, match="need 29 images, got 9"):
        harmed(model, images, labels, routes, Situation(1.0, "arrival", "last", GROUP - 1))


def test_the_probe_tells_every_situation_of_every_image(registry):
    model = built(registry)
    context = shown(model)
    samples = Samples(torch.arange(COUNT), context.clean_images, context.labels)
    threat = ThreatModel("linf", 0.1)

    found = batch_mates(
        CleanObservation(model, samples, context.logits, threat, context.clean_routes)
    )

    assert len(found) == 4 * len(SITUATIONS)
    assert {len(values) for values in found.values()} == {COUNT}
    assert set(torch.cat(list(found.values())).tolist()) == {0.0, 1.0}


def test_a_shard_with_too_few_images_measures_nothing(registry):
    model = built(registry)
    context = shown(model)
    few = torch.arange(20)
    samples = Samples(few, context.clean_images[few], context.labels[few])
    routes = tuple(routing.rows(few) for routing in context.clean_routes)
    threat = ThreatModel("linf", 0.1)

    assert batch_mates(CleanObservation(model, samples, context.logits[few], threat, routes)) == {}


def evidence(*measures):
    records = [
        Record(
            sample=sample, attack="clean", epsilon="8/255", label=0, clean_prediction=0,
            clean_margin=1.0, adversarial_prediction=0, adversarial_margin=1.0, measures=measured,
        )
        for sample, measured in enumerate(measures)
    ]  # fmt: skip
    return Evidence(records, {"8/255": 8 / 255}, "8/255", {})


def test_the_column_is_the_share_of_the_denied():
    name = f"mates.denied.{SHOWN.name}"

    (value,) = denied(evidence({name: 1.0}, {name: 0.0}, {name: 0.0}, {name: 1.0}))

    assert (value.value, value.n) == (0.5, 4)


def test_a_model_without_mates_has_none():
    (value,) = denied(evidence({}, {}))

    assert value.value is None
    assert "no V-MoE" in value.reason
