"""Modes: how gradients are computed; who is fooled, the model itself says in float32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from harness.errors import UsageError
from harness.hints import did_you_mean

Numbers = Literal["float32", "tf32", "bfloat16-gradients"]
TrainingNumbers = Literal["float32", "bfloat16-mixed"]


@dataclass(frozen=True)
class Mode:
    """How gradients are computed.

    Attributes:
        numbers: "float32" as it stands; "tf32", with the short products of recent GPUs;
            "bfloat16-gradients", with automatic mixed precision. What survives the last two is
            attacked again in float32.
        is_compiled: By `torch.compile`.
        is_captured: As CUDA graphs, one for each size of a batch.
    """

    numbers: Numbers = "float32"
    is_compiled: bool = False
    is_captured: bool = False

    def __post_init__(self) -> None:
        known = get_args(Numbers)
        if self.numbers not in known:
            raise UsageError(
                f"precision {self.numbers!r} is not known{did_you_mean(self.numbers, known)}"
            )

    @property
    def name(self) -> str:
        """Its name in keys, manifests and tables.

        >>> Mode("tf32", is_compiled=True).name
        'tf32+compiled'
        """
        marks = [(self.is_compiled, "compiled"), (self.is_captured, "cuda-graphs")]
        return "+".join([self.numbers, *(mark for is_on, mark in marks if is_on)])

    @property
    def is_bucketed(self) -> bool:
        """Batches come in few sizes, because each has to be compiled or captured."""
        return self.is_compiled or self.is_captured


FLOAT32 = Mode()


@dataclass(frozen=True)
class TrainingMode:
    """How a training computes its passes; part of what trained weights depend on.

    Attributes:
        numbers: "float32"; or "bfloat16-mixed", passes in automatic mixed precision, with
            weights, losses and optimisers in float32.
        is_compiled: By `torch.compile`.
    """

    numbers: TrainingNumbers = "float32"
    is_compiled: bool = False

    def __post_init__(self) -> None:
        known = get_args(TrainingNumbers)
        if self.numbers not in known:
            raise UsageError(
                f"precision {self.numbers!r} of a training is not known"
                f"{did_you_mean(self.numbers, known)}"
            )

    @property
    def name(self) -> str:
        """Its name in keys and on cards.

        >>> TrainingMode("bfloat16-mixed", is_compiled=True).name
        'bfloat16-mixed+compiled'
        """
        return f"{self.numbers}+compiled" if self.is_compiled else self.numbers


PLAIN = TrainingMode()
