"""Which experts took which token: the routing of one MoE layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a card may mention a Routing without torch
    from torch import Tensor


@dataclass(frozen=True)
class Routing:
    """How one MoE layer sent its tokens to experts; a layer that routes images has one token.

    Attributes:
        gate_logits: (batch, token, expert), before softmax.
        gates: (batch, token, expert), the weights that the layer used or would use, sum 1.
        experts: int64 (batch, token, k), chosen experts, best first.
        kept: bool (batch, token, k), False where capacity dropped the choice.
    """

    gate_logits: Tensor
    gates: Tensor
    experts: Tensor
    kept: Tensor

    def rows(self, index: Tensor) -> Routing:
        """The routing of some of the images."""
        return Routing(
            self.gate_logits[index], self.gates[index], self.experts[index], self.kept[index]
        )
