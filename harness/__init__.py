"""The adversarial robustness of Mixture-of-Experts vision models, measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.api import (
    AttackCard,
    Card,
    DataContext,
    DatasetCard,
    HarnessError,
    ImageRows,
    MetricCard,
    ModelCard,
    ModelContext,
    ObjectiveCard,
    ProbeCard,
    Record,
    ThreatModel,
    Value,
    hookimpl,
)

if TYPE_CHECKING:
    from harness.export import read_records
    from harness.notebook import evaluate, load_model

__version__ = "0.1.0"

__all__ = [
    "AttackCard",
    "Card",
    "DataContext",
    "DatasetCard",
    "HarnessError",
    "ImageRows",
    "MetricCard",
    "ModelCard",
    "ModelContext",
    "ObjectiveCard",
    "ProbeCard",
    "Record",
    "ThreatModel",
    "Value",
    "evaluate",
    "hookimpl",
    "load_model",
    "read_records",
]


def __getattr__(name: str) -> Any:
    """Import what needs torch or pandas when it is first asked for."""
    if name in ("evaluate", "load_model"):
        from harness import notebook  # noqa: PLC0415 - `import harness` must stay instant

        return getattr(notebook, name)
    if name == "read_records":  # harness.records is the module of Record
        from harness.export import read_records  # noqa: PLC0415 - the same

        return read_records
    raise AttributeError(f"module 'harness' has no attribute {name!r}")
