"""Weights that a training starts from: as they are, or as the model makes them fit."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from harness import hashing
from harness.errors import CheckpointError
from harness.fitting import fitted, start_from
from harness.tensors import Fitted


class Growing(nn.Linear):
    """Takes the weights of a layer with fewer inputs, the others as it has them."""

    def fitted(self, state):
        weight = self.weight.detach().clone()
        weight[:, : state["weight"].shape[1]] = state["weight"]
        own = tuple(set(self.state_dict()) - set(state))
        return Fitted({**state, "weight": weight}, own, ("weight: more inputs",))


def saved(folder, model):
    """A file with the weights of a model, and its hash."""
    path = folder / "start.safetensors"
    save_file(model.state_dict(), path)
    return path, hashing.of_file(path)


def test_a_model_of_the_same_shapes_takes_the_weights_as_they_are(tmp_path):
    given, model = nn.Linear(3, 2), nn.Linear(3, 2)
    path, sha256 = saved(tmp_path, given)

    changes = start_from(model, path, sha256=sha256)

    assert torch.equal(model.weight, given.weight)
    assert changes == ()


def test_other_shapes_are_refused_and_change_nothing(tmp_path):
    model = nn.Linear(4, 2)
    before = model.weight.clone()
    path, sha256 = saved(tmp_path, nn.Linear(3, 2))

    with pytest.raises(
        CheckpointError, match=r"weight has shape \(2, 3\), the model's has \(2, 4\)"
    ):
        start_from(model, path, sha256=sha256)

    assert torch.equal(model.weight, before)


def test_a_model_that_knows_how_makes_other_shapes_fit_and_says_so(tmp_path):
    given, model = nn.Linear(3, 2), Growing(4, 2)
    own = model.weight[:, 3].clone()
    path, sha256 = saved(tmp_path, given)

    changes = start_from(model, path, sha256=sha256)

    assert torch.equal(model.weight, torch.cat([given.weight, own[:, None]], dim=1))
    assert changes == ("weight: more inputs",)


def test_what_the_file_has_not_stays_as_the_model_has_it(tmp_path):
    given, model = nn.Linear(3, 2, bias=False), Growing(4, 2)
    bias = model.bias.clone()
    path, sha256 = saved(tmp_path, given)

    start_from(model, path, sha256=sha256)

    assert torch.equal(model.weight[:, :3], given.weight)
    assert torch.equal(model.bias, bias)


def test_a_file_that_was_altered_since_it_was_named_is_refused(tmp_path):
    path, _ = saved(tmp_path, nn.Linear(3, 2))

    with pytest.raises(CheckpointError, match="was expected"):
        start_from(nn.Linear(3, 2), path, sha256="0" * 64)


def test_a_state_that_a_model_makes_fit_is_not_changed():
    state = nn.Linear(3, 2).state_dict()

    fitted(Growing(4, 2), state)

    assert state["weight"].shape == (2, 3)
