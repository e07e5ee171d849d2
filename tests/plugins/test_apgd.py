"""AutoPGD against the official code's own numbers, and its laws beyond the contract."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from golden_files import golden_arrays
from harness.api import AttackError, ThreatModel
from harness.ledger import Ledger
from harness.passes import LossObjective, objective_of
from harness.tensors import Noise, Outcome, Samples, is_fooled
from harness.testing import LinearModel, ToyMoE, linear_distance, linear_samples
from harness_attacks.apgd import apgd, review_intervals
from harness_attacks.objectives import (
    cross_entropy,
    difference_of_logits_ratio,
    negative_margin,
    targeted_logits_ratio,
)
from harness_attacks.targeted import apgd_targeted, likeliest_others

LOSSES = {
    "ce": cross_entropy,
    "dlr": difference_of_logits_ratio,
    "dlr-targeted": targeted_logits_ratio,
}
IMAGES = ["drawn", "apgd"]  # those of tests/golden, and photographs that lie beside the data
FILES = [
    f"{images}_{loss}" for images in IMAGES for loss in ("ce_linf", "dlr_linf", "ce_l2", "dlr_l2")
]
TARGETED = [f"{images}_t_linf" for images in IMAGES]


class TinyNet(nn.Module):
    """The fixture of the golden files: three convolutions and a linear layer."""

    def __init__(self):
        super().__init__()
        self.c1 = nn.Conv2d(3, 12, 3, stride=2, padding=1)
        self.c2 = nn.Conv2d(12, 24, 3, stride=2, padding=1)
        self.c3 = nn.Conv2d(24, 24, 3, stride=2, padding=1)
        self.fc = nn.Linear(24, 10)

    def forward(self, images):
        features = (images - 0.5) / 0.25
        for layer in (self.c1, self.c2, self.c3):
            features = functional.relu(layer(features))
        return self.fc(features.mean(dim=(2, 3)))


@dataclass(frozen=True)
class Recorded:
    """An objective that writes down every pass."""

    inner: LossObjective
    points: list = field(default_factory=list)
    losses: list = field(default_factory=list)

    def score(self, candidates):
        return self._noted(candidates, self.inner.score(candidates))

    def gradient(self, candidates):
        score, gradient = self.inner.gradient(candidates)
        return self._noted(candidates, score), gradient

    def rows(self, index):
        return self._with(self.inner.rows(index))

    def under(self, loss):
        return self._with(self.inner.under(loss))

    def toward(self, targets):
        return self._with(self.inner.toward(targets))

    def through(self, view):
        return self._with(self.inner.through(view))

    def of(self, part):
        return self._with(self.inner.of(part))

    def averaged(self, draws):
        return self._with(self.inner.averaged(draws))

    @property
    def num_experts(self):
        return self.inner.num_experts

    def _with(self, inner):
        return Recorded(inner, self.points, self.losses)

    def _noted(self, candidates, score):
        self.points.append(candidates.clone())
        self.losses.append(score.loss)
        return score


@dataclass(frozen=True)
class Golden:
    """One run of the official code, and all that is needed to repeat it."""

    arrays: dict
    model: nn.Module
    samples: Samples  # those that the official code attacked
    threat: ThreatModel
    loss: object
    steps: int

    def replayed(self, **parameters):
        count = len(self.samples.ids)
        ledger = Ledger(count, torch.device("cpu"))
        labels = self.samples.labels
        objective = Recorded(
            objective_of(self.model, self.loss, labels, batch_size=count, ledger=ledger)
        )
        found = apgd(
            objective,
            self.samples.images,
            self.samples.labels,
            self.threat,
            noise=Noise(0, self.samples.ids, tuple(self.samples.images.shape[1:])),
            steps=self.steps,
            start=[torch.from_numpy(self.arrays["r0_start"])],
            **parameters,
        )
        return found, objective, ledger


def golden(name):
    arrays = golden_arrays("apgd", f"{name}.npz")
    inputs = golden_arrays("apgd", "drawn_inputs.npz" if name.startswith("drawn") else "inputs.npz")
    about = json.loads(str(arrays["meta"]))
    weights = golden_arrays("apgd", "tinynet_weights.npz")
    model = TinyNet().eval().requires_grad_(False)
    model.load_state_dict({key: torch.from_numpy(weights[key]) for key in weights})
    ids = torch.from_numpy(arrays["r0_index"])
    images = torch.from_numpy(inputs["x_uint8"]).float() / 255
    samples = Samples(ids, images[ids], torch.from_numpy(arrays["y"])[ids])
    threat = ThreatModel(about["norm"].lower(), about["eps"])
    return Golden(arrays, model, samples, threat, LOSSES[about["loss"]], about["n_iter"])


@pytest.mark.parametrize("name", FILES)
def test_the_losses_of_all_steps_are_the_official_ones(name):
    run = golden(name)

    _, passes, _ = run.replayed(stop="never")

    expected = run.arrays["r0_losses"]
    # the ratio has a pole where first and third logit meet, which blows up the last bits of a norm
    scale = np.maximum(np.abs(expected), 1)
    losses = torch.stack(passes.losses).numpy()
    np.testing.assert_allclose(losses / scale, expected / scale, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in FILES if "_ce_" in name])
def test_the_iterates_are_the_official_ones(name):
    run = golden(name)

    _, passes, _ = run.replayed(stop="never")

    points = torch.stack(passes.points)[:, run.arrays["r0_trace_rows"]].numpy()
    np.testing.assert_allclose(points, run.arrays["r0_trace"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("stop", ["first", "never"])
@pytest.mark.parametrize("name", FILES)
def test_the_images_that_the_official_code_fools_are_fooled(name, stop):
    run = golden(name)

    found, _, _ = run.replayed(stop=stop)

    fooled = is_fooled(run.model(found), run.samples.labels)
    assert fooled.tolist() == run.arrays["r0_success"].tolist()


@pytest.mark.parametrize("name", FILES)
def test_an_image_costs_the_passes_up_to_its_first_fooling_step(name):
    run = golden(name)
    first = run.arrays["r0_first_fooled_step"]

    _, _, ledger = run.replayed(stop="first")

    # the start is step 0 and costs a pass; -1 stands for an image that nothing fools
    assert ledger.forwards.tolist() == np.where(first < 0, run.steps + 1, first + 1).tolist()


@pytest.mark.parametrize("name", FILES)
def test_without_stopping_the_last_fooling_iterate_is_returned_as_officially(name):
    run = golden(name)
    fooled = run.arrays["r0_success"]

    found, _, _ = run.replayed(stop="never")

    expected = run.arrays["x_adv"][run.arrays["r0_index"]]
    np.testing.assert_allclose(found.numpy()[fooled], expected[fooled], rtol=0, atol=1e-4)


def attack(samples, threat, *, loss=negative_margin, ledger=None, model=None, **parameters):
    count = len(samples.ids)
    objective = objective_of(
        model or LinearModel(),
        loss,
        samples.labels,
        batch_size=count,
        ledger=ledger,
    )
    noise = Noise(0, samples.ids, (3, 8, 8))
    parameters = {"steps": 20, **parameters}
    return apgd(objective, samples.images, samples.labels, threat, noise=noise, **parameters)


def random_case(count=64):
    """A model with a curved boundary, and images that it gets right."""
    torch.manual_seed(0)
    model = ToyMoE(4, (3, 8, 8), gradient="soft").requires_grad_(False)
    images = Noise(5, torch.arange(count), (3, 8, 8)).uniform(0) / 2 + 0.5
    return model, Samples(torch.arange(count), images, model(images).argmax(dim=1))


RADII = pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.02), ("l2", 0.2)])


@RADII
def test_stays_in_the_ball_and_the_pixel_range(norm, epsilon):
    model, samples = random_case()
    threat = ThreatModel(norm, epsilon)

    found = attack(samples, threat, model=model, stop="never")

    assert threat.contains(found, samples.images).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(("factor", "fooled"), [(1.05, True), (0.95, False)])
def test_fools_exactly_the_images_within_reach(norm, factor, fooled):
    samples = linear_samples()

    found = attack(samples, ThreatModel(norm, factor * linear_distance(norm)))

    assert is_fooled(LinearModel()(found), samples.labels).tolist() == [fooled] * 8


@RADII
def test_the_same_seed_gives_the_same_images_and_changes_no_input(norm, epsilon):
    model, samples = random_case()
    before = samples.images.clone()

    found = attack(samples, ThreatModel(norm, epsilon), model=model, restarts=2)
    again = attack(samples, ThreatModel(norm, epsilon), model=model, restarts=2)

    assert torch.equal(found, again)
    assert torch.equal(samples.images, before)


@pytest.mark.parametrize("loss", [cross_entropy, difference_of_logits_ratio], ids=["ce", "dlr"])
@RADII
def test_an_image_fares_the_same_alone_and_in_a_batch(norm, epsilon, loss):
    model, samples = random_case(16)
    threat = ThreatModel(norm, epsilon)

    together = attack(samples, threat, model=model, loss=loss)
    alone = [
        attack(samples.rows(torch.tensor([row])), threat, model=model, loss=loss)
        for row in range(16)
    ]

    assert torch.allclose(torch.cat(alone), together, atol=1e-5)


@RADII
def test_leaving_the_race_changes_no_verdict(norm, epsilon):
    model, samples = random_case()

    stopped = attack(samples, ThreatModel(norm, epsilon), model=model, restarts=2)
    endured = attack(samples, ThreatModel(norm, epsilon), model=model, restarts=2, stop="never")

    fooled = is_fooled(model(stopped), samples.labels)
    assert torch.equal(fooled, is_fooled(model(endured), samples.labels))
    assert 0 < fooled.sum() < 64


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_random_start_touches_the_sphere(norm):
    samples, threat = linear_samples(), ThreatModel(norm, 0.05)

    found = attack(samples, threat, steps=0)

    assert threat.size(found - samples.images).tolist() == pytest.approx([0.05] * 8, rel=1e-5)


def test_from_the_clean_image_the_first_step_crosses_the_ball():
    samples, threat = linear_samples(), ThreatModel("linf", 0.05)

    found = attack(samples, threat, steps=1, init="clean")

    # 2 * epsilon along the gradient, which is the same in every pixel, is cut to epsilon
    assert torch.allclose(found, samples.images - 0.05)


def test_an_image_that_nothing_fools_is_returned_where_its_loss_is_highest():
    model, samples = random_case()
    threat, ledger = ThreatModel("linf", 0.01), Ledger(64, torch.device("cpu"))

    found = attack(samples, threat, model=model, ledger=ledger, loss=cross_entropy, restarts=2)

    logits = model(found)
    robust = ~is_fooled(logits, samples.labels)
    losses = cross_entropy(Outcome(logits, samples.labels))
    assert robust.any()
    assert torch.allclose(losses[robust], ledger.best_loss[robust], atol=1e-6)


def test_passes_are_counted_as_the_card_says():
    samples, ledger = linear_samples(2), Ledger(2, torch.device("cpu"))

    attack(samples, ThreatModel("linf", 0.01), ledger=ledger, steps=10, restarts=3)

    # 3 * (10 + 1); the last pass of a restart needs no gradient
    assert ledger.forwards.tolist() == [33, 33]
    assert ledger.backwards.tolist() == [30, 30]


@pytest.mark.parametrize(
    ("steps", "reviews"),
    [(0, []), (1, [1]), (20, [4, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20])],
    ids=["none", "one", "twenty"],
)
def test_reviews_come_ever_closer(steps, reviews):
    # 20 steps: the interval starts at int(4.4) and shrinks by 1 down to int(1.2)
    assert list(review_intervals(steps)) == reviews


@pytest.mark.parametrize(
    ("parameters", "remedy"),
    [
        ({"init": "zero"}, "write 'random' or 'clean'"),
        ({"stop": "always"}, "write 'first' or 'never'"),
        ({"start": [torch.zeros(8, 3, 8, 8)] * 2}, "1 batches of shape"),
    ],
    ids=["init", "stop", "start"],
)
def test_what_it_does_not_know_is_refused(parameters, remedy):
    with pytest.raises(AttackError, match=remedy):
        attack(linear_samples(), ThreatModel("linf", 0.1), **parameters)


def test_the_difference_of_logits_ratio_ignores_scale_and_shift():
    logits = torch.tensor([[4.0, 1.0, 3.0, 2.0], [4.0, 1.0, 3.0, 2.0]])
    labels = torch.tensor([0, 3])

    # (3 - 4) / (4 - 2) where the label leads, (4 - 2) / (4 - 2) where it is third
    expected = pytest.approx([-0.5, 1.0])
    assert difference_of_logits_ratio(Outcome(logits, labels)).tolist() == expected
    assert difference_of_logits_ratio(Outcome(100 * logits + 7, labels)).tolist() == expected


def test_the_difference_of_logits_ratio_of_two_classes_is_refused():
    with pytest.raises(AttackError, match="at least 3 classes, got 2; take 'margin' or 'ce'"):
        attack(linear_samples(), ThreatModel("linf", 0.1), loss=difference_of_logits_ratio)


def replayed_towards_targets(name, **parameters):
    """The official targeted run, from its own starts."""
    run = golden(name)
    starts = []
    for place in range(9):
        start = run.samples.images.clone()
        rows = [run.samples.ids.tolist().index(i) for i in run.arrays[f"r{place}_index"].tolist()]
        start[rows] = torch.from_numpy(run.arrays[f"r{place}_start"])
        starts.append(start)
    count = len(run.samples.ids)
    ledger = Ledger(count, torch.device("cpu"))
    objective = objective_of(
        run.model, cross_entropy, run.samples.labels, batch_size=count, ledger=ledger
    )
    found = apgd_targeted(
        objective,
        run.samples.images,
        run.samples.labels,
        run.threat,
        noise=Noise(0, run.samples.ids, tuple(run.samples.images.shape[1:])),
        steps=run.steps,
        start=starts,
        **parameters,
    )
    return run, found, ledger


@pytest.mark.parametrize("stop", ["first", "never"])
@pytest.mark.parametrize("name", TARGETED)
def test_targeted_autopgd_fools_the_images_that_the_official_one_does(name, stop):
    run, found, _ = replayed_towards_targets(name, stop=stop)

    fooled = is_fooled(run.model(found), run.samples.labels)

    assert torch.equal(fooled, torch.from_numpy(run.arrays["success"])[run.samples.ids])


@pytest.mark.parametrize("name", TARGETED)
def test_targeted_autopgd_is_drawn_to_the_official_targets(name):
    run = golden(name)
    order = likeliest_others(run.model(run.samples.images), run.samples.labels)

    for place in range(9):
        rows = [run.samples.ids.tolist().index(i) for i in run.arrays[f"r{place}_index"].tolist()]
        assert order[rows, place].tolist() == run.arrays[f"r{place}_y_target"].tolist()


@pytest.mark.parametrize("name", TARGETED)
def test_targeted_autopgd_spends_no_pass_on_fooled_images(name):
    run, _, ledger = replayed_towards_targets(name, stop="first")

    # one pass to rank the classes, then those of each target up to the first that fools
    expected = torch.ones(len(run.samples.ids), dtype=torch.int64)
    for place in range(9):
        rows = [run.samples.ids.tolist().index(i) for i in run.arrays[f"r{place}_index"].tolist()]
        first = torch.from_numpy(run.arrays[f"r{place}_first_fooled_step"])
        expected[rows] += torch.where(first < 0, run.steps + 1, first + 1)
    assert torch.equal(ledger.forwards, expected)


def test_targeted_dlr_by_hand():
    logits = torch.tensor([[4.0, 3.0, 2.0, 0.0]])
    outcome = Outcome(logits, torch.tensor([0]), targets=torch.tensor([2]))

    # minus 2 over 4 - 1
    assert targeted_logits_ratio(outcome).tolist() == pytest.approx([-2 / 3])


@pytest.mark.parametrize(
    ("outcome", "message"),
    [
        (Outcome(torch.zeros(1, 3), torch.tensor([0])), "at least 4 classes"),
        (Outcome(torch.zeros(1, 4), torch.tensor([0])), "needs targets"),
    ],
    ids=["classes", "targets"],
)
def test_targeted_dlr_refuses_what_has_no_meaning(outcome, message):
    with pytest.raises(AttackError, match=message):
        targeted_logits_ratio(outcome)
