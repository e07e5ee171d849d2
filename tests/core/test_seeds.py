"""Claims about recipes: verdicts against simulated truths."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import norm

from harness.seeds import claim


def recipe(seeds, difficulty, rng, *, share=0.5, spread=0.0, own=0.0):
    """Checkpoints whose skill varies by seed, on images whose difficulty recipes have in common.

    `own` is how much of an image's difficulty belongs to this recipe alone.
    """
    n = len(difficulty)
    skill = norm.ppf(share) + spread * rng.normal(size=(seeds, 1))
    rest = math.sqrt(1 - 0.8**2 - own**2)
    noise = own * rng.normal(size=n) + rest * rng.normal(size=(seeds, n))
    return 0.8 * difficulty + noise < skill


def claims(times, *, shares, seeds=5, n=500, **kinds):
    rng = np.random.default_rng(1)
    return [
        claim(*(recipe(seeds, difficulty, rng, share=share, **kinds) for share in shares))
        for difficulty in rng.normal(size=(times, n))
    ]


def constant(robust, n, seeds=5):
    """Seeds that all have just the first images robust."""
    return [np.arange(n) < robust] * seeds


def test_the_parts_of_a_claim_are_as_worked_out_by_hand():
    # five seeds with 1, 2, 3, 4, 5 of 10 images: mean 0.3, deviation sqrt(10 / 4) / 10 = 0.1581
    first = [np.arange(10) < right for right in (1, 2, 3, 4, 5)]
    found = claim(first, constant(1, 10))

    assert found.difference == pytest.approx(0.2)
    assert (found.seeds_first, found.seeds_second) == (5, 5)
    assert found.seed_spread_first == pytest.approx(0.1581, abs=1e-4)
    assert found.seed_spread_second == 0
    # share (1 - share): 0.09 six times, 0.16, 0.21, 0.24, 0.25; sqrt(0.14 / 10) = 0.1183
    assert found.image_error == pytest.approx(0.1183, abs=1e-4)


def test_seeds_that_agree_leave_the_paired_interval_of_images():
    found = claim(constant(70, 100), constant(50, 100))

    # 20 of 100 images differ by 1: deviation sqrt(0.2 * 0.8 * 100 / 99) = 0.40202
    # t at 99 degrees of freedom is 1.98422, so 0.2 -+ 1.98422 * 0.040202
    assert found.low == pytest.approx(0.2 - 0.07977, abs=1e-5)
    assert found.high == pytest.approx(0.2 + 0.07977, abs=1e-5)
    assert found.verdict == "supported"
    assert found.reason == ""


def test_seeds_that_move_all_images_alike_leave_welchs_interval():
    # whole seeds right or wrong: shares 1, 1, 0, 0, 0 against 0: mean 0.4, variance 0.3 / 5
    bits = [np.full(50, right) for right in (True, True, False, False, False)]
    found = claim(bits, constant(0, 50))

    # t at 4 degrees of freedom is 2.77645; 2.77645 * sqrt(0.06) = 0.68009
    assert found.difference - found.low == pytest.approx(0.68009, abs=1e-5)
    assert found.high == 1
    assert found.verdict == "undecided"
    assert found.reason == "the interval holds 0"


def test_the_same_checkpoints_are_undecided():
    found = claim(constant(70, 100), constant(70, 100))

    # z^2 / (n + z^2) = 3.8415 / 103.8415
    assert found.high == -found.low == pytest.approx(0.03699, abs=1e-5)
    assert found.verdict == "undecided"
    assert found.reason == "the interval holds 0"


def test_the_interval_ends_at_one():
    found = claim(constant(100, 100), constant(0, 100))

    assert (found.low, found.high) == pytest.approx((1 - 0.03699, 1), abs=1e-5)
    assert found.verdict == "supported"


@pytest.mark.parametrize(("first", "second"), [(4, 5), (5, 4), (1, 9)])
def test_fewer_than_five_seeds_leave_a_claim_undecided(first, second):
    found = claim(constant(90, 100, first), constant(10, 100, second))

    assert found.verdict == "undecided"
    assert found.reason == "fewer than 5 seeds"
    assert found.difference == pytest.approx(0.8)
    assert found.low is found.high is None


def test_one_seed_has_no_spread():
    assert claim(constant(90, 100, 1), constant(10, 100)).seed_spread_first is None


def test_exchanging_the_recipes_turns_the_verdict():
    rng = np.random.default_rng(1)
    images = rng.normal(size=500)
    better, worse = recipe(5, images, rng, share=0.8), recipe(6, images, rng, share=0.5)

    forth, back = claim(better, worse), claim(worse, better)

    assert (forth.verdict, back.verdict) == ("supported", "refuted")
    assert (back.low, back.high) == pytest.approx((-forth.high, -forth.low))


def test_neither_the_order_of_seeds_nor_that_of_images_matters():
    rng = np.random.default_rng(1)
    difficulty, order = rng.normal(size=300), rng.permutation(300)
    first, second = (recipe(seeds, difficulty, rng, spread=0.1) for seeds in (5, 7))

    found = claim(first[::-1, order], second[:, order])

    expected = claim(first, second)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


EQUAL = [
    pytest.param({"spread": 0.0}, id="no-seed-effect"),
    pytest.param({"spread": 0.05}, id="small-seed-effect"),
    pytest.param({"spread": 0.3}, id="large-seed-effect"),
    pytest.param({"spread": 0.05, "own": 0.3}, id="images-of-their-own"),
    pytest.param({"spread": 0.3, "seeds": 10, "n": 200}, id="ten-seeds-few-images"),
]


@pytest.mark.parametrize("kinds", EQUAL)
def test_equal_recipes_are_decided_at_most_one_time_in_twenty(kinds):
    found = claims(1000, shares=(0.5, 0.5), **kinds)

    # the deviation of 1000 claims is 0.7 %
    assert np.mean([item.verdict != "undecided" for item in found]) <= 0.065


# seeds spread by 0.1 * 0.4 = 0.04 in shares: the error of the difference is near
# 0.04 * sqrt(2 / 5) = 0.025, so 0.2 lies eight of them away
def test_recipes_that_differ_clearly_are_told_apart():
    better = claims(200, shares=(0.7, 0.5), spread=0.1)
    worse = claims(200, shares=(0.5, 0.7), spread=0.1)

    assert np.mean([item.verdict == "supported" for item in better]) >= 0.95
    assert np.mean([item.verdict == "refuted" for item in worse]) >= 0.95


@pytest.mark.parametrize("spread", [0.02, 0.2])
def test_the_true_difference_is_covered_as_often_as_the_interval_says(spread):
    found = claims(1000, shares=(0.5, 0.6), spread=spread)

    # a seed's expected share is that of skill with variance 1 + spread^2
    truth = 0.5 - norm.cdf(norm.ppf(0.6) / math.sqrt(1 + spread**2))
    # where seeds add little, that they cannot add less than nothing widens it: up to 98 %
    assert 0.93 <= np.mean([item.low <= truth <= item.high for item in found]) <= 0.985


def resampled(first, second, resamples=2000):
    """The deviation of the difference when seeds, then images, are drawn anew."""
    rng = np.random.default_rng(1)
    n = first.shape[1]
    images = rng.multinomial(n, np.full(n, 1 / n), size=resamples) / n
    means = [
        np.sum(rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples) / seeds * drawn, 1)
        for seeds, drawn in ((len(first), images @ first.T), (len(second), images @ second.T))
    ]
    return float(np.std(means[0] - means[1]))


def test_with_many_seeds_the_interval_is_that_of_resampling_seeds_and_images():
    rng = np.random.default_rng(1)
    images = rng.normal(size=400)
    first, second = (recipe(40, images, rng, spread=0.5, own=0.3) for _ in range(2))

    found = claim(first, second)

    # k = 40: (k - 1) / k is near 1, and single images' noise is small beside the seeds'
    assert (found.high - found.low) / 2 == pytest.approx(2 * resampled(first, second), rel=0.08)


def test_with_five_seeds_resampling_alone_would_be_too_sure():
    rng = np.random.default_rng(1)
    images = rng.normal(size=1000)
    first, second = (recipe(5, images, rng, spread=0.5) for _ in range(2))

    found = claim(first, second)

    # sqrt(4 / 5) of the deviation, and 1.96 where t at some 8 degrees of freedom has 2.31:
    # 0.76 of the width, or a little more for the noise that it counts three times
    assert 1.96 * resampled(first, second) / ((found.high - found.low) / 2) < 0.85
