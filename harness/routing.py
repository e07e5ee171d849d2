"""Which experts took which token: the routing of one MoE layer."""

from __future__ import annotations

from dataclasses import dataclass, replace
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

    def overlap(self, other: Routing) -> Tensor:
        """The shared part of the expert sets that worked for each token: (batch, token), 0 to 1.

        Intersection over union of the experts that were chosen and kept; 0 where none worked on
        either side, as google-research/vmoe counts it.
        """
        mine, theirs = self._worked(), other._worked()
        shared, either = (mine & theirs).sum(2), (mine | theirs).sum(2)
        return shared / either.clamp(min=1)

    def _worked(self) -> Tensor:
        """Which experts worked for each token: bool (batch, token, expert)."""
        nobody = self.gates.new_zeros(self.gates.shape).bool()
        return nobody.scatter(2, self.experts, self.kept)

    def in_float32(self) -> Routing:
        """The same, of a pass in shorter numbers."""
        return replace(self, gate_logits=self.gate_logits.float(), gates=self.gates.float())

    def forced(self, rank: int) -> Routing:
        """The same routing, but that another expert takes the place of each token's first.

        The expert of this rank among the gate logits, the likeliest being 0, changes places with
        the first: gates too, so that it works with the weight of the first. Capacity does not
        drop it.
        """
        last = self.gate_logits.shape[2] - 1
        order = self.gate_logits.argsort(dim=2, descending=True, stable=True)
        first, chosen = self.experts[:, :, :1], order[:, :, min(rank, last) : min(rank, last) + 1]
        experts = self.experts.where(self.experts != chosen, first)
        experts = experts.scatter(2, experts.new_zeros(first.shape), chosen)
        kept = self.kept.clone()
        kept[:, :, 0] = True
        return Routing(
            _exchanged(self.gate_logits, first, chosen),
            _exchanged(self.gates, first, chosen),
            experts,
            kept,
        )

    @property
    def intended(self) -> Routing:
        """The same routing as if capacity had dropped nothing."""
        return replace(self, kept=self.kept.new_ones(self.kept.shape))

    def replaced(self, index: Tensor, other: Routing) -> Routing:
        """The same routing, but of some images another's, whose rows are those of `index`."""
        return Routing(
            self.gate_logits.index_copy(0, index, other.gate_logits),
            self.gates.index_copy(0, index, other.gates),
            self.experts.index_copy(0, index, other.experts),
            self.kept.index_copy(0, index, other.kept),
        )

    def rows(self, index: Tensor) -> Routing:
        """The routing of some of the images."""
        return Routing(
            self.gate_logits[index], self.gates[index], self.experts[index], self.kept[index]
        )


def _exchanged(values: Tensor, first: Tensor, other: Tensor) -> Tensor:
    """Two values of each token exchanged."""
    moved = values.scatter(2, first, values.gather(2, other))
    return moved.scatter(2, other, values.gather(2, first))
