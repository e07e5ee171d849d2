"""Intervals for shares and means; they speak of one checkpoint and of image sampling."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import binomtest, bootstrap
from scipy.stats import t as student

from harness.records import Value

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

CONFIDENCE = 0.95
RESAMPLES = 1000


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


def normal_mean(values: Sequence[float]) -> Value:
    """A mean over images with Student's interval: for the many points of curves.

    >>> normal_mean([0.0, 1.0, 0.0, 1.0]).value
    0.5
    """
    if not values:
        return Value(None, n=0, reason="no images")
    sample = np.asarray(values, dtype=np.float64)
    n, centre = len(sample), float(sample.mean())
    if n == 1:
        return Value(centre, n=1)
    reach = float(student.ppf((1 + CONFIDENCE) / 2, n - 1) * sample.std(ddof=1) / np.sqrt(n))
    return Value(centre, low=centre - reach, high=centre + reach, n=n)


def resampled(
    counts: NDArray[np.float64],
    statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]],
) -> Value:
    """A number of the sums over images, with its percentile bootstrap interval.

    Args:
        counts: (image, anything), added up over images.
        statistic: From sums (..., anything) to one number each (...).
    """
    n = len(counts)
    if n == 0:
        return Value(None, n=0, reason="no images")
    rng = np.random.default_rng(0)
    weights = rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
    low, high = np.quantile(
        statistic(weights @ counts), ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)
    )
    centre = float(statistic(counts.sum(axis=0)))
    return Value(centre, low=float(low), high=float(high), n=n)
