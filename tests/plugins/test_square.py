"""The Square Attack's schedule and shapes worked out by hand, and its laws beyond the contract."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from harness.api import AttackError, ThreatModel
from harness.ledger import Ledger
from harness.passes import objective_of
from harness.tensors import Noise, Samples, is_fooled
from harness.testing import LinearModel, ToyMoE, linear_distance, linear_samples
from harness_attacks.objectives import cross_entropy, negative_margin
from harness_attacks.square import bump, square, square_share

SHAPES = pytest.mark.parametrize(
    "shape", [(3, 8, 8), (1, 8, 8), (3, 6, 9), (1, 14, 5), (3, 2, 2)], ids=str
)
RADII = pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.03), ("l2", 0.6)])
NORMS = pytest.mark.parametrize("norm", ["linf", "l2"])


def attack(samples, threat, *, model=None, ledger=None, loss=negative_margin, **parameters):
    count = len(samples.ids)
    objective = objective_of(
        model or LinearModel(),
        loss,
        samples.labels,
        batch_size=count,
        ledger=ledger,
        accepted=samples.accepted,
    )
    noise = Noise(0, samples.ids, tuple(samples.images.shape[1:]))
    parameters = {"queries": 60, **parameters}
    return square(objective, samples.images, samples.labels, threat, noise=noise, **parameters)


class Indifferent(nn.Module):
    """Always sure of the first class, so that the start stays best; writes down what it sees."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, images):
        self.seen.append(images[0].clone())
        return torch.tensor([1.0, 0.0]).expand(len(images), 2)


def points_around_grey(shape, threat, *, queries):
    """The start, and every point that is tried beside it."""
    model, one = Indifferent(), torch.zeros(1, dtype=torch.int64)
    samples = Samples(one, torch.full((1, *shape), 0.5), one)
    attack(samples, threat, model=model, queries=queries)
    return torch.stack(model.seen)


def random_case(count=32, shape=(3, 8, 8)):
    """A model with a curved boundary, and images that it gets right."""
    torch.manual_seed(0)
    model = ToyMoE(4, shape, gradient="soft").requires_grad_(False)
    images = Noise(5, torch.arange(count), shape).uniform(0) / 2 + 0.5
    return model, Samples(torch.arange(count), images, model(images).argmax(dim=1))


@SHAPES
@NORMS
def test_stays_in_the_ball_and_the_pixel_range(norm, shape):
    model, samples = random_case(shape=shape)
    threat = ThreatModel(norm, 0.1)

    found = attack(samples, threat, model=model, stop="never")

    assert threat.contains(found, samples.images).all()
    assert not torch.equal(found, samples.images)


@pytest.mark.parametrize(
    ("norm", "factor", "fooled"),
    # no sum of squares is flat, so that L2 never comes close to the plane's own direction
    [("linf", 1.05, True), ("linf", 0.95, False), ("l2", 2.5, True), ("l2", 0.95, False)],
)
def test_fools_exactly_the_images_within_reach(norm, factor, fooled):
    samples = linear_samples()

    found = attack(samples, ThreatModel(norm, factor * linear_distance(norm)), queries=1000)

    assert is_fooled(LinearModel()(found), samples.labels).tolist() == [fooled] * 8


@RADII
def test_the_same_seed_gives_the_same_images_and_changes_no_input(norm, epsilon):
    model, samples = random_case()
    before = samples.images.clone()

    found = attack(samples, ThreatModel(norm, epsilon), model=model, restarts=2)
    again = attack(samples, ThreatModel(norm, epsilon), model=model, restarts=2)

    assert torch.equal(found, again)
    assert torch.equal(samples.images, before)


@RADII
def test_an_image_fares_the_same_alone_and_in_a_batch(norm, epsilon):
    model, samples = random_case(12)
    threat = ThreatModel(norm, epsilon)

    together = attack(samples, threat, model=model)
    alone = [attack(samples.rows(torch.tensor([row])), threat, model=model) for row in range(12)]

    assert torch.allclose(torch.cat(alone), together, atol=1e-5)


@RADII
def test_leaving_the_race_changes_no_verdict(norm, epsilon):
    model, samples = random_case()
    threat = ThreatModel(norm, epsilon)

    stopped = attack(samples, threat, model=model, restarts=2)
    endured = attack(samples, threat, model=model, restarts=2, stop="never")

    fooled = is_fooled(model(stopped), samples.labels)
    assert torch.equal(fooled, is_fooled(model(endured), samples.labels))
    assert 0 < fooled.sum() < 32


