"""Every registered attack keeps the contract, on a model whose boundary is known."""

from __future__ import annotations

import pytest

from harness.plugins import load_plugins
from harness.testing import check_attack

ATTACKS = [
    entry.name
    for entry in load_plugins().listed("attacks")
    if not entry.is_family and not entry.name.startswith("art/")  # tests/plugins/test_art.py
]

FEW = {"queries": 300}
SHORTER = {
    ("square", "linf"): FEW,
    # its bumps are half positive, half negative: it cannot push all pixels one way
    ("square", "l2"): {**FEW, "within": 2.5},
    ("worst-of", "linf"): {"attacks": ["fgsm", "pgd:margin"]},
    ("worst-of", "l2"): {"attacks": ["fgsm", "pgd:margin"]},
    **{
        (f"autoattack-{version}", norm): {**FEW, "steps": 20}
        for version in ("standard", "plus")
        for norm in ("linf", "l2")
    },
}
"""Parameters with which a check takes seconds, or that have no default; nothing is weakened."""


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", ATTACKS)
def test_a_registered_attack_keeps_the_contract(registry, name, norm):
    check_attack(registry, name, norm=norm, **SHORTER.get((name, norm), {}))
