"""Models whose results depend on who is passed together: random ones, and coupled ones."""

from __future__ import annotations

import pytest

import harness as package

PLUGIN = """
import torch
from torch import nn
from harness import ModelCard, hookimpl

class Telling(nn.Module):
    # class 0 wins by the number of images that are passed at once
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 10, bias=False)
        nn.init.zeros_(self.linear.weight)

    def forward(self, images):
        logits = self.linear(images.flatten(1))
        return logits + len(images) * torch.eye(10)[0]

class Random(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 10)

    def forward(self, images):
        logits = self.linear(images.flatten(1))
        return logits + torch.randn_like(logits)

@hookimpl
def register_models(register):
    register("coupled", lambda context: Telling(),
             card=ModelCard(weights="included", group=2))
    register("drawing", lambda context: Telling(), card=ModelCard(weights="included", draws=2))
    register("random", lambda context: Random(), card=ModelCard(weights="included", draws=2))
"""


@pytest.fixture
def evaluated(tmp_path, tiny):
    """Evaluates a model of the plugin on twenty digits in one shard; its records."""
    (tmp_path / "drawing.py").write_text(PLUGIN)
    tiny.write_text(tiny.read_text().replace("shard_size = 8", "shard_size = 64"))

    def call(name):
        frame = package.evaluate(name, suite=str(tiny), plugins=[str(tmp_path / "drawing.py")])
        return frame.attrs["records"]

    return call


@pytest.mark.parametrize(
    ("name", "passed"),
    [("coupled", 20), ("drawing", 24)],  # padded only where nothing is coupled
    ids=["coupled", "drawing"],
)
def test_the_shard_decides_who_is_passed_together_and_no_clock(evaluated, name, passed):
    margins = {record["clean_margin"] for record in evaluated(name) if record["label"] == 0}

    assert margins == {passed}


def test_two_runs_of_a_random_model_are_equal_and_count_its_draws(evaluated):
    first, second = evaluated("random"), evaluated("random")

    assert first == second
    assert {record["forwards"] % 2 for record in first} == {0}
