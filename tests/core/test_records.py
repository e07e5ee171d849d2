"""Records and values: what counts as robust, and the way to JSON and back."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from harness.records import Record, Value

RECORD = Record(
    sample=7,
    attack="pgd-ce",
    epsilon="8/255",
    label=3,
    clean_prediction=3,
    clean_margin=1.25,
    adversarial_prediction=5,
    adversarial_margin=-0.1,
    first_loss=0.2,
    best_loss=2.5,
    last_loss=2.4,
    norm=8 / 255,
    forwards=21,
    backwards=20,
    flags=("carried", "first"),
    reason="",
    measures={"confidence": 0.1},
)
FAILED = replace(
    RECORD,
    adversarial_prediction=None,
    adversarial_margin=None,
    first_loss=None,
    best_loss=None,
    last_loss=None,
    flags=("failed",),
    reason="RuntimeError: out of luck",
)


@pytest.mark.parametrize("record", [RECORD, FAILED], ids=["attacked", "failed"])
def test_a_record_survives_the_way_to_json_and_back(record):
    text = json.dumps(record.to_json())

    found = Record.from_json(json.loads(text))

    assert found == record
    assert isinstance(found.flags, tuple)


@pytest.mark.parametrize(
    ("clean", "adversarial", "robust"),
    [
        pytest.param(3, 3, True, id="right-before-and-after"),
        pytest.param(3, 5, False, id="fooled"),
        pytest.param(3, None, True, id="failed-attack"),
        pytest.param(5, 5, False, id="clean-error"),
        pytest.param(5, 3, False, id="clean-error-that-the-attack-mends"),
        pytest.param(5, None, False, id="clean-error-and-failed-attack"),
    ],
)
def test_robust_is_right_on_the_clean_image_and_under_the_attack(clean, adversarial, robust):
    record = replace(RECORD, clean_prediction=clean, adversarial_prediction=adversarial)

    assert record.is_robust is robust


@pytest.mark.parametrize(("clean", "correct"), [(3, True), (5, False)], ids=["right", "wrong"])
def test_correct_looks_at_the_clean_image_alone(clean, correct):
    record = replace(RECORD, clean_prediction=clean)

    assert record.is_correct is correct


def test_a_value_is_written_with_its_interval_and_its_images():
    value = Value(0.5, low=0.4, high=0.6, n=100, epsilon="8/255")

    assert value.to_json() == {"value": 0.5, "low": 0.4, "high": 0.6, "n": 100}


def test_an_exact_value_has_no_interval():
    value = Value(1234)

    assert value.to_json() == {"value": 1234, "low": None, "high": None, "n": None}


def test_a_value_that_does_not_apply_says_why():
    value = Value(None, n=0, reason="no images")

    assert value.to_json() == {
        "value": None,
        "low": None,
        "high": None,
        "n": 0,
        "reason": "no images",
    }
