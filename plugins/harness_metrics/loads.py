"""How evenly the experts of each layer work, clean, attacked and under noise of the same size."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from harness.api import Evidence, Value
from harness.stats import resampled
from harness_metrics.routing import UNROUTED, Found, beside, distinct, layers, measured

Counts = NDArray[np.float64]  # (..., expert), choices


def entropy(evidence: Evidence) -> tuple[Value, ...]:
    """The entropy of the experts' shares, 1 where all work alike and 0 where one does all."""
    return _curves(evidence, _entropy)


def largest_share(evidence: Evidence) -> tuple[Value, ...]:
    """The share of all choices that the busiest expert takes."""
    return _curves(evidence, lambda counts: _shares(counts).max(axis=-1))


def variation(evidence: Evidence) -> tuple[Value, ...]:
    """The coefficient of variation of the experts' loads, with the deviation of a population."""
    return _curves(evidence, lambda counts: counts.std(axis=-1) / counts.mean(axis=-1))


def expert_shares(evidence: Evidence) -> tuple[Value, ...]:
    """The share of all choices that each expert takes."""
    found = tuple(measured(evidence))
    return distinct(
        replace(value, group=group)
        for layer, group in layers(found, "load")
        for item in found
        for value in _each_share(item, layer)
    )


def _curves(evidence: Evidence, statistic: Callable[[Counts], Counts]) -> tuple[Value, ...]:
    found = tuple(measured(evidence))
    return distinct(
        replace(value, group=group)
        for layer, group in layers(found, "load")
        for item in found
        for value in _kinds(item, layer, statistic)
    )


def _kinds(item: Found, layer: str, statistic: Callable[[Counts], Counts]) -> Iterator[Value]:
    for kind, series in (("", item.attack), ("clean.", "clean"), ("noise.", beside(item.attack))):
        counts = _counts(item, kind, layer)
        missing = Value(None, reason=item.reason or UNROUTED)
        value = missing if item.reason or not counts.size else resampled(counts, statistic)
        yield replace(value, epsilon=item.epsilon, series=series)


def _each_share(item: Found, layer: str) -> Iterator[Value]:
    for kind, series in (("", item.attack), ("clean.", "clean"), ("noise.", beside(item.attack))):
        counts = _counts(item, kind, layer)
        if item.reason or not counts.size:
            reason = item.reason or UNROUTED
            yield Value(None, epsilon=item.epsilon, reason=reason, series=series)
            continue
        for expert in range(counts.shape[1]):
            value = resampled(counts, partial(_share, expert=expert))
            yield replace(value, epsilon=item.epsilon, series=f"{series}, expert {expert}")


def _counts(item: Found, kind: str, layer: str) -> Counts:
    """The choices of each image that each expert took: (image, expert)."""
    pattern = re.compile(rf"{re.escape(kind)}load\.{layer}\.expert\d+")
    first = item.measures[0] if item.measures else {}
    names = [name for name in first if pattern.fullmatch(name)]
    names.sort(key=lambda name: int(name.rpartition("expert")[2]))
    return np.array([[measures[name] for name in names] for measures in item.measures])


def _shares(counts: Counts) -> Counts:
    shares: Counts = counts / counts.sum(axis=-1, keepdims=True)
    return shares


def _share(counts: Counts, expert: int) -> Counts:
    found: Counts = _shares(counts)[..., expert]
    return found


def _entropy(counts: Counts) -> Counts:
    shares = _shares(counts)
    logs = np.log(shares, where=shares > 0, out=np.zeros_like(shares))
    number = counts.shape[-1]
    return np.zeros(counts.shape[:-1]) if number == 1 else -(shares * logs).sum(-1) / np.log(number)
