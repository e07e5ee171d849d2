"""The shapes of the project, each named once, and what attacks and models are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from harness.routing import Routing
from harness.threat import ThreatModel
from harness.views import View

Images: TypeAlias = Float[Tensor, "batch channel height width"]  # in [0, 1]
Pixels: TypeAlias = UInt8[Tensor, "batch channel height width"]  # as stored, 0 to 255
Labels: TypeAlias = Int[Tensor, "batch"]
Logits: TypeAlias = Float[Tensor, "batch classes"]  # before softmax
PerImage: TypeAlias = Float[Tensor, "batch"]
Mask: TypeAlias = Bool[Tensor, "batch"]
Accepted: TypeAlias = Bool[Tensor, "batch classes"]  # every class that counts as correct
Rows: TypeAlias = Int[Tensor, "rows"]

Classifier: TypeAlias = nn.Module  # Images -> Logits, normalisation and resizing inside


class Samples(NamedTuple):
    """Some images of a data set."""

    ids: Rows
    images: Images
    labels: Labels
    accepted: Accepted | None = None  # where an image has several correct classes

    def rows(self, index: Rows) -> Samples:
        """Some of them."""
        return Samples(*(None if part is None else part[index] for part in self))  # type: ignore[arg-type]


class Routed(NamedTuple):
    """What a Mixture-of-Experts model tells of one forward pass."""

    logits: Logits
    routes: tuple[Routing, ...]  # one for each MoE layer
    auxiliary_loss: Tensor  # one number for each image, or for each group; weighted as in training


@runtime_checkable
class RoutedClassifier(Protocol):
    """A classifier whose routes can be read, replayed, mixed and cut."""

    def __call__(self, images: Images) -> Logits:
        """The logits alone."""

    def routed(
        self,
        images: Images,
        *,
        routes: tuple[Routing, ...] | None = None,
        relaxed: bool = False,
        detach_router: bool = False,
    ) -> Routed:
        """The logits with the routes that led to them.

        Args:
            images: In [0, 1].
            routes: Replayed as they are, experts and kept; gate values used as passed.
            relaxed: Mix all experts by the dense gates, so that a hard router has a gradient.
            detach_router: Let no gradient through the router.
        """


class Fitted(NamedTuple):
    """What of a foreign state fits a model, and what was done for that."""

    state: dict[str, Tensor]  # in the model's shapes
    own: tuple[str, ...] = ()  # tensors for which the state has nothing, left as the model has them
    changes: tuple[str, ...] = ()  # each names a tensor and says what became of it


@runtime_checkable
class Fitting(Protocol):
    """A model that can begin a training with weights of another size or of other classes."""

    def fitted(self, state: Mapping[str, Tensor]) -> Fitted:
        """The state with whatever has another shape resized, or left out for the model's own."""


class Outcome(NamedTuple):
    """What a loss may look at: one forward pass and what it is about."""

    logits: Logits
    labels: Labels
    accepted: Accepted | None = None  # where an image has several correct classes
    targets: Labels | None = None  # where the attack is drawn towards a class
    clean_logits: Logits | None = None  # of the clean image
    routes: tuple[Routing, ...] = ()  # one for each MoE layer
    clean_routes: tuple[Routing, ...] = ()  # of the clean image
    auxiliary_loss: PerImage | None = None  # of a routed model, weighted as in training

    @property
    def margin(self) -> PerImage:
        """The logit of the label minus the best other; below 0 the image is fooled."""
        return margin(self.logits, self.labels, self.accepted)


Loss: TypeAlias = Callable[[Outcome], PerImage]


class Score(NamedTuple):
    """What one forward pass tells of each candidate."""

    logits: Logits
    loss: PerImage  # what the attack climbs
    margin: PerImage  # logit of the label minus the best other; below 0 the image is fooled
    fooled: Mask  # the prediction is not correct


