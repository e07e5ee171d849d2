"""What a run would do: read off the run folder and the cards, without torch or images."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import hashing, plan
from harness.store import Store

if TYPE_CHECKING:
    from harness.plan import Contender
    from harness.plugins import Registry
    from harness.suite import Suite


@dataclass(frozen=True)
class Forecast:
    """What is left to do for one row.

    Attributes:
        model: The row.
        weights: "to train", "trained", "given", or "brought by the plugin".
        cell: Key of its cell; None before its weights are known.
        shards, shards_done: Units of work.
        images: In all shards.
        passes: Most forward passes of one image; None where an attack does not say.
        seconds_left: At the pace of this model's finished shards; None where there are none.
    """

    model: str
    weights: str
    cell: str | None
    shards: int
    shards_done: int
    images: int
    passes: int | None
    seconds_left: float | None

    def to_json(self) -> dict[str, Any]:
        """The forecast as a JSON object."""
        return asdict(self)


def forecast(
    suite: Suite,
    contender: Contender,
    registry: Registry,
    *,
    out: Path,
    seed: int,
    limit: int | None,
) -> Forecast:
    """What a run of one row would do, taking the data to be the copy that its card describes."""
    card = registry.find("datasets", suite.data.name).card
    shards = list(plan.shards(plan.sample_ids(suite, card), suite.shard_size, limit))
    store = Store(out)
    told, sha256 = _weights(suite, contender, registry, store, seed)
    key = _cell_key(suite, contender, registry, sha256, seed) if sha256 else None
    done = [shard for shard in shards if key and store.cell(key).has(shard)]
    left = sum(len(shard.ids) for shard in shards) - sum(len(shard.ids) for shard in done)
    pace = _seconds_per_image(store, contender.model)
    return Forecast(
        model=contender.row,
        weights=told,
        cell=key,
        shards=len(shards),
        shards_done=len(done),
        images=sum(len(shard.ids) for shard in shards),
        passes=plan.passes(suite, registry),
        seconds_left=0.0 if left == 0 else (pace and left * pace),
    )


def _weights(
    suite: Suite, contender: Contender, registry: Registry, store: Store, seed: int
) -> tuple[str, str]:
    """Where the weights stand, and their hash where it is known."""
    if contender.recipe:
        card = registry.find("datasets", suite.data.name).card
        ingredients = plan.training_ingredients(
            suite,
            contender,
            registry,
            fingerprint=card.fingerprints.get(suite.data.train, ""),
            seed=seed,
        )
        path = store.weights(plan.key(ingredients)) / "card.json"
        if not path.is_file():
            return "to train", ""
        return "trained", json.loads(path.read_text(encoding="utf-8"))["sha256"]
    path = Path(contender.weights)
    if path.is_file():
        return "given", contender.sha256 or hashing.of_file(path)
    return ("given", contender.sha256) if contender.sha256 else ("brought by the plugin", "")


def _cell_key(
    suite: Suite, contender: Contender, registry: Registry, sha256: str, seed: int
) -> str:
    card = registry.find("datasets", suite.data.name).card
    return plan.key(
        plan.cell_ingredients(
            suite,
            contender,
            registry,
            fingerprint=card.fingerprints.get(suite.data.split, ""),
            weights=sha256,
            seed=seed,
        )
    )


def _seconds_per_image(store: Store, model: str) -> float | None:
    """The pace of a model's finished shards, in any cell of the run folder."""
    seconds, images = 0.0, 0
    for folder in store.cells():
        if (folder.manifest() or {}).get("model") == model:
            for event in folder.events():
                if event["event"] == "shard-finished":
                    seconds += event.get("seconds", 0)
                    images += event.get("images", 0)
    return seconds / images if images else None
