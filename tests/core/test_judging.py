"""Who is fooled, the original says in float32; what other numbers leave is attacked again."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from harness.cell import Protocol, Setting, evaluate
from harness.errors import WorkerError
from harness.judging import BoundAttack, Defence
from harness.numerics import Batches
from harness.passes import Surrogate
from harness.tensors import Noise, Samples
from harness.testing import LinearModel, linear_samples
from harness.threat import ThreatModel

EPSILON = 0.05


def loss(outcome):
    return -outcome.margin


def findings(model, attack, samples, *, surrogate=None, draws=1, **parameters):
    defence = Defence(model, Batches(64), surrogate=surrogate, draws=draws)
    bound = BoundAttack("attack", attack, loss, parameters)
    threats = {"e": ThreatModel("linf", EPSILON)}
    return evaluate(Setting(defence, [bound], threats, Protocol("nested"), 0), samples)


def records(*given, **named):
    return findings(*given, **named).records


class Fine(nn.Module):
    """Two classes whose weights differ by less than bfloat16 can tell: 1 and 1 + 2**-9.

    The margin of label 1 is (mean - 0.58) * 48 / 2**9 in float32. In bfloat16 both products are
    equal: the gradient is 0, and the image seems fooled.
    """

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(48, 2, bias=False)
        self.linear.weight.data.copy_(torch.tensor([[1.0], [1 + 2**-9]]).expand(2, 48))

    def forward(self, images):
        logits = self.linear(images.flatten(1)).float()
        return logits - torch.tensor([0.0, 0.58 * 48 * 2**-9])


@pytest.fixture
def pgd(registry):
    return registry.find("attacks", "pgd").load()


STEPS = {"steps": 3, "relative_step_size": 1.0, "init": "clean"}
GREY = linear_samples(4, gap=0.1, size=4)


def fine():
    return Fine().eval().requires_grad_(requires_grad=False)


def test_what_bfloat16_cannot_fool_is_attacked_again_in_float32(pgd):
    model = fine()

    found = records(model, pgd, GREY, surrogate=Surrogate(model, "bfloat16-gradients"), **STEPS)

    assert not any(record.is_robust for record in found)
    # bfloat16: 4 passes, each confirmed in vain, 3 of them backwards;
    # float32: a gradient at the image, one at the point that fools
    assert [record.forwards for record in found] == [8 + 2] * 4
    assert [record.backwards for record in found] == [3 + 2] * 4


def test_what_float32_fools_costs_what_it_costs_without_other_numbers(pgd):
    found = records(fine(), pgd, GREY, **STEPS)

    assert not any(record.is_robust for record in found)
    assert [record.forwards for record in found] == [2] * 4


def test_no_image_that_float32_fools_withstands_bfloat16(pgd):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.Tanh(), nn.Flatten(), nn.Linear(128, 5))
    net.eval().requires_grad_(requires_grad=False)
    images = Noise(0, torch.arange(32), (3, 8, 8)).uniform(0) / 2 + 0.5
    samples = Samples(torch.arange(32), images, net(images).argmax(dim=1))
    mixed = Surrogate(net, "bfloat16-gradients")

    exact = records(net, pgd, samples, steps=5)
    found = records(net, pgd, samples, surrogate=mixed, steps=5)

    left = {record.sample for record in exact if record.is_robust}
    assert 0 < len(left) < 32
    assert {record.sample for record in found if record.is_robust} <= left


def needs_gradient(objective, images, labels, threat, *, noise):
    """Steps against the gradient, and does not know what to do without one."""
    _, gradient = objective.gradient(images)
    if not gradient.any():
        raise ValueError("no gradient")
    return threat.project(images + threat.epsilon * gradient.sign(), images)


def test_what_an_attack_could_not_do_in_bfloat16_it_is_asked_again_in_float32():
    model = fine()

    [record, *_] = records(
        model, needs_gradient, GREY, surrogate=Surrogate(model, "bfloat16-gradients")
    )

    assert record.reason == ""
    assert record.flags == ()
    assert not record.is_robust


class Shifted(nn.Module):
    """`LinearModel` that takes every image for another mean."""

    def __init__(self, shift):
        super().__init__()
        self.shift = shift

    def forward(self, images):
        return LinearModel()(images + self.shift)


@pytest.mark.parametrize("shift", [-0.2, 0.2], ids=["alarmist", "blind"])
@pytest.mark.parametrize(("gap", "is_robust"), [(0.04, False), (0.06, True)])
def test_a_copy_that_lies_decides_nothing(pgd, shift, gap, is_robust):
    found = records(
        LinearModel(), pgd, linear_samples(3, gap), surrogate=Surrogate(Shifted(shift)), steps=12
    )

    assert [record.is_robust for record in found] == [is_robust] * 3
    # the margin is 2 * (gap - epsilon) once the steps have reached the corner of the ball
    assert min(record.adversarial_margin for record in found) >= 2 * (gap - EPSILON) - 1e-6


def test_the_records_hold_what_the_model_says_and_not_its_copy():
    def stay(objective, images, labels, threat, *, noise):
        return images

    [record] = records(LinearModel(), stay, linear_samples(1), surrogate=Surrogate(Shifted(-0.4)))

    assert record.adversarial_margin == pytest.approx(0.2, abs=1e-6)
    assert record.adversarial_prediction == 1


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        MemoryError(),
    ],
    ids=["cuda", "cpu", "python"],
)
def test_memory_that_runs_out_is_no_robustness(error):
    def greedy(objective, images, labels, threat, *, noise):
        raise error

    with pytest.raises(WorkerError, match="take a smaller shard_size"):
        records(LinearModel(), greedy, linear_samples(2))


class Random(nn.Module):
    """`LinearModel` whose logits get noise of the global generator, far larger than its margins."""

    def forward(self, images):
        logits = LinearModel()(images)
        return logits + torch.tensor([1.0, -1.0]) * torch.randn(len(logits), 1)


def test_two_evaluations_of_a_shard_of_a_random_model_are_equal(pgd):
    samples = linear_samples(6)
    before = torch.get_rng_state()

    first = findings(Random(), pgd, samples, draws=3, steps=3)
    second = findings(Random(), pgd, samples, draws=3, steps=3)

    assert first.records == second.records
    assert torch.equal(torch.get_rng_state(), before)


def test_another_seed_or_shard_draws_other_numbers(pgd):
    samples = linear_samples(6)

    whole = records(Random(), pgd, samples, steps=1)
    part = records(Random(), pgd, samples.rows(torch.tensor([0, 1])), steps=1)

    assert [record.clean_margin for record in whole[:2]] != [record.clean_margin for record in part]


class Wobbling(nn.Module):
    """`LinearModel` that adds 1 and -1 to the margin in turn: a mean of two draws is exact."""

    def __init__(self):
        super().__init__()
        self.passes = 0

    def forward(self, images):
        self.passes += 1
        shift = 0.5 if self.passes % 2 else -0.5
        return LinearModel()(images) + torch.tensor([-shift, shift])


def test_a_random_model_is_judged_by_the_mean_of_its_draws(pgd):
    found = records(Wobbling(), pgd, linear_samples(2, gap=0.1), draws=2, steps=2, init="clean")

    # two gradients and a score, two draws each; 0.2 - 2 * 0.01 after two steps of 0.1 epsilon
    assert [record.clean_margin for record in found] == pytest.approx([0.2] * 2, abs=1e-6)
    assert [record.adversarial_margin for record in found] == pytest.approx([0.18] * 2, abs=1e-6)
    assert [record.forwards for record in found] == [6] * 2


def test_starting_points_follow_the_images_that_are_left():
    seen = []

    def run(objective, images, labels, threat, *, noise, start):
        seen.append(start[0].shape == images.shape)
        return images

    samples = linear_samples(4)
    wrong = samples._replace(labels=samples.labels.clone().index_fill_(0, torch.tensor([1]), 0))
    attack = BoundAttack("started", run, lambda o: -o.margin, {"start": [samples.images]})
    setting = Setting(
        Defence(LinearModel(), Batches(8)),
        [attack],
        {"0.05": ThreatModel("linf", 0.05)},
        Protocol("nested"),
        0,
    )

    evaluate(setting, wrong)

    assert seen == [True]
