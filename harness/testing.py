"""Checks for authors of plugins, and models whose behaviour is known exactly.

Each `check_...` takes a registered name and raises an AssertionError that says what to change;
the harness runs the same checks over all that it brings.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from harness.building import bound_attack, build_model
from harness.numerics import ROW_GROUP, Batches, check_classifier, frozen
from harness.passes import LossObjective, objective_of
from harness.routing import Routing
from harness.seeing import clean_pass, looked, predict
from harness.suite import AttackSpec
from harness.tensors import (
    Images,
    Labels,
    Logits,
    Noise,
    Observation,
    Routed,
    RoutedClassifier,
    Samples,
    is_fooled,
    noise_key,
)
from harness.threat import ThreatModel

if TYPE_CHECKING:
    from harness.cards import ModelCard
    from harness.judging import BoundAttack
    from harness.registry import Registry

LARGEST = 20_000_000
"""Parameters above which a model is only built on the meta device."""


CHECK_CLASSES = 5
"""Classes of the model that attacks are checked on: some losses need the fourth largest logit."""


BALANCE = 0.01
"""Weight of the auxiliary loss of `ToyMoE`: the squared importance of experts, image by image."""


class LinearModel(nn.Module):
    """Two classes, split by the plane on which the mean pixel is one half.

    An image whose mean is 0.5 + gap has the label 1, its margin is 2 * gap, and the plane is
    gap away in Linf and gap * sqrt(pixels) in L2, as long as no pixel meets 0 or 1.

    Args:
        num_classes: More than two add classes that never win: their logits are -1.
    """

    def __init__(self, num_classes: int = 2) -> None:
        super().__init__()
        self.num_classes = num_classes

    def forward(self, images: Images) -> Logits:
        """Logits (0.5 - mean, mean - 0.5, -1 ...)."""
        score = images.flatten(1).mean(dim=1) - 0.5
        others = score.new_full((len(score), self.num_classes - 2), -1.0)
        return torch.cat([torch.stack([-score, score], dim=1), others], dim=1)


class LinearMoE(LinearModel):
    """`LinearModel` as every expert of one MoE layer: its boundary is the same on all routes.

    The router is hard and affine: the brighter the upper half of an image, the rather it goes to
    the first of the experts.

    Args:
        num_classes: As of `LinearModel`.
        num_experts: All alike.
    """

    def __init__(self, num_classes: int = 2, *, num_experts: int = 3) -> None:
        super().__init__(num_classes)
        self.num_experts = num_experts

    def routed(
        self,
        images: Images,
        *,
        routes: tuple[Routing, ...] | None = None,
        relaxed: bool = False,  # noqa: ARG002 - all experts say the same
        detach_router: bool = False,  # noqa: ARG002 - no gradient comes through it anyway
    ) -> Routed:
        """The logits, and routes that decide nothing; see `RoutedClassifier`."""
        logits = super().forward(images)
        return Routed(logits, routes or (self._routing(images),), logits.new_zeros(len(logits)))

    def _routing(self, images: Images) -> Routing:
        brightness = images[:, :, : images.shape[2] // 2].flatten(1).mean(dim=1) - 0.5
        steepness = torch.linspace(1, -1, self.num_experts, device=images.device)
        scores = brightness[:, None, None] * steepness
        experts = scores.argmax(dim=2, keepdim=True)
        return Routing(scores, scores.softmax(dim=2), experts, torch.ones_like(experts).bool())


class ToyMoE(nn.Module):
    """A routed model small enough to reason about: linear experts, one router, images as tokens.

    Args:
        num_classes: Length of the logits.
        image_shape: (channel, height, width).
        num_experts: Linear experts.
        gradient: "none" routes hard, "straight-through" gives the chosen gate a gradient as if
            the choice were the identity (Bengio et al., 2013, https://arxiv.org/abs/1308.3432),
            "soft" mixes all experts by their gates.
    """

    def __init__(
        self,
        num_classes: int,
        image_shape: tuple[int, int, int],
        *,
        num_experts: int = 4,
        gradient: str = "none",
    ) -> None:
        super().__init__()
        pixels = image_shape[0] * image_shape[1] * image_shape[2]
        self.gradient = gradient
        self.router = nn.Linear(pixels, num_experts)
        self.experts = nn.Parameter(torch.randn(num_experts, num_classes, pixels) / pixels**0.5)

    def forward(self, images: Images) -> Logits:
        """The logits alone."""
        return self.routed(images).logits

    def routed(
        self,
        images: Images,
        *,
        routes: tuple[Routing, ...] | None = None,
        relaxed: bool = False,
        detach_router: bool = False,
    ) -> Routed:
        """The logits and the routing of the one layer; see `RoutedClassifier`."""
        flat = images.flatten(1) - 0.5
        routing = self._routing(flat) if routes is None else routes[0]
        gates = routing.gates[:, 0]
        if detach_router:
            gates = gates.detach()
        outputs = torch.einsum("ecd,nd->nec", self.experts, flat)
        weights = self._weights(gates, routing.experts[:, 0], relaxed=relaxed)
        logits = torch.einsum("ne,nec->nc", weights, outputs)
        balance = BALANCE * gates.square().sum(dim=1) * gates.shape[1]
        return Routed(logits, (routing,), balance)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters of the router, of the experts, and others."""
        return {"router": list(self.router.parameters()), "experts": [self.experts], "other": []}

    def active_parameters(self) -> int:
        """The router and one expert; all experts of a soft mixture."""
        total = sum(parameter.numel() for parameter in self.parameters())
        if self.gradient == "soft":
            return total
        return total - self.experts.numel() + self.experts[0].numel()

    def _routing(self, flat: Tensor) -> Routing:
        logits = self.router(flat)[:, None]
        experts = logits.argmax(dim=2, keepdim=True)
        return Routing(logits, logits.softmax(dim=2), experts, torch.ones_like(experts).bool())

    def _weights(self, gates: Tensor, chosen: Tensor, *, relaxed: bool) -> Tensor:
        """The weight of each expert's output."""
        if relaxed or self.gradient == "soft":
            return gates
        hard = torch.zeros_like(gates).scatter(1, chosen, 1.0)
        if self.gradient == "straight-through":
            return hard + gates - gates.detach()
        return hard


def linear_samples(count: int = 8, gap: float = 0.1, size: int = 8) -> Samples:
    """Grey images that lie `gap` above the plane of `LinearModel`."""
    images = torch.full((count, 3, size, size), 0.5 + gap)
    return Samples(torch.arange(count), images, torch.ones(count, dtype=torch.int64))


def linear_distance(norm: str, gap: float = 0.1, size: int = 8) -> float:
    """How far `linear_samples` are from the plane."""
    return gap if norm == "linf" else gap * (3 * size * size) ** 0.5


def observed(
    model: nn.Module,
    labels: Labels,
    clean: Images,
    adversarial: Images,
    *,
    threat: ThreatModel,
) -> Observation:
    """What a probe is given for images that an attack turned into others."""
    batches = Batches(len(clean))
    before, after = (looked(model, images, batches=batches) for images in (clean, adversarial))
    shape = (clean.shape[1], clean.shape[2], clean.shape[3])
    return Observation(
        model,
        labels,
        clean,
        adversarial,
        before.logits,
        after.logits,
        None,
        before.routes,
        after.routes,
        threat,
        Noise(noise_key(0, "probes"), torch.arange(len(clean)), shape),
        batches.over,
    )


def check_model(
    registry: Registry,
    name: str,
    *,
    num_classes: int = 10,
    image_shape: tuple[int, int, int] | None = None,
    **parameters: Any,
) -> None:
    """Check that a registered model keeps the contract of a Classifier.

    Built twice from one seed it is the same; in evaluation mode it gives finite logits of the
    right shape, the same for an image alone and in a batch, with a gradient at the image; its
    state survives a round trip. A routed model gives the same logits when its own routes are
    replayed or its router is detached, and gates that sum to 1.

    Args:
        registry: Where the name is looked up.
        name: Registered model, or member of a family.
        num_classes: Length that its logits must have.
        image_shape: Of its images; the card's smallest size where it states one, else 3x32x32.
        parameters: Those that differ from the registered defaults.

    Raises:
        AssertionError: Says what to change.
        ModelError: The same, for what a run refuses too.
    """
    shape = image_shape or _shape_of(registry.find("models", name).card)

    def build() -> nn.Module:
        return build_model(
            registry, name, num_classes=num_classes, image_shape=shape, seed=1, **parameters
        )

    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in build().parameters())
    if size > LARGEST:
        _check_on_meta(build, num_classes, shape, name)
        return
    model = build()
    twin = build()
    state = model.state_dict()
    for key, value in twin.state_dict().items():
        assert torch.equal(value, state[key]), (
            f"{name}: {key} differs between two builds; draw random numbers from torch alone"
        )
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1)
    twin.load_state_dict(state)
    images = Noise(1, torch.arange(ROW_GROUP + 3), shape).uniform(0) / 2 + 0.5
    with frozen(model), frozen(twin):
        check_classifier(model, images, num_classes, name)
        _check_passes(model, twin, images, name)


