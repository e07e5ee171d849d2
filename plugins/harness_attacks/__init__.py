"""Attacks and the objectives that they climb."""

from __future__ import annotations

from harness_attacks.attack_list import register_attacks
from harness_attacks.objective_list import register_objectives

__all__ = ["register_attacks", "register_objectives"]