@runtime_checkable
class Objective(Protocol):
    """A loss that knows its images and its view of the model; padding and counting are inside.

    `num_experts` counts the experts of each MoE layer and is empty for a dense model.
    """

    @property
    def num_experts(self) -> tuple[int, ...]:
        """Experts of each MoE layer."""

    def score(self, candidates: Images) -> Score:
        """The score of each candidate, from one forward pass."""

    def gradient(self, candidates: Images) -> tuple[Score, Images]:
        """The score and the gradient of each image's own loss, from one pass each way."""

    def rows(self, index: Rows) -> Objective:
        """The same objective for some of its images."""

    def under(self, loss: Loss) -> Objective:
        """Another loss of the same images: for attacks that climb more than one."""

    def toward(self, targets: Labels) -> Objective:
        """The same objective with a target class for each image, for losses that ask for one."""

    def through(self, view: View) -> Objective:
        """The same objective in another view; a dense model looks the same in all of them."""

    def of(self, part: str) -> Objective:
        """The same objective of one part of the model, by its name; the whole decides."""

    def averaged(self, draws: int) -> Objective:
        """Each pass is the mean of some: for models that draw random numbers themselves."""


@runtime_checkable
class Attack(Protocol):
    """An optimiser of an objective: it proposes images, the harness disposes."""

    def __call__(
        self,
        objective: Objective,
        images: Images,
        labels: Labels,
        threat: ThreatModel,
        *,
        noise: Noise,
        **parameters: Any,
    ) -> Images:
        """One candidate for each image; pure, and nothing it is given is changed."""


class Member(NamedTuple):
    """An attack that another one calls, its parameters settled; its noise goes by its name."""

    name: str
    run: Callable[..., Images]  # an `Attack` that asks for no more parameters
    loss: Loss | None = None  # None climbs the loss of whoever calls
    view: View | None = None  # None looks as whoever calls does

    def __call__(
        self,
        objective: Objective,
        images: Images,
        labels: Labels,
        threat: ThreatModel,
        *,
        noise: Noise,
    ) -> Images:
        """What it proposes: one candidate for each image."""
        bound = objective if self.loss is None else objective.under(self.loss)
        bound = bound if self.view is None else bound.through(self.view)
        return self.run(bound, images, labels, threat, noise=noise.named(self.name))


T = TypeVar("T")


class InBatches(Protocol):
    """Passes images in batches, as many at once as fit."""

    def __call__(self, images: Images, run: Callable[[Tensor, int], T]) -> list[T]:
        """What `run` gives for each batch: called with padded rows and the number of true ones."""


def at_once(images: Images, run: Callable[[Tensor, int], T]) -> list[T]:
    """All images as one batch, none padded."""
    return [run(torch.arange(len(images), device=images.device), len(images))]


class Observation(NamedTuple):
    """What a probe may look at, for the images that an attack was run on.

    The adversarial logits are those of the attack's own view, the adversarial routes those of the
    model as it is. A probe that needs passes of its own makes them through `over`.
    """

    model: Classifier
    labels: Labels
    clean_images: Images
    adversarial_images: Images
    clean_logits: Logits
    adversarial_logits: Logits
    accepted: Accepted | None = None  # where an image has several correct classes
    clean_routes: tuple[Routing, ...] = ()  # one for each MoE layer
    adversarial_routes: tuple[Routing, ...] = ()
    threat: ThreatModel | None = None  # the ball that was searched
    noise: Noise | None = None  # the same for all attacks and epsilons
    over: InBatches = at_once


class CleanObservation(NamedTuple):
    """What a probe of clean images may look at, once for each image."""

    model: Classifier
    samples: Samples
    logits: Logits
    threat: ThreatModel  # the largest of the suite
    routes: tuple[Routing, ...] = ()  # one for each MoE layer


Probe: TypeAlias = Callable[[Observation], Mapping[str, PerImage]]
CleanProbe: TypeAlias = Callable[[CleanObservation], Mapping[str, PerImage]]


def margin(logits: Logits, labels: Labels, accepted: Accepted | None = None) -> PerImage:
    """The logit of the label minus the best other; below 0 the image is misclassified.

    A tie counts as correct where the label comes first, as argmax has it. Where several classes
    are accepted, the best of them stands against the best of the others.
    """
    if accepted is not None:
        best = logits.masked_fill(~accepted, float("-inf")).amax(dim=1)
        return best - logits.masked_fill(accepted, float("-inf")).amax(dim=1)
    own = logits.gather(1, labels[:, None])[:, 0]
    others = logits.scatter(1, labels[:, None], float("-inf"))
    return own - others.amax(dim=1)


