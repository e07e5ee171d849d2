"""The question put to everybody: one model, one batch of images, one epsilon."""

from __future__ import annotations

import random
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from harness.building import build_model
from harness.checkpoints import load_weights
from harness.data import load_images
from harness.errors import UsageError
from harness.numerics import check_classifier, resolve_device, use_exact_float32
from harness.plan import PRETRAINED
from harness.tensors import Samples

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from harness.data import ImageData
    from harness.registry import Registry
    from harness.sources import Place
    from harness.suite import Suite
    from harness.tensors import Classifier, Images, Logits, Mask

CHECKED = 16
"""Images on which the model is checked beforehand."""


@dataclass(frozen=True)
class Conditions:
    """What a comparison is to be made on.

    Attributes:
        suite: Whose evaluated images are taken.
        place: Where they come from.
        model: Registered name.
        weights: File of weights, or "pretrained"; empty leaves those that building it brings.
        num_images: First images of the split; those that the model has right are attacked.
        epsilon: Radius as the command line gives it.
        radius: The same as a number in [0, 1] units.
        device: Name of the device.
        seed: Of initial weights and of every attack.
        rounds: Times that everybody runs; the first is warm-up.
        threads: Of this process.
    """

    suite: Suite
    place: Place
    model: str
    weights: str
    num_images: int
    epsilon: str
    radius: float
    device: str
    seed: int
    rounds: int
    threads: int


@dataclass(frozen=True)
class Contest:
    """What everybody is given, the same objects for all.

    Attributes:
        registry: Brings our attacks.
        model: In evaluation mode, in float32; its parameters want gradients, as a user's do.
        samples: One batch, contiguous; the model has every image right.
        looked_at: Images among which these are the ones that the model has right.
        num_classes: Of the data set.
        epsilon: Radius in Linf, in [0, 1] units.
        seed: Of every attack.
        is_trained: False where the weights are initial ones, and the labels their predictions.
        fingerprint: Of the images.
    """

    registry: Registry
    model: Classifier
    samples: Samples
    looked_at: int
    num_classes: int
    epsilon: float
    seed: int = 0
    is_trained: bool = True
    fingerprint: str = ""

    @property
    def device(self) -> torch.device:
        """Where it all happens."""
        return self.samples.images.device


class Judgement(NamedTuple):
    """What the model says of attacked images, in a float32 pass of its own."""

    robust: Mask
    largest: float  # change of any pixel


def set_up(conditions: Conditions, registry: Registry) -> Contest:
    """The model and the images that it has right.

    Raises:
        UsageError: The model has none of the images right.
        DataError: The images are missing.
        ModelError: The model does not fit them.
        CheckpointError: The weights do not fit the model.
    """
    use_exact_float32()
    torch.set_num_threads(conditions.threads)
    spec = conditions.suite.data
    data = load_images(registry, spec, spec.split, conditions.place)
    model = _model(conditions, registry, data)
    device = resolve_device(conditions.device)
    ids = torch.tensor(data.usable()[: conditions.num_images], dtype=torch.int64)
    ids, images, labels, _ = data.samples(ids)
    samples = Samples(ids.to(device), images.contiguous().to(device), labels.to(device))
    model = model.to(device).eval()
    num_classes = data.card.num_classes
    check_classifier(model, samples.images[:CHECKED], num_classes, conditions.model)
    logits = _logits(model, samples.images)
    is_trained = bool(conditions.weights or registry.find("models", conditions.model).card.weights)
    if not is_trained:
        samples = samples._replace(labels=logits.argmax(dim=1))
    right = (logits.argmax(dim=1) == samples.labels).nonzero()[:, 0]
    if len(right) == 0:
        raise UsageError(
            f"{conditions.model} has none of the {len(ids)} images right; give more with --images, "
            "or the weights of this data set with --weights"
        )
    return Contest(
        registry=registry,
        model=model,
        samples=samples.rows(right),
        looked_at=len(ids),
        num_classes=num_classes,
        epsilon=conditions.radius,
        seed=conditions.seed,
        is_trained=is_trained,
        fingerprint=data.fingerprint,
    )


def judged(contest: Contest, images: Images) -> Judgement:
    """The verdict on attacked images, by nobody's own word: the clipped images, asked anew."""
    clean, labels = contest.samples.images, contest.samples.labels
    images = images.detach().to(clean).clamp(0, 1)
    logits = _logits(contest.model, images)
    robust = (logits.argmax(dim=1) == labels) | ~logits.isfinite().all(dim=1)
    return Judgement(robust.cpu(), float((images - clean).abs().max()))


@contextmanager
def as_found(contest: Contest) -> Iterator[None]:
    """Seed the global generators, and put back whatever a run changes: them, modes, gradients."""
    model, kept = contest.model, (random.getstate(), np.random.get_state())  # noqa: NPY002 - the peers draw there
    modes = [(module, module.training) for module in model.modules()]
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    devices = [contest.device] if contest.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the peers, about themselves
        random.seed(contest.seed)
        np.random.seed(contest.seed)  # noqa: NPY002
        torch.manual_seed(contest.seed)
        try:
            yield
        finally:
            random.setstate(kept[0])
            np.random.set_state(kept[1])  # noqa: NPY002
            for module, training in modes:
                module.training = training
            for parameter, requires_grad in wanted:
                parameter.requires_grad_(requires_grad)
                parameter.grad = None


def _model(conditions: Conditions, registry: Registry, data: ImageData) -> nn.Module:
    model = build_model(
        registry,
        conditions.model,
        num_classes=data.card.num_classes,
        image_shape=conditions.suite.data.canvas.image_shape,
        seed=conditions.seed,
        **({PRETRAINED: True} if conditions.weights == PRETRAINED else {}),
    )
    if conditions.weights not in ("", PRETRAINED):
        load_weights(model, Path(conditions.weights))
    return model


@torch.no_grad()
def _logits(model: Classifier, images: Images) -> Logits:
    logits: Logits = model(images)
    return logits
