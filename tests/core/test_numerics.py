"""Passes: frozen, padded, counted, and a model that breaks the contract refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from harness.errors import ModelError
from harness.ledger import Ledger
from harness.numerics import Batches, check_classifier, frozen, resolve_device
from harness.passes import objective_of
from harness.seeing import predict
from harness.tensors import Noise, Outcome


def images(count=20):
    return Noise(0, torch.arange(count), (1, 8, 8)).uniform(0) / 2 + 0.5


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 64, 10),
    ).eval()


def cross_entropy(outcome: Outcome):
    return functional.cross_entropy(outcome.logits, outcome.labels, reduction="none")


def objective(model, count, batch_size, ledger=None):
    labels = torch.arange(count) % 10
    return objective_of(model, cross_entropy, labels, batch_size=batch_size, ledger=ledger)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 8, 13, 20])
def test_logits_and_gradients_are_the_same_bits_at_every_batch_size(batch_size):
    model = network()
    expected_score, expected = objective(model, 20, 20).gradient(images())

    score, gradient = objective(model, 20, batch_size).gradient(images())

    assert torch.equal(gradient, expected)
    assert torch.equal(score.logits, expected_score.logits)
    assert torch.equal(predict(model, images(), batches=Batches(batch_size)), expected_score.logits)


def test_the_gradient_is_that_of_each_image_alone():
    model = network()
    _, gradient = objective(model, 20, 20).gradient(images())

    one = images()[3:4].requires_grad_()
    (alone,) = torch.autograd.grad(functional.cross_entropy(model(one), torch.tensor([3])), one)

    assert torch.allclose(gradient[3:4], alone, atol=1e-6)


def test_rows_score_the_images_that_are_left():
    model = network()
    whole = objective(model, 20, 20)

    some = whole.rows(torch.tensor([2, 11])).score(images()[[2, 11]])

    assert torch.equal(some.loss, whole.score(images()).loss[[2, 11]])


def test_the_ledger_counts_each_image_by_itself():
    ledger = Ledger(20, torch.device("cpu"))
    whole = objective(network(), 20, 8, ledger)

    whole.gradient(images())
    whole.rows(torch.tensor([5])).score(images()[5:6])

    assert ledger.forwards.tolist() == [1] * 5 + [2] + [1] * 14
    assert ledger.backwards.tolist() == [1] * 20


def test_the_ledger_keeps_the_first_best_and_last_loss():
    ledger = Ledger(1, torch.device("cpu"))
    row = torch.tensor([0])

    for loss in (2.0, 5.0, 3.0):
        ledger.note(row, torch.tensor([loss]))

    assert [ledger.first_loss.item(), ledger.best_loss.item(), ledger.last_loss.item()] == [2, 5, 3]


def test_a_cleared_ledger_starts_again():
    ledger = Ledger(1, torch.device("cpu"))
    row = torch.tensor([0])
    ledger.count(row, forwards=3, backwards=1)
    ledger.note(row, torch.tensor([9.0]))

    ledger.clear()
    ledger.count(row, forwards=1)
    ledger.note(row, torch.tensor([1.0]))

    assert ledger.best_loss.item() == 1
    assert ledger.forwards.item() == 1
    assert ledger.backwards.item() == 0


def test_a_loss_without_gradient_gives_zeros():
    class Rounding(nn.Module):
        def forward(self, images):
            return (images.flatten(1)[:, :10] * 10).round().detach()

    _, gradient = objective(Rounding(), 20, 20).gradient(images())

    assert not gradient.any()


def test_a_frozen_model_is_restored_even_after_an_error():
    model = network().train()
    model[0].weight.requires_grad_(False)

    with pytest.raises(RuntimeError, match="inside"), frozen(model):
        assert not model.training
        assert not any(parameter.requires_grad for parameter in model.parameters())
        raise RuntimeError("inside")

    assert model.training
    assert [parameter.requires_grad for parameter in model.parameters()][:2] == [False, True]


class Broken(nn.Module):
    """A model of 10 classes with one fault."""

    def __init__(self, fault):
        super().__init__()
        self.fault = fault
        self.head = nn.Linear(64, 10)

    def train(self, mode=True):
        return self if self.fault == "training" else super().train(mode)

    def forward(self, images):
        logits = self.head(images.flatten(1))
        return {
            "classes": logits[:, :3],
            "nan": logits * float("nan"),
            "tuple": (logits, 0),
            "half": logits.half(),
            "flat": logits.sum(dim=1),
        }.get(self.fault, logits)


@pytest.mark.parametrize(
    ("fault", "remedy"),
    [
        ("classes", r"build the model for 10 classes"),
        ("nan", r"check the weights"),
        ("tuple", r"return the logits alone"),
        ("half", r"return float32"),
        ("training", r"do not override train\(\)"),
        ("flat", r"\(16, 10\) was expected"),
    ],
)
def test_a_model_that_breaks_the_contract_is_refused(fault, remedy):
    model = Broken(fault).eval()

    with pytest.raises(ModelError, match=remedy):
        check_classifier(model, images(12), 10, "mine")


def test_a_model_that_wants_another_size_is_told_to_resize():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)).eval()

    with pytest.raises(ModelError, match="resize inside the model"):
        check_classifier(model, images(12), 10, "mine")


def test_a_named_device_is_taken_at_its_word():
    assert resolve_device("cpu") == torch.device("cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_uniform_noise_has_the_same_bits_on_a_gpu():
    here = Noise(7, torch.arange(50), (3, 32, 32)).uniform(1, 2)

    there = Noise(7, torch.arange(50, device="cuda"), (3, 32, 32)).uniform(1, 2)

    assert torch.equal(here, there.cpu())


def test_an_image_with_several_candidates_is_counted_for_each():
    ledger = Ledger(3, torch.device("cpu"))

    ledger.count(torch.tensor([1, 1, 2]), forwards=1, backwards=1)

    assert ledger.forwards.tolist() == [0, 2, 1]
    assert ledger.backwards.tolist() == [0, 2, 1]
    assert ledger.first_loss.isnan().all()