def _check_passes(model: nn.Module, twin: nn.Module, images: Images, name: str) -> None:
    logits = predict(model, images, batches=Batches(len(images)))
    assert torch.equal(logits, predict(twin, images, batches=Batches(len(images)))), (
        f"{name}: a state dict does not carry all that the forward pass depends on"
    )
    alone = torch.cat([predict(model, image, batches=Batches(1)) for image in images.split(1)])
    assert torch.allclose(logits, alone, atol=1e-4, rtol=1e-4), (
        f"{name}: an image's logits depend on the other images of its batch; "
        "state group=N on its card if the images of N share something on purpose"
    )
    labels = logits.argmin(dim=1)
    objective = _objective(model, labels)
    _, gradient = objective.gradient(images)
    assert gradient.isfinite().all(), f"{name}: the gradient at the images is NaN or infinite"
    assert (gradient.flatten(1).abs().amax(dim=1) > 0).all(), (
        f"{name}: the loss has no gradient at the images; do not detach, round or use no_grad"
    )
    if isinstance(model, RoutedClassifier):
        _check_routed(model, images, model(images), name)


@torch.no_grad()
def _check_routed(model: RoutedClassifier, images: Images, logits: Logits, name: str) -> None:
    """Attacks and verdicts ask `routed`; whoever uses the model calls it."""
    routed = model.routed(images)
    _check_routes(routed, len(images), name)
    found = {
        "routed(images)": routed,
        "routed(images, routes=its own)": model.routed(images, routes=routed.routes),
        "routed(images, detach_router=True)": model.routed(images, detach_router=True),
    }
    for call, (others, _, _) in found.items():
        assert torch.allclose(logits, others, atol=1e-4, rtol=1e-4), (
            f"{name}: {call} gives other logits than the model called by itself"
        )
    assert model.routed(images, relaxed=True).logits.isfinite().all(), (
        f"{name}: routed(images, relaxed=True) gives NaN or infinite logits"
    )


