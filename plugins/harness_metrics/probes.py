"""Numbers taken on attacked images, from passes that were made anyway."""

from __future__ import annotations

from harness.tensors import Observation, PerImage


def confidence(observation: Observation) -> dict[str, PerImage]:
    """The softmax probability of the label, on the clean and on the attacked image."""
    rows = observation.labels[:, None]
    return {
        "clean_confidence": observation.clean_logits.softmax(1).gather(1, rows)[:, 0],
        "adversarial_confidence": observation.adversarial_logits.softmax(1).gather(1, rows)[:, 0],
    }
