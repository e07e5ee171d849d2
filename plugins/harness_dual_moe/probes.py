"""Numbers of clean images that need no attack: certified radii, and how near other routes are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from itertools import product

import torch
from torch import Tensor, nn

from harness.api import ModelError, Routing
from harness.tensors import CleanObservation, Mask, PerImage, RoutedClassifier, is_fooled
from harness_dual_moe.bounds import model_radius
from harness_dual_moe.dual import Dual, RoutedDual
from harness_dual_moe.mixture import Mixture
from harness_dual_moe.routes import AffineRouter, affine_router, pair_radii, redirection_radius
from harness_dual_moe.slopes import traced


def certified_radius(observation: CleanObservation) -> Mapping[str, PerImage]:
    """The distance within which the weights prove that the prediction stays.

    `certified_radius`, in the norm of the threat and at most the box's own diameter; 0 where the
    model in float64 says another class than in float32. `uncertified` is 1 where a part of the
    model has no bound.
    """
    images, threat = observation.samples.images, observation.threat
    try:
        for part in _networks(observation.model):
            traced(part)
        twin = deepcopy(observation.model).double()
        radius = model_radius(twin, images, norm=threat.norm)
    except ModelError:
        return {"uncertified": torch.ones(len(images), device=images.device)}
    with torch.no_grad():
        same = twin(images.double()).argmax(dim=1) == observation.logits.argmax(dim=1)
    diameter = 1.0 if threat.norm == "linf" else float(images[0].numel()) ** 0.5
    return {"certified_radius": torch.where(same, radius.clamp(max=diameter), 0.0)}


def router_radius(observation: CleanObservation) -> Mapping[str, PerImage]:
    """The least Linf distance at which hard affine routers can choose experts that are wrong.

    The experts see the clean image, as in view `router`. Exact by one linear program for each
    wrong choice that is near enough to be the nearest; beyond the largest epsilon of the suite a
    lower bound. `unrouted` is 1 where the model has another router, or the norm is another.
    """
    model, samples = observation.model, observation.samples
    try:
        routers = _affine_routers(model, tuple(samples.images.shape[1:]))
        if observation.threat.norm != "linf":
            raise ModelError("routes are exact in Linf alone")  # noqa: TRY301 - one way out
    except ModelError:
        return {"unrouted": torch.ones(len(samples.ids), device=samples.images.device)}
    apart = [pair_radii(router, samples.images, norm="linf") for router in routers]
    choices = list(product(*[range(len(router.bias)) for router in routers]))
    wrong = torch.stack([_is_wrong(observation, choice) for choice in choices], dim=1)
    right = ~is_fooled(observation.logits, samples.labels, samples.accepted)
    # each router must come to prefer its expert to every other, which pair by pair takes so much
    least = torch.stack(
        [
            torch.stack(
                [
                    pairs[:, :, expert].amax(dim=1)
                    for pairs, expert in zip(apart, choice, strict=True)
                ]
            ).amax(dim=0)
            for choice in choices
        ],
        dim=1,
    )
    least = least.masked_fill(~wrong, float("inf"))
    found = [
        _nearest(image, routers, choices, bounds, observation.threat.epsilon) if is_right else 0.0
        for image, bounds, is_right in zip(
            samples.images.flatten(1), least.tolist(), right.tolist(), strict=True
        )
    ]
    return {"router_radius": samples.images.new_tensor(found, dtype=torch.float64)}


def _nearest(
    image: Tensor,
    routers: Sequence[AffineRouter],
    choices: Sequence[Sequence[int]],
    bounds: Sequence[float],
    epsilon: float,
) -> float:
    """The distance of the nearest wrong choice, at most 1: lower bounds say which to look at."""
    best = 1.0
    for bound, choice in sorted(zip(bounds, choices, strict=True)):
        if bound >= best or bound > epsilon:
            return min(best, bound)
        best = min(best, redirection_radius(image, routers, choice))
    return best


@torch.no_grad()
def _is_wrong(observation: CleanObservation, choice: Sequence[int]) -> Mask:
    """Whose clean content a choice of experts has wrong."""
    model, samples = observation.model, observation.samples
    assert isinstance(model, RoutedClassifier)  # noqa: S101 - it has affine routers
    own = model.routed(samples.images).routes
    forced = tuple(_forced(layer, expert) for layer, expert in zip(own, choice, strict=True))
    logits = model.routed(samples.images, routes=forced).logits
    return is_fooled(logits, samples.labels, samples.accepted)


def _forced(layer: Routing, expert: int) -> Routing:
    experts = torch.full_like(layer.experts, expert)
    return replace(layer, experts=experts, kept=torch.ones_like(experts).bool())


def _affine_routers(model: nn.Module, image_shape: tuple[int, ...]) -> list[AffineRouter]:
    """Of all mixtures in a model, in the order of its routes.

    Raises:
        ModelError: One of its parts is no mixture that chooses one expert by a linear router.
    """
    if isinstance(model, RoutedDual):
        routed = [part for part in (model.standard, model.robust) if hasattr(part, "routed")]
        return [router for half in routed for router in _affine_routers(half, image_shape)]
    if not isinstance(model, Mixture) or model.mixing.num_selected != 1:
        raise ModelError("the model has no hard choice of one expert for each image")
    return [affine_router(model, image_shape)]


def _networks(model: nn.Module) -> Iterator[nn.Module]:
    """The networks whose layers a bound of the model has to know."""
    if isinstance(model, Mixture):
        yield from model.experts
    elif isinstance(model, Dual | RoutedDual):
        if model.combination.combine == "logits":
            yield from _networks(model.standard)
            yield from _networks(model.robust)
    else:
        yield model
