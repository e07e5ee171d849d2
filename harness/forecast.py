"""What a run would do: read off the run folder and the cards, without torch or images."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import hashing, plan
from harness.errors import DataError
from harness.labelsets import read_label_sets, with_labels
from harness.modes import FLOAT32
from harness.sources import known_fingerprint, located
from harness.store import Store

if TYPE_CHECKING:
    from harness.modes import Mode
    from harness.plan import Contender
    from harness.registry import Registry
    from harness.sources import Place
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


def forecast(  # noqa: PLR0913 - what a run is asked for
    suite: Suite,
    contender: Contender,
    registry: Registry,
    *,
    out: Path,
    seed: int,
    place: Place,
    mode: Mode = FLOAT32,
) -> Forecast:
    """What a run of one row would do.

    The images are those that an earlier run has decoded; where there was none, the copy that
    their card describes.
    """
    known = _Known(suite, contender, registry, Store(out), seed, place, mode.name)
    shards = list(plan.shards(_ids(known), suite.shard_size, place.limit))
    store = known.store
    told, sha256 = _weights(known)
    is_known = bool(sha256) and suite.data.space == "canvas"  # else only the model knows its size
    key = _cell_key(known, sha256) if is_known else None
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


@dataclass(frozen=True)
class _Known:
    """What a forecast is read off."""

    suite: Suite
    contender: Contender
    registry: Registry
    store: Store
    seed: int
    place: Place
    precision: str

    def fingerprint(self, split: str) -> str:
        """Of the images of a split, and of their label sets."""
        spec, labels = self.suite.data, self.place.labels
        found = known_fingerprint(self.registry, spec, split, self.place)
        if spec.labels == "sets" and split == spec.split and labels is not None:
            return with_labels(found, labels)
        return found


def _ids(known: _Known) -> tuple[int, ...]:
    suite = known.suite
    card = known.registry.find("datasets", suite.data.name).card
    ids = plan.sample_ids(suite, card)
    with suppress(DataError):
        _, choice = located(known.registry, suite.data, suite.data.split, known.place)
        if choice.is_partial:
            ids = tuple(range(choice.expected))
    if suite.data.labels == "sets" and known.place.labels is not None:
        sets = read_label_sets(known.place.labels, card.num_classes)
        return tuple(sample for sample in ids if sample in sets)
    return ids


def _weights(known: _Known) -> tuple[str, str]:
    """Where the weights stand, and their hash where it is known."""
    contender = known.contender
    if contender.recipe:
        ingredients = plan.training_ingredients(
            known.suite,
            contender,
            known.registry,
            fingerprint=known.fingerprint(known.suite.data.train),
            seed=known.seed,
        )
        path = known.store.weights(plan.key(ingredients)) / "card.json"
        if not path.is_file():
            return "to train", ""
        return "trained", json.loads(path.read_text(encoding="utf-8"))["sha256"]
    path = Path(contender.weights)
    if path.is_file():
        return "given", contender.sha256 or hashing.of_file(path)
    return ("given", contender.sha256) if contender.sha256 else ("brought by the plugin", "")


def _cell_key(known: _Known, sha256: str) -> str:
    return plan.key(
        plan.cell_ingredients(
            known.suite,
            known.contender,
            known.registry,
            data=known.fingerprint(known.suite.data.split),
            weights=sha256,
            seed=known.seed,
            precision=known.precision,
        )
    )


def _seconds_per_image(store: Store, model: str) -> float | None:
    """The pace of a model's finished shards, in any cell of the run folder that was attacked."""
    seconds, images = 0.0, 0
    for folder in store.cells():
        manifest = folder.manifest() or {}
        if manifest.get("model") == model and "transfer" not in manifest.get("flags", ()):
            for event in folder.events():
                if event["event"] == "shard-finished":
                    seconds += event.get("seconds", 0)
                    images += event.get("images", 0)
    return seconds / images if images else None
