"""The evasion attacks of the Adversarial Robustness Toolbox, for images and classifiers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.api import AttackCard, hookimpl
from harness_art.catalogue import ATTACKS

if TYPE_CHECKING:
    from harness.api import Register
    from harness_art.catalogue import ArtAttack

BOXES = {"white_box": "white-box", "black_box": "black-box"}
ENDS = {
    "budget": "what it finds is projected into the ball",
    "minimal": "the point that it proposes counts where it lies in the ball",
}


@hookimpl
def register_attacks(register: Register) -> None:
    """Bring every attack of the catalogue as `art/<name>`."""
    for chosen in ATTACKS:
        register(chosen.registered, chosen.target, card=_card(chosen), defaults=chosen.defaults)


def _card(chosen: ArtAttack) -> AttackCard:
    notes = (
        f"ART's {chosen.cls}, image by image",
        BOXES[chosen.knowledge],
        f"for {' and '.join(chosen.norms)}",
        ENDS[chosen.kind],
        chosen.note,
    )
    return AttackCard(
        chosen.summary,
        source=chosen.source,
        fidelity="inferred",
        note="; ".join(note for note in notes if note),
    )
