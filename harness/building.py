"""Models, built for the images of a suite from a registered name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from harness.api import ModelContext
from harness.errors import HarnessError, ModelError

if TYPE_CHECKING:
    from harness.registry import Registry


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
            seed=seed,
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
