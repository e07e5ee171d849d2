"""Probes of routes, layer by layer: what an attack moved, and what noise of its size moves.

A measure is called `WHAT.layerN`, the first MoE layer being 0; `clean.` and `noise.` before it say
that it is of the clean image, or of one under random noise as large as the attack's perturbation,
and `chance.` that it is what routes drawn at random would give.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from harness.api import Routing
from harness.tensors import Images, Observation, PerImage, Routed, RoutedClassifier
from harness_metrics import routes

Measures = dict[str, PerImage]
Layers = tuple[Routing, ...]


def routing_change(observation: Observation) -> Measures:
    """How much of the routing an attack changed, as executed and as intended, and first experts.

    `routing_change` alone is the mean over layers. A model without routes has no such numbers.
    """
    before, after = observation.clean_routes, observation.adversarial_routes
    if not before:
        return {}
    found = {**_changes(before, after), **_chances(before)}
    layers = [found[f"routing_change.layer{place}"] for place in range(len(before))]
    return {"routing_change": torch.stack(layers).mean(dim=0), **found}


def router(observation: Observation) -> Measures:
    """How the gates moved, how near the next expert is, and how many choices were dropped."""
    before, after = observation.clean_routes, observation.adversarial_routes
    return {**_divergences(before, after), **_states(after), **_named("clean", _states(before))}


def expert_load(observation: Observation) -> Measures:
    """How many choices each expert took of the clean and of the attacked image."""
    clean = _loads(observation.clean_routes)
    return {**_loads(observation.adversarial_routes), **_named("clean", clean)}


def routing_noise(observation: Observation) -> Measures:
    """All that the other probes say of routes, under noise as large as the perturbation."""
    before, images = observation.clean_routes, noisy(observation)
    if images is None or not before:
        return {}
    after = routed(observation, images).routes
    found = {
        **_changes(before, after),
        **_divergences(before, after),
        **_states(after),
        **_loads(after),
    }
    return _named("noise", found)


def noisy(observation: Observation) -> Images | None:
    """The clean images under random noise whose norm is that of the perturbation.

    In Linf each pixel goes up or down by as much, by a coin; in L2 the direction is uniform. As
    for an attack, what would leave [0, 1] is clipped. None where the threat has no ball.
    """
    threat, noise = observation.threat, observation.noise
    if threat is None or noise is None or threat.norm == "severity":
        return None
    clean = observation.clean_images
    size = threat.size(observation.adversarial_images - clean)
    drawn = noise.uniform(0) if threat.norm == "linf" else noise.normal(0)
    return threat.clip(clean + size[:, None, None, None] * threat.steepest(drawn))


@torch.no_grad()
def routed(observation: Observation, images: Images, replayed: Layers = ()) -> Routed:
    """What a routed model gives for some images, under the routes that are given."""
    model = observation.model
    assert isinstance(model, RoutedClassifier)  # noqa: S101 - whoever asks has seen routes

    def one(rows: torch.Tensor, count: int) -> Routed:
        given = tuple(routing.rows(rows) for routing in replayed)
        found = model.routed(images[rows], routes=given or None)
        true = torch.arange(count, device=rows.device)
        layers = tuple(routing.rows(true) for routing in found.routes)
        return Routed(found.logits[:count], layers, found.auxiliary_loss)

    parts = observation.over(images, one)
    layers = zip(*(part.routes for part in parts), strict=True)
    return Routed(
        torch.cat([part.logits for part in parts]),
        tuple(_joined(layer) for layer in layers),
        torch.cat([part.auxiliary_loss for part in parts]),
    )


def _changes(before: Layers, after: Layers) -> Measures:
    found: Measures = {}
    for place, (first, second) in enumerate(zip(before, after, strict=True)):
        found[f"routing_change.layer{place}"] = routes.change(first, second)
        intended = routes.change(first.intended, second.intended)
        found[f"routing_change_intended.layer{place}"] = intended
        found[f"routing_flip.layer{place}"] = routes.flips(first, second)
    return found


def _chances(layers: Layers) -> Measures:
    """The same of routes drawn at random, if none is dropped."""
    found: Measures = {}
    for place, routing in enumerate(layers):
        images, _, count = routing.gate_logits.shape
        level = routes.chance_change(count, routing.experts.shape[2])
        for name, value in (
            ("routing_change", level),
            ("routing_change_intended", level),
            ("routing_flip", 1 - 1 / count),
        ):
            found[f"chance.{name}.layer{place}"] = routing.gates.new_full((images,), value)
    return found


def _divergences(before: Layers, after: Layers) -> Measures:
    pairs = enumerate(zip(before, after, strict=True))
    return {f"gate_kl.layer{place}": routes.divergence(*pair) for place, pair in pairs}


def _states(layers: Layers) -> Measures:
    """What each layer's routing says by itself."""
    found: Measures = {}
    for place, routing in enumerate(layers):
        found[f"drop_rate.layer{place}"] = routes.drops(routing)
        if routes.decides(routing):
            found[f"router_margin.layer{place}"] = routes.router_margin(routing)
    return found


def _loads(layers: Layers) -> Measures:
    """Each expert's load; nothing where the experts are too many for a record."""
    if sum(routing.gate_logits.shape[2] for routing in layers) > routes.MOST_LOADS:
        return {}
    return {
        f"load.layer{place}.expert{expert}": load
        for place, routing in enumerate(layers)
        for expert, load in enumerate(routes.loads(routing).unbind(dim=1))
    }


def _named(kind: str, measures: Mapping[str, PerImage]) -> Measures:
    return {f"{kind}.{name}": values for name, values in measures.items()}


def _joined(parts: tuple[Routing, ...]) -> Routing:
    return Routing(
        torch.cat([part.gate_logits for part in parts]),
        torch.cat([part.gates for part in parts]),
        torch.cat([part.experts for part in parts]),
        torch.cat([part.kept for part in parts]),
    )
