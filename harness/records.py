"""Records and values: plain numbers, right of the border where tensors end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Record:
    """What happened to one image under one attack at one epsilon.

    Attributes:
        sample: Id of the image in its data set split.
        attack: Label of the attack in the suite.
        epsilon: Radius as the suite writes it, such as "8/255".
        label: Correct class.
        clean_prediction: Class that the model gives the clean image.
        clean_margin: Logit of the label minus the best other, on the clean image.
        adversarial_prediction: Class that the model gives the attacked image; None where the
            attack failed.
        adversarial_margin: The same margin on the attacked image.
        first_loss: Objective at the attack's first pass; None where it made none.
        best_loss: Highest objective of all its passes.
        last_loss: Objective at its last pass.
        norm: Size of the perturbation, in the norm of the threat, in [0, 1] units.
        forwards: Forward passes that the attack spent on this image.
        backwards: Backward passes that the attack spent on this image.
        flags: Words that qualify the record, such as "clean-error", "carried" or "failed".
        reason: Why the attack failed; empty where it did not.
        measures: Numbers that probes took.
        labels: All correct classes, where the data give several; empty where there is one.
        view: What decided: "full", the model as it is; "experts" or "router", a part of a routed
            model, for diagnosis alone.
    """

    sample: int
    attack: str
    epsilon: str
    label: int
    clean_prediction: int
    clean_margin: float
    adversarial_prediction: int | None
    adversarial_margin: float | None
    first_loss: float | None = None
    best_loss: float | None = None
    last_loss: float | None = None
    norm: float = 0.0
    forwards: int = 0
    backwards: int = 0
    flags: tuple[str, ...] = ()
    reason: str = ""
    measures: Mapping[str, float] = field(default_factory=dict)
    labels: tuple[int, ...] = ()
    view: str = "full"

    @property
    def is_correct(self) -> bool:
        """The model has the clean image right."""
        return self.clean_prediction in (self.labels or (self.label,))

    @property
    def is_robust(self) -> bool:
        """The model has the clean image right and this attack did not change that."""
        right = (*(self.labels or (self.label,)), None)
        return self.is_correct and self.adversarial_prediction in right

    @property
    def is_right(self) -> bool:
        """The model has the attacked image right, whatever it said of the clean one."""
        if self.adversarial_prediction is None:
            return self.is_correct
        return self.adversarial_prediction in (self.labels or (self.label,))

    def to_json(self) -> dict[str, Any]:
        """The record as a JSON object; without `labels` where there is one, `view` where full."""
        content = asdict(self)
        if not self.labels:
            del content["labels"]
        if self.view == "full":
            del content["view"]
        return content

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Record:
        """The record that `to_json` wrote."""
        tuples = {"flags": tuple(content["flags"]), "labels": tuple(content.get("labels", ()))}
        return cls(**{**content, **tuples})


@dataclass(frozen=True)
class Value:
    """A number with its uncertainty.

    Attributes:
        value: The number; None where the measure does not apply.
        low: Lower end of the 95 % interval; None for exact numbers.
        high: Upper end of the interval.
        n: Images behind it; None for facts about the model.
        epsilon: Radius that it belongs to, as the suite writes it; None for one number a model.
        reason: Why it does not apply.
        group: Part of the model that it is about, such as "layer 0"; empty for the whole.
        series: What it was measured under, such as an attack's label or "chance"; both of curves
            alone.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    epsilon: str | None = None
    reason: str = ""
    group: str = ""
    series: str = ""

    def to_json(self) -> dict[str, Any]:
        """`{"value", "low", "high", "n"}`, and the reason where there is no value."""
        content: dict[str, Any] = {
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "n": self.n,
        }
        return content | ({"reason": self.reason} if self.reason else {})
