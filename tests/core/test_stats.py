"""Intervals: numbers worked out by hand, and laws."""

from __future__ import annotations

import numpy as np
import pytest

from harness.stats import mean, share

# Wilson at 95 %: for k of n, with z = 1.95996 and z^2 = 3.8415, the centre is
# (k + z^2 / 2) / (n + z^2) and the half width is z * sqrt(k (n - k) / n + z^2 / 4) / (n + z^2)
WILSON = [
    # centre = 1.9207 / 13.8415 = 0.13877; half = 1.95996 * sqrt(0.96037) / 13.8415 = 0.13877
    pytest.param(0, 10, 0.0, 0.2775, id="none"),
    # centre = 6.9207 / 13.8415 = 0.5; half = 1.95996 * sqrt(2.5 + 0.96037) / 13.8415 = 0.26341
    pytest.param(5, 10, 0.2366, 0.7634, id="half"),
    # the mirror of none
    pytest.param(10, 10, 0.7225, 1.0, id="all"),
    # centre = 91.9207 / 103.8415 = 0.88520
    # half = 1.95996 * sqrt(9 + 0.96037) / 103.8415 = 0.05957
    pytest.param(90, 100, 0.8256, 0.9448, id="most"),
    # centre = 2.9207 / 4.8415 = 0.60327; half = 1.95996 * 0.97998 / 4.8415 = 0.39673
    pytest.param(1, 1, 0.2065, 1.0, id="one"),
]


@pytest.mark.parametrize(("successes", "n", "low", "high"), WILSON)
def test_a_share_has_its_wilson_interval(successes, n, low, high):
    value = share(successes, n)

    assert value.value == pytest.approx(successes / n)
    assert value.low == pytest.approx(low, abs=1e-4)
    assert value.high == pytest.approx(high, abs=1e-4)
    assert value.n == n


def test_a_share_and_its_complement_have_mirrored_intervals():
    robust, fooled = share(30, 100), share(70, 100)

    assert robust.low == pytest.approx(1 - fooled.high, abs=1e-4)
    assert robust.high == pytest.approx(1 - fooled.low, abs=1e-4)


def test_more_images_make_a_narrower_interval():
    few, many = share(50, 100), share(5000, 10_000)

    # half widths 0.096 and 0.0098: ten times fewer for a hundred times the images
    assert (few.high - few.low) / (many.high - many.low) == pytest.approx(10, rel=0.05)


def test_a_share_keeps_its_epsilon():
    assert share(1, 2, epsilon="8/255").epsilon == "8/255"


def test_a_share_of_no_images_says_so():
    value = share(0, 0, epsilon="8/255")

    assert value.value is None
    assert value.n == 0
    assert value.epsilon == "8/255"
    assert value.reason == "no images"


def test_a_mean_over_no_images_says_so():
    value = mean([])

    assert value.value is None
    assert value.n == 0
    assert value.reason == "no images"


def test_the_interval_of_a_mean_is_near_the_normal_one():
    # 200 zeros and 200 ones: mean 0.5, deviation 0.5, so 1.96 * 0.5 / sqrt(400) = 0.049
    value = mean([0.0, 1.0] * 200)

    assert value.value == pytest.approx(0.5)
    assert value.low == pytest.approx(0.451, abs=0.006)
    assert value.high == pytest.approx(0.549, abs=0.006)
    assert value.n == 400


def test_the_interval_of_a_mean_covers_the_truth_about_as_often_as_it_says():
    samples = np.random.default_rng(1).normal(loc=3.0, size=(100, 50))

    covered = sum(
        value.low <= 3.0 <= value.high for value in (mean(list(sample)) for sample in samples)
    )

    # 95 expected; the binomial deviation is sqrt(100 * 0.95 * 0.05) = 2.2
    assert 88 <= covered <= 99


def test_a_mean_lies_in_its_interval_even_where_the_values_are_skewed():
    value = mean([0.0] * 50 + [100.0])

    assert value.low <= value.value <= value.high


def test_equal_values_have_an_interval_of_no_width():
    value = mean([1 / 3] * 10)

    assert value.low == value.value == value.high == pytest.approx(1 / 3)
    assert value.n == 10


def test_the_same_values_have_the_same_interval():
    values = list(np.random.default_rng(1).normal(size=50))

    assert mean(values) == mean(values)
