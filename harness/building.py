"""Registered names made into what runs: models for a suite's images, attacks with their loss."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from harness.api import ModelContext
from harness.errors import HarnessError, ModelError
from harness.judging import BoundAttack
from harness.plan import needs_routes
from harness.suite import member_spec, members_of
from harness.tensors import Member
from harness.views import View

if TYPE_CHECKING:
    from harness.registry import Registry
    from harness.suite import AttackSpec


def build_model(
    registry: Registry,
    name: str,
    *,
    num_classes: int,
    image_shape: tuple[int, int, int],
    seed: int,
    **parameters: Any,
) -> nn.Module:
    """A model as its plugin builds it, initialised from a seed that nothing else shares.

    Args:
        registry: Where the name is looked up.
        name: Registered model, or a member of a family.
        num_classes: Length of its logits.
        image_shape: (channel, height, width) of its images.
        seed: Of its initialisation.
        parameters: Those that differ from the registered defaults.

    Raises:
        ModelError: The plugin's function raised, or returned no module.
    """
    entry = registry.find("models", name)
    settled = entry.settle(parameters, f"model {name}")
    build = entry.load()

    def other(name: str, **parameters: Any) -> nn.Module:
        return build_model(
            registry,
            name,
            num_classes=num_classes,
            image_shape=image_shape,
            seed=int(torch.randint(2**31, (), device="cpu")),
            **parameters,
        )

    context = ModelContext(num_classes, image_shape, other)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = build(context, **settled)
        except HarnessError:
            raise
        except Exception as error:  # a plugin's function may raise anything
            raise ModelError(
                f"model {name}: building it for {num_classes} classes and images of shape "
                f"{image_shape} raised {type(error).__name__}: {error}"
            ) from error
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"model {name}: its builder returned {type(model).__name__}, no torch.nn.Module"
        )
    return model


def bound_attack(
    attack: AttackSpec, registry: Registry, *, is_routed: bool = True, is_coupled: bool = False
) -> BoundAttack:
    """An attack of a suite with its objective and the attacks that it calls, ready to be called.

    Args:
        attack: Of the suite.
        registry: Where names are looked up.
        is_routed: The model has routes; a dense one meets only those of the attacks that an
            attack calls which have a meaning for it.
        is_coupled: The model couples images, so that fooled ones may not leave.

    Raises:
        HarnessError: Something that it names cannot be imported.
    """
    entry = registry.find("attacks", attack.name)
    parameters = dict(attack.parameters)
    if is_coupled and "stop" in parameters:
        parameters["stop"] = "never"
    if entry.card.members:
        specs = {name: member_spec(name, registry) for name in members_of(entry, parameters)}
        parameters[entry.card.members] = tuple(
            _member(name, spec, registry, is_coupled=is_coupled)
            for name, spec in specs.items()
            if is_routed or not needs_routes(spec, registry)
        )
    return BoundAttack(
        attack.label,
        entry.load(),
        registry.find("objectives", attack.objective).load(),
        parameters,
        attack.epsilons,
        View(attack.view),
    )


def _member(written: str, spec: AttackSpec, registry: Registry, *, is_coupled: bool) -> Member:
    bound = bound_attack(spec, registry, is_coupled=is_coupled)
    return Member(written, partial(bound.run, **bound.parameters), bound.loss, bound.view)