def is_fooled(logits: Logits, labels: Labels, accepted: Accepted | None = None) -> Mask:
    """The images whose prediction, the argmax, is not their label, or none of those accepted."""
    if accepted is not None:
        return ~accepted.gather(1, logits.argmax(dim=1, keepdim=True))[:, 0]
    return logits.argmax(dim=1) != labels


@dataclass(frozen=True)
class Noise:
    """Noise that depends on seed, attack, restart, step, sample and element, on nothing else.

    Neither batch size, nor dropped images, nor shards, nor workers change what is drawn: a
    splitmix64 hash (Steele et al., 2014, https://doi.org/10.1145/2660193.2660195) of the key is
    taken in integer tensor operations, which give the same bits on every device.

    Attributes:
        key: From `noise_key`.
        samples: Id of each image.
        shape: (channel, height, width).
    """

    key: int
    samples: Rows
    shape: tuple[int, int, int]

    def uniform(self, restart: int, step: int = 0) -> Images:
        """Values in [-1, 1), multiples of 2**-23: bit-equal on every device."""
        return self._top_bits(restart, step, 0).to(torch.float32) * 2.0**-23 - 1

    def normal(self, restart: int, step: int = 0) -> Images:
        """Standard normal values (Box-Muller); across devices only close, not bit-equal."""
        radius = (self._top_bits(restart, step, 1).to(torch.float32) + 1) * 2.0**-24
        angle = self._top_bits(restart, step, 2).to(torch.float32) * (2 * torch.pi * 2.0**-24)
        return (-2 * radius.log()).sqrt() * angle.cos()

    def rows(self, index: Rows) -> Noise:
        """The same noise for some of its images."""
        return replace(self, samples=self.samples[index])

    def named(self, name: str) -> Noise:
        """Another stream of noise for the same images, for one part of an attack."""
        return replace(self, key=noise_key(self.key, name))

    def _top_bits(self, restart: int, step: int, channel: int) -> Tensor:
        """24 hashed bits for each element of each image, in int64."""
        count = self.shape[0] * self.shape[1] * self.shape[2]
        element = torch.arange(count, device=self.samples.device)
        stream = _signed(_mixed_integer(self.key, restart, step, channel))
        image = _mixed(self.samples * _GOLDEN + stream)
        hashed = _mixed(image[:, None] + element * _GOLDEN)
        return _shifted(hashed, 40).view(-1, *self.shape)


def noise_key(seed: int, *names: str) -> int:
    """The key of a stream of noise: 64 bits of a hash of the seed and what it is for."""
    text = "\0".join([str(seed), *names])
    return int.from_bytes(sha256(text.encode()).digest()[:8], "little")


_WORD = 2**64
_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15, as int64
_FIRST = -4658895280553007687  # 0xBF58476D1CE4E5B9
_SECOND = -7723592293110705685  # 0x94D049BB133111EB


def _mixed(state: Tensor) -> Tensor:
    """The finaliser of splitmix64, on int64 with wrap-around."""
    state = (state ^ _shifted(state, 30)) * _FIRST
    state = (state ^ _shifted(state, 27)) * _SECOND
    return state ^ _shifted(state, 31)


def _shifted(state: Tensor, bits: int) -> Tensor:
    """The logical right shift that int64 tensors lack."""
    return (state >> bits) & ((1 << (64 - bits)) - 1)


def _mixed_integer(key: int, *words: int) -> int:
    """The same hash on Python integers, one word after the other."""
    state = key
    for word in words:
        state = (state + (word + 1) * (_GOLDEN % _WORD)) % _WORD
        state = ((state ^ (state >> 30)) * (_FIRST % _WORD)) % _WORD
        state = ((state ^ (state >> 27)) * (_SECOND % _WORD)) % _WORD
        state ^= state >> 31
    return state


def _signed(word: int) -> int:
    return word - _WORD if word >= _WORD // 2 else word