@RADII
def test_a_second_restart_goes_another_way_and_loses_nothing(norm, epsilon):
    model, samples = random_case()
    threat, last = ThreatModel(norm, epsilon), Ledger(32, torch.device("cpu"))

    once = attack(samples, threat, model=model)
    twice = attack(samples, threat, model=model, restarts=2, ledger=last)

    gained = (
        is_fooled(model(twice), samples.labels).int() - is_fooled(model(once), samples.labels).int()
    )
    assert gained.min() == 0
    assert not torch.equal(once, twice)
    # 2 * (60 + 1) for those that nothing fools
    assert last.forwards.max() == 122


@RADII
def test_an_image_that_nothing_fools_is_returned_where_its_margin_is_lowest(norm, epsilon):
    model, samples = random_case()
    ledger = Ledger(32, torch.device("cpu"))

    found = attack(samples, ThreatModel(norm, epsilon / 3), model=model, ledger=ledger, restarts=2)

    margin = ledger.best_loss.neg()  # the objective is the negative margin
    robust = margin > 0
    assert robust.any()
    reached = model(found).topk(2).values
    assert torch.allclose((reached[:, 0] - reached[:, 1])[robust], margin[robust], atol=1e-6)


@RADII
def test_the_margin_is_minimised_whatever_the_objective_climbs(norm, epsilon):
    model, samples = random_case()
    threat = ThreatModel(norm, epsilon)

    by_margin = attack(samples, threat, model=model)
    by_cross_entropy = attack(samples, threat, model=model, loss=cross_entropy)

    assert torch.equal(by_margin, by_cross_entropy)


@NORMS
def test_passes_are_counted_as_the_card_says(norm):
    samples, ledger = linear_samples(2), Ledger(2, torch.device("cpu"))

    attack(samples, ThreatModel(norm, 0.01), ledger=ledger, queries=10, restarts=3)

    # 3 * (10 + 1), none of them backwards
    assert ledger.forwards.tolist() == [33, 33]
    assert ledger.backwards.tolist() == [0, 0]


@NORMS
def test_an_image_with_several_correct_classes_is_fooled_out_of_all_of_them(norm):
    model, samples = random_case()
    either = model(samples.images).topk(2).indices
    accepted = torch.zeros(32, 4, dtype=torch.bool).scatter(1, either, value=True)
    samples = samples._replace(accepted=accepted)

    found = attack(samples, ThreatModel(norm, {"linf": 0.1, "l2": 2}[norm]), model=model)

    fooled = is_fooled(model(found), samples.labels, accepted)
    assert fooled.any()
    assert not accepted.gather(1, model(found).argmax(dim=1, keepdim=True))[fooled].any()


def test_linf_starts_from_stripes_one_pixel_wide():
    samples, threat = linear_samples(), ThreatModel("linf", 0.05)

    perturbation = attack(samples, threat, queries=0) - samples.images

    assert torch.allclose(perturbation.abs(), torch.tensor(0.05))
    assert torch.equal(perturbation, perturbation[:, :, :1].expand(-1, -1, 8, -1))
    assert len(perturbation[:, :, 0].flatten().unique()) == 2


def test_l2_starts_from_tiles_on_the_sphere():
    images = torch.full((4, 3, 12, 17), 0.5)
    samples = Samples(torch.arange(4), images, torch.ones(4, dtype=torch.int64))
    threat = ThreatModel("l2", 0.05)

    perturbation = attack(samples, threat, queries=0) - images

    assert threat.size(perturbation).tolist() == pytest.approx([0.05] * 4, rel=1e-4)
    # tiles of 12 // 5 = 2 pixels: 6 fill the height, 8 the width but for the last column
    assert (perturbation[:, :, :, 16] == 0).all()
    # in each of them a hill of 1x2 pixels lies beside a hollow of the same form
    tiles = perturbation[:, :, :, :16].unfold(2, 2, 2).unfold(3, 2, 2)
    assert torch.allclose(tiles.sum((4, 5)), torch.zeros(4, 3, 6, 8), atol=1e-6)
    assert (tiles != 0).all()


