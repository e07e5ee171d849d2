"""The harness from Python."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import harness as package
from harness.errors import CheckpointError, HarnessError


def module():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(64, 10))


def test_a_plain_module_is_evaluated_as_it_is(tiny):
    frame = package.evaluate(module(), suite=str(tiny))

    assert set(frame["metric"]) == {"clean_accuracy", "robust_accuracy", "auc"}
    assert list(frame[frame["metric"] == "robust_accuracy"]["epsilon"]) == ["8/255", "32/255"]
    assert (frame["n"] == 20).all()
    # two attacks at two epsilons
    assert len(frame.attrs["records"]) == 20 * 4


def test_the_module_is_left_as_it_was_found(tiny):
    model = module().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}

    package.evaluate(model, suite=str(tiny), limit=8)

    assert all(part.training for part in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_limit_is_flagged(tiny):
    frame = package.evaluate(module(), suite=str(tiny), limit=8)

    assert frame.attrs["rows"][0]["flags"] == ["limited"]


def test_other_weights_are_another_cell_in_the_same_folder(tiny, tmp_path):
    better = module()
    with torch.no_grad():
        better[2].bias.add_(1)

    package.evaluate(module(), suite=str(tiny), out=tmp_path / "runs")
    package.evaluate(better, suite=str(tiny), out=tmp_path / "runs")

    assert len(list(tmp_path.glob("runs/*/manifest.json"))) == 2


def test_a_broken_module_is_refused_with_the_remedy(tiny):
    with pytest.raises(HarnessError, match="build the model for 10 classes"):
        package.evaluate(nn.Flatten(), suite=str(tiny))


def test_a_model_that_a_run_trained_is_loaded_with_its_weights(tiny, tmp_path):
    package.evaluate("cnn/digits", suite=str(tiny), out=tmp_path)

    model = package.load_model("cnn/digits.standard", suite=str(tiny), runs=tmp_path)

    fresh = package.evaluate(model, suite=str(tiny))
    trained = package.evaluate("cnn/digits", suite=str(tiny), out=tmp_path)
    assert not model.training
    assert fresh["value"].tolist() == trained["value"].tolist()


def test_a_model_that_nobody_trained_says_how_to(tiny, tmp_path):
    with pytest.raises(CheckpointError, match="harness train --suite"):
        package.load_model("cnn/digits", suite=str(tiny), runs=tmp_path)


def test_an_unknown_attribute_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'evaluat'"):
        package.evaluat  # noqa: B018 - the access is the test
