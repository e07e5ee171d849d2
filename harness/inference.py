"""Comparisons of checkpoints on the same images: differences, ranks, and what can be detected.

Everything here speaks of image sampling; `harness.seeds` speaks of recipes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binom, binomtest, norm

from harness.stats import CONFIDENCE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

LEVEL = 1 - CONFIDENCE
CRITICAL = float(norm.ppf(1 - LEVEL / 2))
EXACT_UP_TO = 25  # discordant pairs
FEWEST = 6  # no five discordant pairs reach 5 %: 2 / 2**5 > 0.05 > 2 / 2**6


class Difference(NamedTuple):
    """How two checkpoints differ on the same images.

    Attributes:
        n: Images.
        only_first: Images that only the first has robust.
        only_second: Images that only the second has robust.
        difference: Share of the first minus share of the second.
        low: Lower end of the 95 % interval of the difference.
        high: Upper end of the interval.
        p_value: McNemar's, two-sided, for one comparison alone; `holm` adjusts several.
        test: The form of McNemar's test that gave it.
    """

    n: int
    only_first: int
    only_second: int
    difference: float
    low: float
    high: float
    p_value: float
    test: Literal["exact", "mid-p"]


class Ranks(NamedTuple):
    """The ranks that the images leave possible for a model; 1 is the best."""

    low: int
    high: int


def difference(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Difference:
    """The paired difference of two checkpoints that saw the same images, at least one.

    The interval is Tango's score interval (1998, Statistics in Medicine 17, 891-908), the paired
    sibling of Wilson's: it leaves 0 out exactly where McNemar's chi-square passes 3.84, and keeps
    a width where no image is discordant.
    A paired bootstrap depends on the same two counts alone, but covered only 92 % of the truths
    where 3 of 200 images were discordant, and has no width where none is.
    With few discordant images the exact test is the stricter one: it may keep a difference
    that the interval would let pass, and it decides.

    >>> difference(np.ones(6, dtype=bool), np.zeros(6, dtype=bool)).p_value
    0.03125
    """
    n = len(first)
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    is_exact = only_first + only_second <= EXACT_UP_TO
    return Difference(
        n=n,
        only_first=only_first,
        only_second=only_second,
        difference=(only_first - only_second) / n,
        low=-_score_end(only_second, only_first, n),
        high=_score_end(only_first, only_second, n),
        p_value=(_exact if is_exact else _mid_p)(only_first, only_second),
        test="exact" if is_exact else "mid-p",
    )


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Adjusted p-values, in the given order (Holm, 1979, Scand. J. Statistics 6, 65-70).

    Those up to 0.05 may all be called differences, with at most 5 % risk of a single false one.

    >>> holm([0.04, 0.01])
    (0.04, 0.02)
    """
    return tuple(_holm(np.asarray(p_values, dtype=np.float64)).tolist())


def rank_ranges(bits: NDArray[np.bool_]) -> tuple[Ranks, ...]:
    """The range of ranks of each model; all ranges hold at once with 95 % confidence.

    A model ranks at best below those that are surely better, at worst above those that are surely
    worse (Mogstad et al., 2024, https://doi.org/10.1093/restud/rdad006).
    Surely: by McNemar's exact test, one-sided, of every ordered pair on their shared images, and
    Holm's adjustment over all of them, which holds at any number of images and any dependence.
    Unlike the paper, no bootstrap: its simultaneous critical value made ranges 0 to 2 % narrower,
    and they held together in only 92 % of the boards of ten equal models.
    Percentiles of resampled ranks are no alternative: with near ties they miss the true ranks.

    Args:
        bits: Whether each model (row) has each image (column) robust; at most 2**24 images.

    >>> rank_ranges(np.array([[False] * 6, [True] * 6]))
    (Ranks(low=2, high=2), Ranks(low=1, high=1))
    """
    models = len(bits)
    better = _surely_better(bits)
    low, high = 1 + better.sum(axis=0), models - better.sum(axis=1)
    return tuple(Ranks(int(best), int(worst)) for best, worst in zip(low, high, strict=True))


