"""What passes cost and reached, image by image."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.tensors import Rows


class Ledger:
    """What the passes over each image cost and reached; written by every pass, read at the end.

    Attributes:
        forwards, backwards: Passes of each image.
        first_loss, best_loss, last_loss: The objective at its passes, NaN before the first.
    """

    def __init__(self, count: int, device: torch.device) -> None:
        self.forwards = torch.zeros(count, dtype=torch.int64, device=device)
        self.backwards = torch.zeros(count, dtype=torch.int64, device=device)
        self.first_loss = torch.full((count,), float("nan"), device=device)
        self.best_loss = torch.full((count,), float("nan"), device=device)
        self.last_loss = torch.full((count,), float("nan"), device=device)

    def clear(self) -> None:
        """Forget all passes, before an attack is run once more."""
        self.forwards.zero_()
        self.backwards.zero_()
        for loss in (self.first_loss, self.best_loss, self.last_loss):
            loss.fill_(float("nan"))

    def count(self, index: Rows, *, forwards: int, backwards: int = 0) -> None:
        """Count passes over the images at `index`, each time that one stands there."""
        passes = torch.ones_like(index)
        self.forwards.index_add_(0, index, forwards * passes)
        self.backwards.index_add_(0, index, backwards * passes)

    def note(self, index: Rows, loss: Tensor) -> None:
        """Keep the losses of one pass over the images at `index`."""
        first = self.first_loss[index]
        self.first_loss[index] = torch.where(first.isnan(), loss, first)
        self.best_loss[index] = torch.fmax(self.best_loss[index], loss)
        self.last_loss[index] = loss

    def add(self, index: Rows, other: Ledger) -> None:
        """Take over what another ledger holds of the images at `index`, passed once more."""
        self.forwards.index_add_(0, index, other.forwards)
        self.backwards.index_add_(0, index, other.backwards)
        self.best_loss[index] = torch.fmax(self.best_loss[index], other.best_loss)
        self.last_loss[index] = other.last_loss
