"""One image's objective, in the clothes that the Adversarial Robustness Toolbox asks for."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import torch
from art.estimators import BaseEstimator, LossGradientsMixin, NeuralNetworkMixin
from art.estimators.classification import ClassGradientsMixin, ClassifierMixin, PyTorchClassifier
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from harness.tensors import Images, Logits, Loss, Objective, Outcome, PerImage

Array: TypeAlias = NDArray[Any]


class ObjectiveClassifier(
    ClassGradientsMixin,  # type: ignore[misc] # ART has no types
    ClassifierMixin,  # type: ignore[misc]
    LossGradientsMixin,  # type: ignore[misc]
    NeuralNetworkMixin,  # type: ignore[misc]
    BaseEstimator,  # type: ignore[misc]
):
    """A classifier of one image, whose every query goes through the image's objective.

    Args:
        objective: Of one image.
        image: The image, alone in its batch; gives shape and device.
        label: Its class.
        num_classes: Length of the logits.
        is_softmax: It tells probabilities, and their gradients, where others tell logits.
        lowest: Value that ART takes for the darkest; candidates are clipped to [0, 1] here where
            it is below 0.
    """

    def __init__(
        self,
        objective: Objective,
        image: Images,
        *,
        label: int,
        num_classes: int,
        is_softmax: bool = False,
        lowest: float = 0.0,
    ) -> None:
        super().__init__(
            model=None, clip_values=(lowest, 1.0), channels_first=True, preprocessing=None
        )
        self._objective = objective
        self._image = image
        self._label = label
        self._nb_classes = num_classes
        self._is_softmax = is_softmax
        self._lowest = lowest

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Channel, height, width."""
        return tuple(self._image.shape[1:])

    def predict(self, x: Array, **_: Any) -> Array:
        """The logits of each candidate, or its probabilities."""
        if len(x) == 0:
            return np.zeros((0, self.nb_classes), dtype=np.float32)
        candidates = self._tensor(x)
        logits = self._asked(len(candidates)).score(candidates).logits
        return _array(logits.softmax(dim=1) if self._is_softmax else logits)

    def loss_gradient(self, x: Array, y: Array, **_: Any) -> Array:
        """The gradient of the objective; of the cross-entropy where `y` is another class."""
        candidates = self._tensor(x)
        return _array(self._about(y, len(candidates)).gradient(candidates)[1])

    def compute_loss(self, x: Array, y: Array, reduction: str = "none", **_: Any) -> Array:
        """The objective of each candidate; the cross-entropy where `y` is another class."""
        candidates = self._tensor(x)
        losses = _array(self._about(y, len(candidates)).score(candidates).loss)
        if reduction == "none":
            return losses
        return np.asarray(losses.mean() if reduction == "mean" else losses.sum())

    def class_gradient(self, x: Array, label: Any = None, **_: Any) -> Array:
        """The gradients of what `predict` tells: of all classes, or of one for each candidate."""
        candidates = self._tensor(x)
        classes = self._classes(label, len(candidates))
        repeated = candidates.repeat_interleave(classes.shape[1], dim=0)
        told = _probability_of_target if self._is_softmax else _logit_of_target
        asked = self._asked(len(repeated)).toward(classes.flatten()).under(told)
        gradients = asked.gradient(repeated)[1]
        return _array(gradients.view(*classes.shape, *self.input_shape))

    def fit(self, x: Array, y: Array, **_: Any) -> None:
        """Refused: a model under attack is not trained."""
        raise NotImplementedError

    def get_activations(self, x: Array, layer: Any, batch_size: int, **_: Any) -> Any:
        """Refused: an objective shows no layers."""
        raise NotImplementedError

    def _asked(self, count: int) -> Objective:
        """The objective of the image, for several candidates."""
        return self._objective.rows(torch.zeros(count, dtype=torch.long, device=self._image.device))

    def _about(self, y: Array, count: int) -> Objective:
        classes = np.asarray(y)
        classes = classes.argmax(axis=1) if classes.ndim > 1 else classes
        if (classes == self._label).all():
            return self._asked(count)
        wanted = torch.as_tensor(classes, dtype=torch.long, device=self._image.device)
        return self._asked(count).toward(wanted.expand(count)).under(_cross_entropy_of_target)

    def _classes(self, label: Any, count: int) -> Tensor:
        """The classes asked for, a row for each candidate."""
        device = self._image.device
        if label is None:
            return torch.arange(self.nb_classes, device=device).expand(count, -1)
        chosen = torch.as_tensor(np.asarray(label), dtype=torch.long, device=device)
        return chosen.reshape(-1, 1).expand(count, 1)

    def _tensor(self, x: Array) -> Images:
        candidates = torch.as_tensor(np.array(x, dtype=np.float32), device=self._image.device)
        candidates = candidates.view(-1, *self.input_shape)
        return candidates.clamp(0, 1) if self._lowest < 0 else candidates