def detectable(n: int, discordant: float, *, power: float = 0.8) -> float:
    """The smallest difference, in shares, that McNemar's test at 5 % finds with this power.

    Connor's approximation (1987, Biometrics 43, 207-211) solved for the difference d:
    `sqrt(n) d = z_alpha sqrt(discordant) + z_beta sqrt(discordant - d**2)`.
    No difference exceeds its discordant share; where d would, the discordant share grows to d.
    Infinite for fewer than 6 images, where the test finds nothing.

    Args:
        n: Images.
        discordant: Share of the images that just one of the two has robust.
        power: Chance to find the difference.
    """
    if n < FEWEST:
        return math.inf
    beta = float(norm.ppf(power))
    root = beta * math.sqrt(n - CRITICAL**2 + beta**2)
    per_root = (math.sqrt(n) * CRITICAL + root) / (n + beta**2)
    return per_root * max(math.sqrt(discordant), per_root)


def detectable_between(bits: NDArray[np.bool_], *, power: float = 0.8) -> float | None:
    """What is detectable between neighbours of a board; None for fewer than two models.

    Neighbours are next to each other by robust accuracy, equal ones in the given order; the
    discordant share is the median over these pairs.

    Args:
        bits: Whether each model (row) has each image (column) robust.
        power: Chance to find the difference.
    """
    models, n = bits.shape
    if models < 2:  # noqa: PLR2004 - a pair
        return None
    ranked = bits[np.argsort(-bits.sum(axis=1), kind="stable")]
    discordant = (ranked[1:] != ranked[:-1]).mean(axis=1)
    return detectable(n, float(np.median(discordant)), power=power)


def _exact(only_first: int, only_second: int) -> float:
    """McNemar's exact p-value; 1 without discordant pairs."""
    pairs = only_first + only_second
    return float(binomtest(only_first, pairs).pvalue) if pairs else 1.0


def _mid_p(only_first: int, only_second: int) -> float:
    """McNemar's mid-p (Fagerland et al., 2013, https://doi.org/10.1186/1471-2288-13-91)."""
    fewer, pairs = min(only_first, only_second), only_first + only_second
    return float(2 * binom.cdf(fewer - 1, pairs, 0.5) + binom.pmf(fewer, pairs, 0.5))


def _score_end(only_first: int, only_second: int, n: int) -> float:
    """The upper end of Tango's interval of first minus second; the lower one is its mirror."""
    if only_first == n:
        return 1.0
    observed = only_first - only_second

    def excess(delta: float) -> float:
        linear = (2 * n - observed) * delta - only_first - only_second
        constant = -only_second * delta * (1 - delta)
        # the likeliest share of only_second where the true difference is delta
        likeliest = (math.sqrt(max(linear**2 - 8 * n * constant, 0.0)) - linear) / (4 * n)
        variance = n * max(2 * likeliest + delta * (1 - delta), 0.0)
        return (observed - n * delta) ** 2 - CRITICAL**2 * variance

    just_above = observed / n + 1e-12  # at the observed difference itself both terms may be 0
    return float(brentq(excess, just_above, 1.0))


def _holm(p_values: NDArray[np.float64]) -> NDArray[np.float64]:
    order = np.argsort(p_values)
    adjusted = np.empty_like(p_values)
    factors = np.arange(len(p_values), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(p_values[order] * factors), 1)
    return adjusted


def _surely_better(bits: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether the model of the row is surely better than that of the column."""
    single = bits.astype(np.float32)  # whole numbers are exact below 2**24
    both = (single @ single.T).astype(np.float64)
    only_row = both.diagonal()[:, None] - both
    p_values = np.asarray(binom.sf(only_row - 1, only_row + only_row.T, 0.5))
    pairs = ~np.eye(len(bits), dtype=bool)
    better = np.zeros_like(pairs)
    better[pairs] = _holm(p_values[pairs]) <= LEVEL
    return better
