"""Numbers taken on attacked images."""

from __future__ import annotations

import torch

from harness.tensors import Images, Observation, PerImage, is_fooled
from harness_metrics.routing_probes import noisy, routed


def confidence(observation: Observation) -> dict[str, PerImage]:
    """The softmax probability of the label, on the clean and on the attacked image."""
    rows = observation.labels[:, None]
    return {
        "clean_confidence": observation.clean_logits.softmax(1).gather(1, rows)[:, 0],
        "adversarial_confidence": observation.adversarial_logits.softmax(1).gather(1, rows)[:, 0],
    }


def input_gradient(observation: Observation) -> dict[str, PerImage]:
    """The size of the gradient of cross-entropy at the clean and at the attacked image.

    In the norm that is dual to the threat's, so that size times epsilon is how much the loss
    grows, to first order: the sum of absolute values for Linf, the Euclidean norm for L2.
    """
    order = 2 if observation.threat is not None and observation.threat.norm == "l2" else 1

    def sizes(images: Images) -> PerImage:
        def one(rows: torch.Tensor, count: int) -> PerImage:
            points = images[rows].detach().clone().requires_grad_()
            with torch.enable_grad():
                logits = observation.model(points)
                labels = observation.labels[rows]
                loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
                (gradient,) = torch.autograd.grad(loss, points, allow_unused=True)
            found = torch.zeros_like(points) if gradient is None else gradient
            size: PerImage = found.flatten(1).norm(order, dim=1)[:count]
            return size

        return torch.cat(observation.over(images, one))

    return {
        "clean.input_gradient": sizes(observation.clean_images),
        "input_gradient": sizes(observation.adversarial_images),
    }


def mediation(observation: Observation) -> dict[str, PerImage]:
    """Whether the model is right when content, routes, both or neither come of the attack.

    Routes are replayed with the gate values that came with them. `experts` sees the attacked
    content under the clean routes, as view "experts" does; `router` the clean content under the
    attacked routes; the same under noise as large as the perturbation.
    """
    if not observation.clean_routes:
        return {}
    found = _mediated(observation, observation.adversarial_images, "mediation")
    images = noisy(observation)
    noise = {} if images is None else _mediated(observation, images, "noise.mediation")
    return {**found, **noise}


def _mediated(observation: Observation, images: Images, name: str) -> dict[str, PerImage]:
    clean = observation.clean_routes
    both = routed(observation, images)
    logits = {
        "neither": observation.clean_logits,
        "experts": routed(observation, images, clean).logits,
        "router": routed(observation, observation.clean_images, both.routes).logits,
        "both": both.logits,
    }
    labels, accepted = observation.labels, observation.accepted
    return {
        f"{name}.{part}": (~is_fooled(found, labels, accepted)).float()
        for part, found in logits.items()
    }
