"""What each expert makes of an image alone, where whole images are routed."""

from __future__ import annotations

import torch

from harness.api import Routing
from harness.tensors import Images, Logits, Observation, PerImage, is_fooled
from harness_metrics.routes import MOST_LOADS
from harness_metrics.routing_probes import routed


def expert_accuracy(observation: Observation) -> dict[str, PerImage]:
    """Whether each expert alone has the clean and the attacked image right, 1 or 0.

    `alone.expert0` is the model with the first expert of every layer and weight 1, whatever the
    router says; `oracle` whether any expert is right, `every_expert` whether all are. The attack
    was made for the model as it is: what an expert stands here it need not stand where it is
    attacked itself. `taken_by` is the expert that took the image, where all layers agree.

    A model that routes parts of images, has layers with different numbers of experts, or more
    than 64, has no such numbers.
    """
    layers = observation.clean_routes
    counts = {routing.gates.shape[2] for routing in layers}
    is_by_image = all(routing.gates.shape[1] == 1 for routing in layers)
    if not is_by_image or len(counts) != 1 or max(counts) > MOST_LOADS:
        return {}
    (num_experts,) = counts
    clean = _right(observation, observation.clean_images, num_experts)
    attacked = _right(observation, observation.adversarial_images, num_experts)
    return {
        **{f"clean.{name}": values for name, values in clean.items()},
        **attacked,
        **_taken(observation.adversarial_routes),
    }


def _right(observation: Observation, images: Images, num_experts: int) -> dict[str, PerImage]:
    alone = [
        _is_right(observation, routed(observation, images, _forced(observation, expert)).logits)
        for expert in range(num_experts)
    ]
    together = torch.stack(alone)
    named = {f"alone.expert{place}": values for place, values in enumerate(alone)}
    return {**named, "oracle": together.amax(dim=0), "every_expert": together.amin(dim=0)}


def _is_right(observation: Observation, logits: Logits) -> PerImage:
    return (~is_fooled(logits, observation.labels, observation.accepted)).float()


def _forced(observation: Observation, expert: int) -> tuple[Routing, ...]:
    """The same expert in every layer, with all of the gate."""
    return tuple(_alone(routing, expert) for routing in observation.clean_routes)


def _alone(routing: Routing, expert: int) -> Routing:
    experts = torch.full_like(routing.experts[:, :, :1], expert)
    gates = torch.zeros_like(routing.gates).scatter(2, experts, 1.0)
    return Routing(gates, gates, experts, torch.ones_like(experts).bool())


def _taken(layers: tuple[Routing, ...]) -> dict[str, PerImage]:
    first = torch.stack([routing.experts[:, 0, 0] for routing in layers])
    is_agreed = bool((first == first[0]).all())
    return {"taken_by": first[0].float()} if is_agreed else {}