@pytest.mark.parametrize(
    ("shape", "first"),
    # side of a square: sqrt(0.8 * 8 * 8) = 7.2, sqrt(0.8 * 6 * 9) = 6.6, but no more than fits
    [((3, 8, 8), 7), ((3, 6, 9), 6), ((1, 14, 5), 5)],
    ids=str,
)
def test_a_change_in_linf_paints_one_square_to_the_corner_of_the_ball(shape, first):
    points = points_around_grey(shape, ThreatModel("linf", 0.1), queries=60)

    changed = (points[1:] != points[0]).any(dim=1)
    assert (points - 0.5).abs().allclose(torch.tensor(0.1))
    assert changed.any(dim=2).sum(dim=1).max() <= first
    assert changed.any(dim=1).sum(dim=1).max() <= first
    # sqrt(0.8 / 4 * 64) = 3.6, sqrt(0.8 / 4 * 54) = 3.3, sqrt(0.8 / 4 * 70) = 3.7
    last = {(3, 8, 8): 4, (3, 6, 9): 3, (1, 14, 5): 4}[shape]
    assert changed[51:].any(dim=2).sum(dim=1).max() <= last


def test_a_square_has_one_colour_in_each_channel():
    points = points_around_grey((3, 8, 8), ThreatModel("linf", 0.1), queries=11)

    # the first squares are 7 pixels wide: they cover the middle 6 wherever they lie
    middle = points[1:, :, 1:7, 1:7].flatten(2)
    assert torch.equal(middle.amax(dim=2), middle.amin(dim=2))
    assert len(middle[:, :, 0].unique(dim=0)) > 4


@NORMS
def test_squares_reach_every_corner_of_the_image(norm):
    points = points_around_grey((3, 8, 10), ThreatModel(norm, 0.1), queries=300)

    changed = (points[1:] != points[0]).any(dim=1).any(dim=0)
    assert changed.all()


def test_a_change_in_l2_stays_on_the_sphere():
    threat = ThreatModel("l2", 0.1)

    points = points_around_grey((3, 8, 10), threat, queries=300)

    assert threat.size(points - 0.5).tolist() == pytest.approx([0.1] * 301, rel=1e-4)


def test_start_replaces_stripes_and_tiles():
    samples, threat = linear_samples(), ThreatModel("linf", 0.05)
    start = [samples.images - 0.02, samples.images + 0.2]

    found = attack(samples, threat, queries=0, restarts=2, start=start)

    # the second start would be farther from the plane, even after it is projected
    assert torch.allclose(found, samples.images - 0.02)


@pytest.mark.parametrize(
    ("change", "share"),
    [
        (0, 0.8),
        (10, 0.8),
        (11, 0.4),
        (50, 0.4),
        (51, 0.2),
        (200, 0.2),
        (201, 0.1),
        (500, 0.1),
        (501, 0.05),
        (1000, 0.05),
        (1001, 0.025),
        (2000, 0.025),
        (2001, 0.0125),
        (4000, 0.0125),
        (4001, 0.00625),
        (4999, 0.00625),
        (6001, 0.003125),
        (8000, 0.003125),
        (8001, 0.0015625),
        (99999, 0.0015625),
    ],
)
def test_squares_shrink_by_the_official_schedule(change, share):
    assert square_share(change, p_init=0.8) == pytest.approx(share)


def test_a_bump_of_three_pixels_is_the_one_worked_out_by_hand():
    # heights are 1 + 1/4 in the middle and 1/4 beside it: the upper part is (1/4, 5/4, 1/4), of
    # norm sqrt(27)/4, the lower part ((1/4, 1/4, 1/4), (1/4, 5/4, 1/4)), of norm sqrt(30)/4
    upper, lower = 1 / 54**0.5, 1 / 60**0.5

    expected = torch.tensor(
        [
            [upper, 5 * upper, upper],
            [-lower, -lower, -lower],
            [-lower, -5 * lower, -lower],
        ]
    )
    assert torch.allclose(bump(3), expected)


@pytest.mark.parametrize("size", [1, 2, 3, 6, 27])
def test_a_bump_has_norm_one(size):
    assert bump(size).norm().item() == pytest.approx(1)


@pytest.mark.parametrize(
    ("parameters", "remedy"),
    [
        ({"stop": "always"}, "write 'first' or 'never'"),
        ({"start": [torch.zeros(8, 3, 8, 8)] * 2}, "1 batches of shape"),
    ],
    ids=["stop", "start"],
)
def test_what_it_does_not_know_is_refused(parameters, remedy):
    with pytest.raises(AttackError, match=remedy):
        attack(linear_samples(), ThreatModel("linf", 0.1), **parameters)


def test_a_severity_is_refused():
    with pytest.raises(AttackError, match="write 'linf' or 'l2'"):
        attack(linear_samples(), ThreatModel("severity", 1))
