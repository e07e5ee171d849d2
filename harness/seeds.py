"""Claims about recipes, which speak of training seeds and images at once."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from scipy.stats import chi2, t

from harness.stats import CONFIDENCE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

FEWEST_SEEDS = 5
NOTHING = 1e-18  # a variance below is rounding: one image of a million has more


class Claim(NamedTuple):
    """Whether the first recipe is more robust than the second.

    Attributes:
        verdict: "supported" where the interval lies above 0, "refuted" where it lies below.
        difference: Share of the first minus share of the second, means over seeds.
        low: Lower end of its 95 % interval; None where there are too few seeds for one.
        high: Upper end of the interval.
        seeds_first: Checkpoints of the first recipe.
        seeds_second: Checkpoints of the second recipe.
        seed_spread_first: Standard deviation of its share over seeds; None for one seed.
        seed_spread_second: The same of the second recipe.
        image_error: Standard error of one checkpoint's share from image sampling alone, as the
            root mean square over all checkpoints.
        reason: Why it is undecided.
    """

    verdict: Literal["supported", "refuted", "undecided"]
    difference: float
    low: float | None
    high: float | None
    seeds_first: int
    seeds_second: int
    seed_spread_first: float | None
    seed_spread_second: float | None
    image_error: float
    reason: str


class _Parts(NamedTuple):
    """Variances of a recipe's share, and what its seeds agree on."""

    agreed: NDArray[np.float64]  # share of the seeds, by image
    by_seeds: float  # variance of the recipe's share from seeds, with the noise below
    noise: float  # variance of it from what a seed does on one image alone


def claim(first: Sequence[NDArray[np.bool_]], second: Sequence[NDArray[np.bool_]]) -> Claim:
    """The claim that the first recipe is more robust, of one array a seed.

    All arrays hold the same images, at least two; each recipe has at least one.
    Fewer than 5 seeds on either side leave it undecided.

    The interval has the variance that seeds, drawn anew in each recipe, and images, shared by
    all checkpoints, would give; for means it has a closed form, so nothing is resampled.
    A bootstrap over seeds, then images, has two faults that this mends: k seeds give it
    (k - 1) / k of the variance, with normal quantiles, and noise of single images counts three
    times (Owen, 2007, https://doi.org/10.1214/07-AOAS122).
    With 5 seeds it covered from 89 % (spread by seeds) to 99.8 % (spread by images) of the truths;
    this interval 95 to 98 %.
    """
    one, two = np.stack(first).astype(np.float64), np.stack(second).astype(np.float64)
    centre = float(one.mean() - two.mean())
    enough = min(len(one), len(two)) >= FEWEST_SEEDS
    half = _half_width(one, two) if enough else math.inf
    return Claim(
        verdict=_verdict(centre - half, centre + half),
        difference=centre,
        low=max(centre - half, -1.0) if enough else None,
        high=min(centre + half, 1.0) if enough else None,
        seeds_first=len(one),
        seeds_second=len(two),
        seed_spread_first=_spread(one),
        seed_spread_second=_spread(two),
        image_error=_image_error(np.concatenate([one, two])),
        reason=_reason(centre, half),
    )


def _half_width(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Half the width of the interval, with Satterthwaite's degrees of freedom (1946).

    The variance is that of images plus what seeds add to it, which is at least nothing.
    """
    n = first.shape[1]
    one, two = _parts(first), _parts(second)
    by_images = float((one.agreed - two.agreed).var(ddof=1)) / n  # with the noise of both
    by_seeds = max(one.by_seeds - one.noise + two.by_seeds - two.noise, 0.0)
    total = by_images + by_seeds
    if total < NOTHING:  # a width remains, as in Wilson's interval of none or all
        square = float(chi2.ppf(CONFIDENCE, 1))  # of the normal quantile
        return float(square / (n + square))
    variances = np.array([one.by_seeds, two.by_seeds, by_images])
    freedom = total**2 / float(np.sum(variances**2 / [len(first) - 1, len(second) - 1, n - 1]))
    return float(t.ppf((1 + CONFIDENCE) / 2, freedom)) * math.sqrt(total)


def _parts(bits: NDArray[np.float64]) -> _Parts:
    """The two-way layout of seeds and images without repetition."""
    seeds, n = bits.shape
    shares, agreed = bits.mean(axis=1), bits.mean(axis=0)
    residual = bits - shares[:, None] - agreed + shares.mean()
    noise = float(np.sum(residual**2)) / ((seeds - 1) * (n - 1))
    return _Parts(agreed, float(shares.var(ddof=1)) / seeds, noise / (seeds * n))


def _spread(bits: NDArray[np.float64]) -> float | None:
    return float(bits.mean(axis=1).std(ddof=1)) if len(bits) > 1 else None


def _image_error(bits: NDArray[np.float64]) -> float:
    shares = bits.mean(axis=1)
    return math.sqrt(float(np.mean(shares * (1 - shares))) / bits.shape[1])


def _verdict(low: float, high: float) -> Literal["supported", "refuted", "undecided"]:
    if low > 0:
        return "supported"
    return "refuted" if high < 0 else "undecided"


def _reason(centre: float, half: float) -> str:
    if math.isinf(half):
        return f"fewer than {FEWEST_SEEDS} seeds"
    return "" if abs(centre) > half else "the interval holds 0"
