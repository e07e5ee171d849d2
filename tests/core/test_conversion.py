"""Foreign checkpoints: what is written, what its card says, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from harness import hashing
from harness.conversion import Conversion, convert
from harness.errors import CheckpointError, UsageError
from harness.plugins import load_plugins
from harness.suite import find_suite

PLUGIN = """
import torch
from torch import nn

from harness.api import CheckpointError, ModelCard, hookimpl
from harness.tensors import Fitted


class Linear(nn.Sequential):
    def __init__(self, pixels, classes):
        super().__init__(nn.Flatten(), nn.Linear(pixels, classes))

    def fitted(self, state):
        if len(state["1.weight"]) == len(self[1].weight):
            return Fitted(dict(state))
        return Fitted({}, ("1.weight", "1.bias"), ("1: dropped, of other classes",))


def build(context):
    return Linear(64, context.num_classes)


def strict(context):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, context.num_classes))


def lines(path):
    rows, columns = (int(word) for word in path.read_text().split())
    return {"1.weight": torch.ones(rows, columns), "1.bias": torch.zeros(rows)}


@hookimpl
def register_models(register):
    register("toy/linear", build, card=ModelCard("Linear."))
    register("toy/strict", strict, card=ModelCard("Linear."))


@hookimpl
def register_converters(register):
    register("lines", lines)
    register("nothing", lambda path: [])
"""


@pytest.fixture
def toys(tmp_path):
    (tmp_path / "toys.py").write_text(PLUGIN)
    return load_plugins([str(tmp_path / "toys.py")])


@pytest.fixture
def wanted(tmp_path, toys):
    """A conversion of a file that says its shape."""

    def make(text="10 64", model="toy/linear", converter="lines", target="out.safetensors"):
        source = tmp_path / "source.txt"
        source.write_text(text)
        suite = find_suite("digits-linf", toys)
        return Conversion(converter, source, model, suite, tmp_path / target)

    return make


def test_weights_are_written_with_a_card_that_names_their_source(wanted, toys):
    asked = wanted()

    card = convert(asked, toys)

    assert torch.equal(load_file(asked.target)["1.weight"], torch.ones(10, 64))
    assert card == json.loads(asked.target.with_suffix(".json").read_text())
    assert card["source"] == {"file": "source.txt", "sha256": hashing.of_file(asked.source)}
    assert card["sha256"] == hashing.of_file(asked.target)
    assert (card["model"], card["converter"]) == ("toy/linear", "lines")
    assert (card["tensors"], card["missing"], card["changes"]) == (2, [], [])


def test_what_does_not_fit_is_left_out_and_named(wanted, toys):
    asked = wanted("1000 64")

    card = convert(asked, toys)

    assert load_file(asked.target) == {}
    assert card["missing"] == ["1.weight", "1.bias"]
    assert card["changes"] == ["1: dropped, of other classes"]


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"text": "10 63", "model": "toy/strict"}, r"1.weight has shape \(10, 63\), the model's"),
        ({"text": "ten"}, "converter 'lines' cannot read it: ValueError.*harness show lines"),
        ({"converter": "nothing"}, "converter 'nothing' returned no table of tensors"),
    ],
    ids=["shape", "file", "converter"],
)
def test_what_is_no_checkpoint_of_the_model_is_refused_and_nothing_written(
    wanted, toys, changes, remedy
):
    asked = wanted(**changes)

    with pytest.raises(CheckpointError, match=remedy):
        convert(asked, toys)

    assert not asked.target.exists()


def test_a_file_that_is_not_there_is_refused(wanted, toys):
    asked = wanted()
    asked.source.unlink()

    with pytest.raises(CheckpointError, match=r"source.txt: cannot be read"):
        convert(asked, toys)


@pytest.mark.parametrize(
    ("target", "remedy"),
    [("out.pt", "end it in .safetensors"), ("old.safetensors", "is there already; name another")],
)
def test_a_target_that_would_lose_something_is_refused(wanted, toys, tmp_path, target, remedy):
    (tmp_path / "old.safetensors").write_text("mine")

    with pytest.raises(UsageError, match=remedy):
        convert(wanted(target=target), toys)

    assert (tmp_path / "old.safetensors").read_text() == "mine"
