"""Numbers taken on attacked images, from passes that were made anyway."""

from __future__ import annotations

import torch

from harness.tensors import Observation, PerImage, RoutedClassifier


def confidence(observation: Observation) -> dict[str, PerImage]:
    """The softmax probability of the label, on the clean and on the attacked image."""
    rows = observation.labels[:, None]
    return {
        "clean_confidence": observation.clean_logits.softmax(1).gather(1, rows)[:, 0],
        "adversarial_confidence": observation.adversarial_logits.softmax(1).gather(1, rows)[:, 0],
    }


def routing_change(observation: Observation) -> dict[str, PerImage]:
    """How much of the routing an attack changed: one minus the overlap of expert sets.

    Each layer's number is the mean over its tokens (google-research/vmoe, routing_changes);
    `routing_change` is the mean over layers. A model without routes has no such number.
    """
    model = observation.model
    if not isinstance(model, RoutedClassifier):
        return {}
    with torch.no_grad():
        clean = model.routed(observation.clean_images).routes
        attacked = model.routed(observation.adversarial_images).routes
    layers = [
        1 - before.overlap(after).mean(dim=1) for before, after in zip(clean, attacked, strict=True)
    ]
    named = {f"routing_change_{place}": change for place, change in enumerate(layers)}
    return {"routing_change": torch.stack(layers).mean(dim=0), **named}
