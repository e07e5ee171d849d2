"""Every registered attack keeps the contract, on a model whose boundary is known."""

from __future__ import annotations

import pytest

from harness.plugins import load_plugins
from harness.testing import check_attack

ATTACKS = [entry.name for entry in load_plugins().listed("attacks") if not entry.is_family]


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", ATTACKS)
def test_a_registered_attack_keeps_the_contract(registry, name, norm):
    check_attack(registry, name, norm=norm)