def _check_routes(routed: Routed, count: int, name: str) -> None:
    assert count % len(routed.auxiliary_loss) == 0, (
        f"{name}: auxiliary_loss must be one number for each image, or for each group"
    )
    for layer, routing in enumerate(routed.routes):
        batch, tokens, _ = routing.gate_logits.shape
        assert (batch, routing.gates.shape) == (count, routing.gate_logits.shape), (
            f"{name}: layer {layer}: gate_logits and gates must be (batch, token, expert)"
        )
        assert torch.allclose(routing.gates.sum(dim=2), routing.gates.new_ones(batch, tokens)), (
            f"{name}: layer {layer}: the gates of a token must sum to 1"
        )
        assert routing.experts.shape == routing.kept.shape, (
            f"{name}: layer {layer}: experts and kept must be (batch, token, k)"
        )


def _check_on_meta(build: Any, num_classes: int, shape: tuple[int, int, int], name: str) -> None:
    with torch.device("meta"):
        logits = build().eval()(torch.zeros(2, *shape))
    assert logits.shape == (2, num_classes), f"{name}: logits of shape {tuple(logits.shape)}"


def _shape_of(card: ModelCard) -> tuple[int, int, int]:
    if not card.sizes:
        return (3, 32, 32)
    size = min(card.sizes)
    return (1 if size < 32 else 3, size, size)  # noqa: PLR2004 - the digits are grey


def check_attack(
    registry: Registry,
    name: str,
    *,
    norm: str = "linf",
    within: float = 1.05,
    **parameters: Any,
) -> None:
    """Check that a registered attack keeps the contract, on a model whose boundary is known.

    It stays in the ball and the pixel range, gives the same images for the same seed, changes
    nothing that it is given, fools no image that is out of reach, and, unless its card calls it
    a control, fools those that are well within reach.

    Args:
        registry: Where the name is looked up.
        name: Registered attack.
        norm: Of the ball.
        within: Multiple of the distance to the boundary at which it must fool.
        parameters: Those that differ from the registered defaults.

    Raises:
        AssertionError: Says what to change.
    """
    entry = registry.find("attacks", name)
    settled = entry.settle(parameters, f"attack {name}")
    attack = bound_attack(AttackSpec(name, name, "ce", settled), registry)
    model = (LinearMoE if entry.card.needs_routes else LinearModel)(CHECK_CLASSES)
    samples = linear_samples()
    for factor, may_fool in ((within, True), (0.95, False)):
        threat = ThreatModel(norm, factor * linear_distance(norm))  # type: ignore[arg-type]
        images = samples.images.clone()
        found = _run(attack, model, samples._replace(images=images), threat)
        assert torch.equal(images, samples.images), f"{name}: changes the images that it is given"
        assert found.shape == images.shape, f"{name}: returns shape {tuple(found.shape)}"
        assert threat.contains(found, images).all(), (
            f"{name}: leaves the {norm} ball or [0, 1]; end with threat.project(images, clean)"
        )
        again = _run(attack, model, samples, threat)
        assert torch.equal(found, again), (
            f"{name}: two runs differ; take random numbers from the noise that it is given"
        )
        fooled = is_fooled(LinearModel()(found), samples.labels)
        if not may_fool:
            assert not fooled.any(), f"{name}: fools images that are out of reach"
        elif not entry.card.control:
            assert fooled.all(), f"{name}: misses images within {within} of their distance"


def _run(attack: BoundAttack, model: nn.Module, samples: Samples, threat: ThreatModel) -> Images:
    shape = (samples.images.shape[1], samples.images.shape[2], samples.images.shape[3])
    noise = Noise(noise_key(0, "check"), samples.ids, shape)
    objective = replace(
        _objective(model, samples.labels),
        context=clean_pass(model, samples, batches=Batches(len(samples.ids))),
    )
    return attack.run(
        objective, samples.images, samples.labels, threat, noise=noise, **attack.parameters
    )


def _objective(model: nn.Module, labels: Labels) -> LossObjective:
    """The negative margin of a model, which has a gradient everywhere."""
    return objective_of(model, lambda outcome: -outcome.margin, labels, batch_size=len(labels))
