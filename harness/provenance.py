"""Where a number comes from: versions, machine, plugins, command line."""

from __future__ import annotations

import os
import platform
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.registry import Registry

PACKAGES = (
    "moe-robustness-harness",
    "torch",
    "torchvision",
    "timm",
    "datasets",
    "numpy",
    "pandas",
    "pluggy",
    "adversarial-robustness-toolbox",
    "lightning-fabric",
    "scipy",
    "scikit-learn",
    "safetensors",
)


def versions() -> dict[str, str]:
    """The version of each package that a number may depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def collect(registry: Registry, *, device: str, threads: int) -> dict[str, Any]:
    """All that is known about who computes, without anything that names a place.

    Args:
        registry: Whose plugins are at work.
        device: Name of the device.
        threads: Of this process.
    """
    return {
        "versions": versions(),
        "plugins": {
            f"{plugin.distribution}:{plugin.name}": {
                "version": plugin.version,
                "sha256": plugin.sha256,
            }
            for plugin in registry.plugins
            if not plugin.error
        },
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "cores": os.cpu_count(),
            "device": device,
            "threads": threads,
            "precision": "float32",
        },
        "command": [_placeless(argument) for argument in sys.argv],
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _placeless(argument: str) -> str:
    """A word of the command line; of an absolute path only the name."""
    return Path(argument).name if Path(argument).is_absolute() else argument
