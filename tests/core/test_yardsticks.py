"""What noise, single steps, ascents and blind searches reach on a model whose boundary is known."""

from __future__ import annotations

import pytest
import torch

from harness.testing import LinearModel, _objective, linear_distance, linear_samples
from harness.threat import ThreatModel
from harness.yardsticks import ascend, fooled_by_yardsticks


def objective_of(samples):
    return _objective(LinearModel(), samples.labels)


def yardsticks(samples, threat, black_box=None):
    objective = objective_of(samples)
    _, gradient = objective.gradient(samples.images)
    return fooled_by_yardsticks(objective, samples, gradient, threat, black_box)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(("factor", "fools"), [(1.05, True), (0.95, False)], ids=["in", "out"])
def test_one_step_and_ten_fool_what_is_within_reach(norm, factor, fools):
    samples = linear_samples()
    threat = ThreatModel(norm, factor * linear_distance(norm))

    by_name = yardsticks(samples, threat)
    ascent = ascend(objective_of(samples), samples.images, threat)

    assert by_name["one-step"].tolist() == [fools] * 8
    assert ascent.fooled.tolist() == [fools] * 8
    assert ascent.rises.all()


def test_noise_fools_nobody_a_twentieth_within_reach():
    threat = ThreatModel("linf", 1.05 * linear_distance("linf"))

    # all of 192 signs would have to be the same
    assert not yardsticks(linear_samples(), threat)["noise"].any()


def test_an_image_without_a_gradient_stays_where_it_is():
    samples = linear_samples()
    threat = ThreatModel("l2", 1.05 * linear_distance("l2"))
    gradient = torch.full_like(samples.images, -1.0)
    gradient[0] = float("nan")

    by_name = fooled_by_yardsticks(objective_of(samples), samples, gradient, threat, None)

    assert by_name["one-step"].tolist() == [False] + [True] * 7


def darker(by):
    def search(objective, images, labels, threat, *, noise):
        return images - by

    return search


@pytest.mark.parametrize(
    ("by", "fools"),
    [(0.1, True), (0.05, False), (0.2, False), (float("nan"), False)],
    ids=["reaches", "falls short", "leaves the ball", "NaN"],
)
def test_a_search_counts_where_it_fools_inside_the_ball(by, fools):
    threat = ThreatModel("linf", 0.1 + 1e-3)

    found = yardsticks(linear_samples(gap=0.09), threat, darker(by))

    assert found["black-box"].tolist() == [fools] * 8


def test_without_a_search_there_is_no_black_box():
    assert set(yardsticks(linear_samples(), ThreatModel("linf", 0.1))) == {"noise", "one-step"}
