"""Models that are built of other registered models."""

from __future__ import annotations

import torch

from harness.building import build_model
from harness.plugins import load_plugins

PAIR = """
from torch import nn
from harness.api import hookimpl

@hookimpl
def register_models(register):
    register("test/pair", ":build")

def build(context):
    return nn.ModuleList([context.model("cnn/digits") for _ in range(2)])
"""


def built(folder, seed):
    (folder / "pair.py").write_text(PAIR)
    registry = load_plugins([str(folder / "pair.py")])
    return build_model(registry, "test/pair", num_classes=10, image_shape=(1, 8, 8), seed=seed)


def test_two_models_of_one_name_get_weights_of_their_own(tmp_path):
    first, second = built(tmp_path, 0)

    assert not torch.equal(first.head.weight, second.head.weight)


def test_the_models_inside_a_model_follow_from_its_seed(tmp_path):
    one, again, other = (built(tmp_path, seed)[1].head.weight for seed in (0, 0, 1))

    assert torch.equal(one, again)
    assert not torch.equal(one, other)
