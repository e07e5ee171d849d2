"""Intervals for shares and means; they speak of one checkpoint and of image sampling."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import binomtest, bootstrap

from harness.records import Value

if TYPE_CHECKING:
    from collections.abc import Sequence

CONFIDENCE = 0.95


def share(successes: int, n: int, *, epsilon: str | None = None) -> Value:
    """A share with its Wilson interval (Wilson, 1927), through scipy.

    >>> round(share(0, 10).high, 4)
    0.2775
    """
    if n == 0:
        return Value(None, n=0, epsilon=epsilon, reason="no images")
    interval = binomtest(successes, n).proportion_ci(CONFIDENCE, method="wilson")
    return Value(
        successes / n,
        low=float(interval.low),
        high=float(interval.high),
        n=n,
        epsilon=epsilon,
    )


def mean(values: Sequence[float]) -> Value:
    """A mean over images with its percentile bootstrap interval, through scipy."""
    if not values:
        return Value(None, n=0, reason="no images")
    sample = np.asarray(values, dtype=np.float64)
    centre = float(sample.mean())
    if np.ptp(sample) == 0:
        return Value(centre, low=centre, high=centre, n=len(sample))
    interval = bootstrap(
        (sample,),
        np.mean,
        confidence_level=CONFIDENCE,
        n_resamples=2000,
        batch=200,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Value(
        centre,
        low=float(interval.low),
        high=float(interval.high),
        n=len(sample),
    )