def torch_classifier(objective: Objective, image: Images, *, num_classes: int) -> Any:
    """ART's own PyTorch classifier over the objective, for the attacks that ask for no other.

    Its loss is ART's: cross-entropy, or what the attack puts in its place.
    """
    return PyTorchClassifier(
        model=_ObjectiveModel(objective, image.device),
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(image.shape[1:]),
        nb_classes=num_classes,
        clip_values=(0.0, 1.0),
        device_type="cpu",
    )


class _ObjectiveModel(nn.Module):
    """A module whose logits and gradients are asked of the objective of one image."""

    def __init__(self, objective: Objective, device: torch.device) -> None:
        super().__init__()
        self.objective = objective
        self.device = device

    def forward(self, images: Images) -> Logits:
        """The logits of each candidate."""
        logits: Logits = _Asked.apply(images, self.objective, self.device)
        return logits


class _Asked(torch.autograd.Function):
    """Logits forwards; backwards one more pass each way, under the weighted logits as loss."""

    @staticmethod
    def forward(ctx: Any, images: Images, objective: Objective, device: torch.device) -> Logits:
        """The logits of each candidate."""
        ctx.save_for_backward(images)
        ctx.objective, ctx.device = objective, device
        rows = torch.zeros(len(images), dtype=torch.long, device=device)
        candidates = images.detach().to(device, torch.float32)
        return objective.rows(rows).score(candidates).logits.to(images.device)

    @staticmethod
    def backward(ctx: Any, *weights: Tensor) -> tuple[Tensor, None, None]:
        """The gradient of the logits, weighted by what comes from above."""
        (images,) = ctx.saved_tensors
        candidates = images.detach().to(ctx.device, torch.float32)
        same = torch.zeros(len(images), dtype=torch.long, device=ctx.device)
        loss = _weighted(weights[0].to(candidates))
        with torch.enable_grad():
            asked = ctx.objective.rows(same).toward(torch.arange(len(same), device=ctx.device))
            _, gradients = asked.under(loss).gradient(candidates)
        return gradients.to(images), None, None


def _weighted(weights: Tensor) -> Loss:
    """The sum of the logits with the weights of their candidate, whose place is the target."""

    def weighted_logits(outcome: Outcome) -> PerImage:
        return (outcome.logits * weights[_targets(outcome)]).sum(dim=1)

    return weighted_logits


def _logit_of_target(outcome: Outcome) -> PerImage:
    return outcome.logits.gather(1, _targets(outcome)[:, None])[:, 0]


def _probability_of_target(outcome: Outcome) -> PerImage:
    return outcome.logits.softmax(dim=1).gather(1, _targets(outcome)[:, None])[:, 0]


def _cross_entropy_of_target(outcome: Outcome) -> PerImage:
    return functional.cross_entropy(outcome.logits, _targets(outcome), reduction="none")


def _targets(outcome: Outcome) -> Tensor:
    assert outcome.targets is not None  # noqa: S101 - `toward` came before
    return outcome.targets


def _array(tensor: Tensor) -> Array:
    array: Array = tensor.detach().cpu().numpy()
    return array
