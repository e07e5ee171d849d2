"""What a model costs: exact numbers without an interval."""

from __future__ import annotations

from harness.api import Evidence, Value


def parameters(evidence: Evidence) -> tuple[Value, ...]:
    """All parameters."""
    return (Value(evidence.facts["parameters"]),)


def active_parameters(evidence: Evidence) -> tuple[Value, ...]:
    """The parameters that work for one image; all of them in a dense model."""
    return (Value(evidence.facts["active_parameters"]),)


def gflops(evidence: Evidence) -> tuple[Value, ...]:
    """Operations of one image's forward pass in units of 10^9."""
    return (Value(evidence.facts["flops"] / 1e9),)
