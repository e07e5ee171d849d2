"""Every registered model keeps the contract of a Classifier."""

from __future__ import annotations

import pytest

from harness.plugins import load_plugins
from harness.testing import check_model

FAMILY = ["timm/resnet10t", "timm/vit_tiny_patch16_224", "timm/vit_base_patch32_224"]
"""A fixed sample of timm: a convolutional net, a small transformer, one for the meta device."""


def names():
    entries = load_plugins().listed("models")
    return [entry.name for entry in entries if not entry.is_family]


@pytest.mark.parametrize("name", [*names(), *FAMILY])
def test_a_registered_model_keeps_the_contract(registry, name):
    check_model(registry, name)
