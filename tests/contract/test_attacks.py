"""Every registered attack keeps the contract, on a model whose boundary is known."""

from __future__ import annotations

import pytest

from harness.plugins import load_plugins
from harness.testing import check_attack


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", load_plugins().names("attacks"))
def test_a_registered_attack_keeps_the_contract(registry, name, norm):
    check_attack(registry, name, norm=norm)
