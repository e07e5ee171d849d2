"""Comparisons of checkpoints: numbers worked out by hand, and coverage of simulated truths."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import binom, binomtest, norm

from harness.inference import (
    Ranks,
    detectable,
    detectable_between,
    difference,
    holm,
    rank_ranges,
)
from harness.stats import share


def pair(only_first, only_second, n):
    """Two checkpoints with these discordant images, wrong together on the others."""
    first, second = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
    first[:only_first] = True
    second[only_first : only_first + only_second] = True
    return first, second


def discordant_shares(one, two, correlation):
    """Probabilities of (only first, only second, neither or both) for two correlated shares."""
    both = one * two + correlation * math.sqrt(one * (1 - one) * two * (1 - two))
    return np.array([one - both, two - both, 1 - one - two + 2 * both])


def drawn(n, shares, times):
    """Distinct outcomes of an experiment done so often, and how often each came."""
    counts = np.random.default_rng(1).multinomial(n, shares, size=times)
    outcomes, often = np.unique(counts, axis=0, return_counts=True)
    found = [difference(*pair(first, second, n)) for first, second, _ in outcomes]
    return found, often / times


def board(shares, n, rng, common=0.8):
    """Models with these shares on images whose difficulty they share, `common` of it."""
    difficulty = common * rng.normal(size=n)
    own = math.sqrt(1 - common**2) * rng.normal(size=(len(shares), n))
    return difficulty + own < norm.ppf(shares)[:, None]


MCNEMAR = [
    # 2 * C(6, 0) / 2^6 = 2 / 64
    pytest.param(6, 0, 0.03125, "exact", id="all-one-way"),
    # 2 * (C(10, 0) + C(10, 1) + C(10, 2)) / 2^10 = 2 * 56 / 1024
    pytest.param(8, 2, 0.109375, "exact", id="most-one-way"),
    pytest.param(3, 3, 1.0, "exact", id="even"),
    pytest.param(0, 0, 1.0, "exact", id="none"),
    # 2 * P(X <= 9) + P(X = 10) for 30 coins
    # = (2 * 22,964,087 + 30,045,015) / 2^30 = 75,973,189 / 1,073,741,824
    pytest.param(20, 10, 0.0707555, "mid-p", id="many"),
    # 2 * P(X <= 14) + P(X = 15) = 1
    pytest.param(15, 15, 1.0, "mid-p", id="many-even"),
]


@pytest.mark.parametrize(("only_first", "only_second", "p_value", "test"), MCNEMAR)
def test_mcnemar_is_as_worked_out_by_hand(only_first, only_second, p_value, test):
    found = difference(*pair(only_first, only_second, 100))

    assert (found.n, found.only_first, found.only_second) == (100, only_first, only_second)
    assert found.difference == pytest.approx((only_first - only_second) / 100)
    assert found.p_value == pytest.approx(p_value, abs=1e-6)
    assert found.test == test


@pytest.mark.parametrize("only_first", range(0, 26, 5))
def test_the_exact_test_is_the_binomial_one(only_first):
    found = difference(*pair(only_first, 25 - only_first, 50))

    assert found.test == "exact"
    assert found.p_value == pytest.approx(binomtest(only_first, 25).pvalue)


@pytest.mark.parametrize("only_first", range(0, 61, 10))
def test_mid_p_is_the_exact_one_less_half_of_both_its_ends(only_first):
    found = difference(*pair(only_first, 60 - only_first, 100))

    # but at the middle, where both ends are one
    exact = min(2 * binom.cdf(min(only_first, 60 - only_first), 60, 0.5), 2)
    expected = exact - binom.pmf(only_first, 60, 0.5)
    assert found.test == "mid-p"
    assert found.p_value == pytest.approx(expected)


def test_without_discordant_images_a_width_remains():
    found = difference(*pair(0, 0, 20))

    # z^2 / (n + z^2) = 3.8415 / 23.8415, the upper end of Wilson's interval for 0 of 20
    assert found.high == -found.low == pytest.approx(0.1611, abs=1e-4)
    assert found.high == pytest.approx(share(0, 20).high)


def test_the_whole_difference_ends_at_one():
    found = difference(*pair(10, 0, 10))

    assert found.difference == found.high == 1
    # here Tango's equation is n (1 - d) = z^2 (1 + d): d = (10 - 3.8415) / (10 + 3.8415)
    assert found.low == pytest.approx(0.4449, abs=1e-4)


def test_exchanging_the_two_changes_signs_only():
    forth, back = difference(*pair(30, 12, 200)), difference(*pair(12, 30, 200))

    assert back.difference == -forth.difference
    assert (back.low, back.high) == (-forth.high, -forth.low)
    assert back.p_value == forth.p_value


def test_the_order_of_images_does_not_matter():
    first, second = board(np.array([0.5, 0.6]), 300, np.random.default_rng(1))
    order = np.random.default_rng(2).permutation(300)

    assert difference(first[order], second[order]) == difference(first, second)


# chi-square (b - c)^2 / (b + c): 81 / 21 = 3.857 > 3.841, and 64 / 20 = 3.2
@pytest.mark.parametrize(
    ("only_first", "only_second", "leaves_out"), [(15, 6, True), (14, 6, False)]
)
def test_the_interval_leaves_out_zero_where_mcnemars_chi_square_is_large(
    only_first, only_second, leaves_out
):
    assert (difference(*pair(only_first, only_second, 500)).low > 0) == leaves_out


@pytest.mark.parametrize(("only_first", "only_second"), [(7, 3), (0, 4), (30, 10), (1, 0)])
def test_the_upper_end_lies_196_deviations_of_the_likeliest_model_away(only_first, only_second):
    n = 60
    high = difference(*pair(only_first, only_second, n)).high

    def unlikely(second):
        first, rest = second + high, 1 - 2 * second - high
        counts = (only_first, only_second, n - only_first - only_second)
        return -sum(
            count * math.log(chance)
            for count, chance in zip(counts, (first, second, rest), strict=True)
        )

    # the likeliest share of `only_second` given this difference, found without the closed form
    second = minimize_scalar(
        unlikely, bounds=(1e-12, (1 - high) / 2 - 1e-12), method="bounded", options={"xatol": 1e-10}
    ).x
    deviation = math.sqrt((2 * second + high - high**2) / n)
    assert (high - (only_first - only_second) / n) / deviation == pytest.approx(1.96, abs=1e-3)


PAIRS = [
    pytest.param(n, one, two, correlation, id=f"{n}-{one}-{two}-{correlation}")
    for n in (200, 1000)
    for one, two, correlation in [
        (0.05, 0.05, 0.3),
        (0.05, 0.07, 0.5),
        (0.3, 0.6, 0.3),
        (0.5, 0.5, 0.0),
        (0.5, 0.5, 0.9),
        (0.5, 0.55, 0.8),
        (0.9, 0.95, 0.5),
        (0.95, 0.95, 0.2),
    ]
]


@pytest.mark.parametrize(("n", "one", "two", "correlation"), PAIRS)
def test_the_interval_covers_the_true_difference_as_often_as_it_says(n, one, two, correlation):
    found, often = drawn(n, discordant_shares(one, two, correlation), 10_000)

    covered = [item.low <= one - two <= item.high for item in found]
    # the deviation of 10,000 experiments is 0.2 %
    assert 0.93 <= np.dot(covered, often) <= 0.97


# 0.5, 0.5, 0.98: two of 200 images are discordant; 0.5, 0.51, 0.97: three; 0.95, 0.94, 0.85: three
@pytest.mark.parametrize("pairs", [(0.5, 0.5, 0.98), (0.5, 0.51, 0.97), (0.95, 0.94, 0.85)])
def test_with_few_discordant_images_the_interval_errs_on_the_safe_side(pairs):
    found, often = drawn(200, discordant_shares(*pairs), 10_000)

    covered = [item.low <= pairs[0] - pairs[1] <= item.high for item in found]
    assert np.dot(covered, often) >= 0.95


@pytest.mark.parametrize(("n", "correlation"), [(200, 0.9), (200, 0.5), (1000, 0.9), (1000, 0.0)])
def test_equal_checkpoints_are_told_apart_no_more_than_one_time_in_twenty(n, correlation):
    found, often = drawn(n, discordant_shares(0.5, 0.5, correlation), 10_000)

    # mid-p may pass 5 % by a little, by its construction
    assert np.dot([item.p_value <= 0.05 for item in found], often) <= 0.055


@pytest.mark.parametrize("n", [200, 1000])
@pytest.mark.parametrize("truth", [0.05, 0.1, 0.3, 0.5, 0.9, 0.95])
def test_a_share_is_covered_as_often_as_its_interval_says(n, truth):
    counts = np.arange(*binom.interval(1 - 1e-6, n, truth)).astype(int)

    values = [share(count, n) for count in counts.tolist()]
    covered = [value.low <= truth <= value.high for value in values]

    assert 0.93 <= np.dot(covered, binom.pmf(counts, n, truth)) <= 0.97


def test_holm_is_as_worked_out_by_hand():
    # in order 0.005 * 4 = 0.02, 0.01 * 3 = 0.03, 0.03 * 2 = 0.06, then 0.04 * 1 raised to 0.06
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))


def test_holm_leaves_one_p_value_as_it_is_and_none_passes_one():
    assert holm([0.04]) == (0.04,)
    assert holm([0.6, 0.9]) == (1.0, 1.0)
    assert holm([]) == ()


def test_holm_finds_no_difference_in_nineteen_families_of_twenty():
    families = np.random.default_rng(1).uniform(size=(2000, 10))

    false = np.mean([min(holm(family)) <= 0.05 for family in families.tolist()])

    # 1 - (1 - 0.005)^10 = 0.0489; the deviation is sqrt(0.049 * 0.951 / 2000) = 0.0048
    assert false == pytest.approx(0.0489, abs=0.015)


def test_two_models_have_their_own_ranks_from_six_images_one_way_on():
    # one-sided 1 / 64, twice for the two directions: 0.03125; with five images 0.0625
    assert rank_ranges(np.stack(pair(6, 0, 50))) == (Ranks(1, 1), Ranks(2, 2))
    assert rank_ranges(np.stack(pair(5, 0, 50))) == (Ranks(1, 2), Ranks(1, 2))


def test_a_clear_winner_ranks_first_and_the_others_behind_it():
    bits = board(np.array([0.4, 0.4, 0.8, 0.4]), 1000, np.random.default_rng(1))

    ranges = rank_ranges(bits)

    assert ranges[2] == (1, 1)
    assert ranges[0] == ranges[1] == ranges[3] == (2, 4)


def test_models_far_apart_have_one_rank_each():
    bits = board(np.array([0.2, 0.8, 0.5]), 2000, np.random.default_rng(1))

    assert rank_ranges(bits) == (Ranks(3, 3), Ranks(1, 1), Ranks(2, 2))


def test_the_same_bits_share_all_ranks():
    bits = np.tile(np.random.default_rng(1).random(100) < 0.5, (7, 1))

    assert set(rank_ranges(bits)) == {Ranks(1, 7)}


def test_one_model_is_first_of_one():
    assert rank_ranges(np.ones((1, 10), dtype=bool)) == (Ranks(1, 1),)


def test_ranges_do_not_depend_on_the_order_of_models_or_images():
    rng = np.random.default_rng(1)
    bits = board(np.linspace(0.3, 0.7, 12), 500, rng)
    models, images = rng.permutation(12), rng.permutation(500)

    ranges = rank_ranges(bits)

    assert rank_ranges(bits[:, images]) == ranges
    assert rank_ranges(bits[models]) == tuple(ranges[model] for model in models)


BOARDS = [
    pytest.param(np.full(5, 0.5), 200, 0.7, id="five-equal"),
    pytest.param(np.full(5, 0.95), 200, 0.7, id="five-equal-and-high"),
    pytest.param(np.full(10, 0.5), 1000, 0.9, id="ten-equal-and-alike"),
    pytest.param(np.repeat([0.4, 0.6], 5), 1000, 0.8, id="two-groups"),
    pytest.param(np.linspace(0.3, 0.7, 20), 1000, 0.8, id="twenty-in-a-row"),
]


@pytest.mark.parametrize(("shares", "n", "common"), BOARDS)
def test_all_ranges_hold_the_true_ranks_in_nineteen_boards_of_twenty(shares, n, common):
    rng = np.random.default_rng(1)
    best = 1 + (shares > shares[:, None]).sum(axis=1)
    worst = len(shares) - (shares < shares[:, None]).sum(axis=1)

    ranges = np.array([rank_ranges(board(shares, n, rng, common)) for _ in range(600)])

    held = (ranges[:, :, 0] <= best) & (worst <= ranges[:, :, 1])
    # 95 % or more; the deviation of 600 boards is 0.9 %
    assert held.all(axis=1).mean() >= 0.935


def test_more_images_narrow_the_ranges():
    shares = np.linspace(0.3, 0.7, 20)
    few = np.array(rank_ranges(board(shares, 500, np.random.default_rng(1))))
    many = np.array(rank_ranges(board(shares, 8000, np.random.default_rng(1))))

    assert np.ptp(many, axis=1).mean() < np.ptp(few, axis=1).mean() / 2


def test_what_is_detectable_solves_connors_equation():
    # n = (1.95996 sqrt(0.5) + 0.84162 sqrt(0.5 - 0.4^2))^2 / 0.4^2
    #   = (1.38590 + 0.49074)^2 / 0.16 = 22.01 images for a difference of 0.4
    assert detectable(22, 0.5) == pytest.approx(0.4, abs=1e-3)


@pytest.mark.parametrize(
    ("n", "discordant"), [(200, 0.2), (1000, 0.05), (1000, 0.3), (10_000, 0.1), (1000, 0.0)]
)
def test_the_detectable_difference_is_found_four_times_in_five(n, discordant):
    delta = detectable(n, discordant)
    discordant = max(discordant, delta)
    shares = [(discordant + delta) / 2, (discordant - delta) / 2, 1 - discordant]

    found, often = drawn(n, shares, 4000)

    assert np.dot([item.p_value <= 0.05 for item in found], often) == pytest.approx(0.8, abs=0.03)


def test_more_power_asks_for_a_larger_difference_and_more_images_for_a_smaller_one():
    assert detectable(1000, 0.1, power=0.95) > detectable(1000, 0.1)
    # four times the images, half the difference
    assert detectable(4000, 0.1) == pytest.approx(detectable(1000, 0.1) / 2, rel=0.01)


def test_five_images_detect_nothing():
    assert math.isinf(detectable(5, 0.5))
    assert not math.isinf(detectable(6, 0.5))


def test_a_board_detects_what_its_neighbours_discordance_allows():
    bits = np.zeros((3, 8), dtype=bool)
    bits[0, [0, 1, 2, 3]] = bits[1, 4] = bits[2, [3, 4]] = True

    # by shares the order is 0, 2, 1; rows 0 and 2 differ on images 0, 1, 2 and 4, rows 2 and 1
    # on image 3: 4 / 8 and 1 / 8, whose median is 2.5 / 8
    assert detectable_between(bits) == detectable(8, 2.5 / 8)


def test_one_model_has_no_neighbours():
    assert detectable_between(np.ones((1, 10), dtype=bool)) is None
