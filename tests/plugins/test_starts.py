"""Where attacks begin: at given points, at the image or at random; and draws of a pass."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from harness.api import AttackError, ThreatModel
from harness.passes import objective_of
from harness.tensors import Noise, noise_key
from harness.testing import LinearModel, linear_samples
from harness_attacks.apgd import apgd
from harness_attacks.fab import fab
from harness_attacks.objectives import negative_margin
from harness_attacks.pgd import pgd
from harness_attacks.square import square
from harness_attacks.targeted import apgd_targeted

SAMPLES = linear_samples(4, gap=0.1)
THREAT = ThreatModel("linf", 0.05)
RUNS = {
    "pgd": partial(pgd, steps=4, restarts=2),
    "apgd": partial(apgd, steps=4, restarts=2),
    "apgd-t": partial(apgd_targeted, steps=4, targets=2),
    "fab": partial(fab, steps=4, targets=1, restarts=2),
    "square": partial(square, queries=9, restarts=2),
}
"""Each with two starting points."""


def attacked(run, seed=0, model=None, **parameters):
    """What an attack finds, and the passes of each image."""
    bound = objective_of(model or LinearModel(5), negative_margin, SAMPLES.labels, batch_size=8)
    noise = Noise(noise_key(seed, "start"), SAMPLES.ids, (3, 8, 8))
    found = run(bound, SAMPLES.images, SAMPLES.labels, THREAT, noise=noise, **parameters)
    return found, bound.ledger.forwards


def points(scale=0.04):
    """Two batches of points around the images, no two alike."""
    noise = Noise(7, SAMPLES.ids, (3, 8, 8))
    return [SAMPLES.images + scale * noise.uniform(restart) for restart in range(2)]


GREEDY = [name for name in RUNS if name != "square"]  # which draws more than its start


@pytest.mark.parametrize("name", GREEDY)
def test_points_replay_a_run_whatever_the_seed(name):
    first, _ = attacked(RUNS[name], start=points())
    again, _ = attacked(RUNS[name], seed=1, start=points())

    assert torch.equal(first, again)


def test_square_begins_at_the_points():
    first, _ = attacked(partial(square, queries=0, restarts=2), start=points())
    again, _ = attacked(partial(square, queries=0, restarts=2), seed=1, start=points())
    others, _ = attacked(partial(square, queries=0, restarts=2), seed=1)

    assert torch.equal(first, again)
    assert not torch.equal(first, others)


@pytest.mark.parametrize("name", RUNS)
def test_points_outside_the_ball_and_the_pixel_range_are_brought_back(name):
    start = points(scale=4)
    kept = [point.clone() for point in start]

    found, _ = attacked(RUNS[name], start=start)

    assert THREAT.contains(found, SAMPLES.images).all()
    assert all(map(torch.equal, start, kept))


def test_a_walk_of_fab_never_looks_outside_the_pixel_range():
    class Watching(LinearModel):
        def forward(self, images):
            assert images.amin() >= 0
            assert images.amax() <= 1
            return super().forward(images)

    found, _ = attacked(RUNS["fab"], start=points(scale=4), model=Watching(5))

    assert found.isfinite().all()


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("count", [1, 3])
def test_too_few_or_too_many_points_are_refused(name, count):
    start = [*points(), *points()][:count]

    with pytest.raises(AttackError, match=r"start must hold 2 batches of shape \(4, 3, 8, 8\)"):
        attacked(RUNS[name], start=start)


@pytest.mark.parametrize("name", RUNS)
def test_a_word_that_is_not_known_is_refused(name):
    with pytest.raises(AttackError, match="init 'zero' is not known; write 'random' or 'clean'"):
        attacked(RUNS[name], init="zero")


@pytest.mark.parametrize("name", ["pgd", "apgd", "apgd-t", "fab"])
def test_from_the_clean_image_the_first_run_needs_no_noise(name):
    single = {"apgd-t": {"targets": 1}}.get(name, {"restarts": 1})

    first, _ = attacked(RUNS[name], init="clean", **single)
    again, _ = attacked(RUNS[name], seed=1, init="clean", **single)

    assert torch.equal(first, again)


class Faint(nn.Module):
    """`LinearModel` whose gradient is drawn: the right one on every second pass, else none."""

    def __init__(self):
        super().__init__()
        self.passes = 0

    def forward(self, images):
        self.passes += 1
        return LinearModel()(images if self.passes % 2 else images.detach())


@pytest.mark.parametrize("run", [pgd, apgd])
def test_draws_are_averaged_and_counted(run):
    _, forwards = attacked(partial(run, steps=3), model=Faint(), draws=4)

    assert forwards.tolist() == [4 * 4] * 4


def test_a_mean_of_draws_has_the_gradient_that_half_of_them_show():
    found, _ = attacked(partial(pgd, steps=10, init="clean"), model=Faint(), draws=2)

    # ten steps of a tenth of epsilon, all pixels down
    assert torch.allclose(found, SAMPLES.images - 0.05, atol=1e-6)


@pytest.mark.parametrize("run", [pgd, apgd])
def test_less_than_one_draw_is_refused(run):
    with pytest.raises(AttackError, match="draws must be at least 1, got 0"):
        attacked(run, draws=0)
