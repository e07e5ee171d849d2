"""Batches: halved where memory runs out, padded to few sizes, as large as is fast; and modes."""

from __future__ import annotations

import time

import pytest
import torch

from harness.errors import UsageError
from harness.modes import Mode
from harness.numerics import Batches, fastest_batch, in_numbers, use_exact_float32
from harness.passes import objective_of
from harness.seeing import predict
from harness.testing import LinearModel, linear_samples

CPU = torch.device("cpu")


class Small(LinearModel):
    """`LinearModel` on a device that holds few images."""

    def __init__(self, most, error=torch.OutOfMemoryError):
        super().__init__()
        self.most = most
        self.error = error
        self.seen = []

    def forward(self, images):
        self.seen.append(len(images))
        if len(images) > self.most:
            raise self.error("DefaultCPUAllocator: can't allocate memory")
        return super().forward(images)


def images(count):
    return linear_samples(count).images + torch.arange(count)[:, None, None, None] / 1000


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
def test_memory_that_runs_out_halves_the_batches_for_good_and_changes_no_result(error):
    model, batches = Small(16, error), Batches(64)

    logits = predict(model, images(50), batches=batches)
    predict(model, images(50), batches=batches)

    assert torch.equal(logits, predict(LinearModel(), images(50), batches=Batches(8)))
    assert batches.size == 16
    # 50 rows are 56 with padding; 32; then 16, 16, 16 and 2 with 6 of padding, twice
    assert model.seen == [56, 32, 16, 16, 16, 8, 16, 16, 16, 8]


def test_passes_that_memory_refused_are_not_counted():
    model = Small(16)
    bound = objective_of(model, lambda o: -o.margin, torch.ones(40).long(), batch_size=64)

    bound.gradient(images(40))

    assert bound.ledger.forwards.tolist() == [1] * 40


def test_the_smallest_batch_that_does_not_fit_raises():
    batches = Batches(64)

    with pytest.raises(torch.OutOfMemoryError):
        predict(Small(4), images(50), batches=batches)

    assert batches.size == 8


def test_another_error_is_raised_as_it_is():
    def broken(rows, count):
        raise RuntimeError("shapes do not match")

    batches = Batches(64)

    with pytest.raises(RuntimeError, match="shapes do not match"):
        batches.over(images(20), broken)
    assert batches.size == 64


@pytest.mark.parametrize(
    ("count", "plain", "bucketed"),
    [(1, 8, 8), (8, 8, 8), (9, 16, 16), (17, 24, 32), (33, 40, 64), (64, 64, 64)],
)
def test_rows_are_padded_to_eights_or_to_powers_of_two(count, plain, bucketed):
    rows = torch.arange(count)

    eights = Batches(64).padded(rows)
    powers = Batches(64, is_bucketed=True).padded(rows)

    assert (len(eights), len(powers)) == (plain, bucketed)
    assert torch.equal(powers[:count], rows)
    assert (powers[count:] == count - 1).all()


@pytest.mark.parametrize("count", [3, 21, 40])
def test_buckets_change_no_result(count):
    expected = predict(LinearModel(), images(count), batches=Batches(16))

    found = predict(LinearModel(), images(count), batches=Batches(16, is_bucketed=True))

    assert torch.equal(found, expected)


def test_a_batch_grows_as_long_as_it_pays():
    tried = []

    def run(size):
        tried.append(size)
        time.sleep(0.004 if size <= 32 else 0.02)

    # 32 images take the time of 8; 64 take five times that
    assert fastest_batch(run, largest=1024) == 32
    assert tried == [8, 8, 16, 16, 32, 32, 64, 64, 128, 128]


def test_one_size_that_other_work_slowed_is_not_the_end():
    def run(size):
        time.sleep(0.04 if size == 16 else 0.004)

    assert fastest_batch(run, largest=64) == 64


def test_a_batch_grows_no_larger_than_makes_sense():
    assert fastest_batch(lambda size: time.sleep(0.004), largest=100) == 64


def test_a_batch_that_does_not_fit_is_not_the_fastest():
    model = Small(16)

    def run(size):
        model(images(size))
        time.sleep(0.004)

    assert fastest_batch(run, largest=64) == 16


def test_a_model_of_which_the_smallest_batch_does_not_fit_says_so():
    with pytest.raises(torch.OutOfMemoryError):
        fastest_batch(lambda size: Small(4)(images(size)), largest=64)


@pytest.mark.parametrize(
    ("mode", "name"),
    [
        (Mode(), "float32"),
        (Mode("tf32"), "tf32"),
        (Mode("bfloat16-gradients", is_compiled=True), "bfloat16-gradients+compiled"),
        (Mode(is_compiled=True, is_captured=True), "float32+compiled+cuda-graphs"),
    ],
)
def test_a_mode_is_named_by_its_numbers_and_marks(mode, name):
    assert mode.name == name


@pytest.mark.parametrize(
    ("mode", "is_bucketed"),
    [(Mode(), False), (Mode(is_compiled=True), True), (Mode(is_captured=True), True)],
)
def test_what_is_compiled_or_captured_comes_in_few_sizes(mode, is_bucketed):
    assert mode.is_bucketed is is_bucketed


def test_a_precision_that_is_not_known_is_refused_with_the_nearest_name():
    with pytest.raises(UsageError, match=r"did you mean .*'bfloat16-gradients'"):
        Mode("bfloat16")


@pytest.mark.parametrize(
    ("numbers", "expected"), [("float32", "ieee"), ("tf32", "tf32"), ("bfloat16-gradients", "ieee")]
)
def test_other_numbers_hold_inside_and_end_with_an_error(numbers, expected):
    use_exact_float32()

    with pytest.raises(RuntimeError, match="inside"), in_numbers(numbers, CPU):
        within = torch.backends.cuda.matmul.fp32_precision
        is_mixed = torch.is_autocast_enabled("cpu")
        raise RuntimeError("inside")

    assert within == expected
    assert is_mixed is (numbers == "bfloat16-gradients")
    assert torch.backends.cuda.matmul.fp32_precision == "ieee"
    assert torch.backends.cudnn.conv.fp32_precision == "ieee"
    assert not torch.is_autocast_enabled("cpu")
