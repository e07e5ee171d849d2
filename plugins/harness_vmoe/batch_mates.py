"""Batch mates as an attack surface: other images of the group take a victim's places.

Where a group of images shares the experts' capacity, whoever picks a victim's mates can have its
tokens dropped without touching its pixels (Hayes et al., 2024, arXiv 2402.05526).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from itertools import product
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from harness.api import Evidence, ModelError, Routing, Value
from harness.stats import share
from harness.tensors import CleanObservation, Images, Labels, PerImage
from harness_vmoe.model import VMoE
from harness_vmoe.moe import SparseMlp

Ranking = Int[Tensor, "victim other"]
Mates = Int[Tensor, "victim mate"]

GROUP = 8
"""Images that share places, as in the published training (reference: 8 a device)."""
TRIES = 4
"""Sets of mates that the adversary may try for each victim."""
AT_ONCE = 32
"""Groups of one pass."""


class Situation(NamedTuple):
    """How a victim shares the experts' places, and with whom.

    Attributes:
        capacity_factor: Places as a multiple of what balanced tokens need.
        order: Who chooses first: "arrival" the first tokens, "priority" the largest gates.
        place: "first" or "last" of its group.
        mates: Images of its group that the adversary picks; the others are drawn.
    """

    capacity_factor: float
    order: str
    place: str
    mates: int

    @property
    def name(self) -> str:
        """As it stands in the names of measures."""
        return f"capacity{self.capacity_factor:g}.{self.order}.{self.place}.mates{self.mates}"


class Harm(NamedTuple):
    """What picked mates do to each victim; drawn mates have as many tries."""

    right: Bool[Tensor, victim]  # with the first drawn mates
    denied: Bool[Tensor, victim]  # right so, and wrong beside some picked mates
    redirected: Bool[Tensor, victim]  # taken for its runner-up class beside some of them
    denied_by_drawn: Bool[Tensor, victim]  # right so, and wrong beside some other drawn mates


SITUATIONS = (
    *(
        Situation(*most, GROUP - 1)
        for most in product((0.5, 1.0, 1.5), ("arrival", "priority"), ("first", "last"))
    ),
    Situation(1.0, "arrival", "last", 1),
    Situation(1.0, "arrival", "last", 3),
)


SHOWN = Situation(1.0, "arrival", "last", GROUP - 1)
"""The situation of the table's columns; the records hold all."""


def batch_mates(observation: CleanObservation) -> Mapping[str, PerImage]:
    """Who is denied and who is redirected in every situation, 0 or 1 for each image.

    The adversary picks mates among the other clean images of the shard and changes no pixel.
    Models but V-MoEs, and shards with too few images for so many sets of mates, measure nothing.
    """
    model, samples = observation.model, observation.samples
    if not isinstance(model, VMoE) or len(samples.ids) <= TRIES * (GROUP - 1):
        return {}
    if not any(True for _ in _sparse_layers(model)):
        return {}
    found: dict[str, PerImage] = {}
    for situation in SITUATIONS:
        harm = harmed(model, samples.images, samples.labels, observation.routes, situation)
        for name, values in harm._asdict().items():
            found[f"mates.{name}.{situation.name}"] = values.to(torch.float32)
    return found


def denied(evidence: Evidence) -> tuple[Value, ...]:
    """Share of all images that are right beside drawn mates and wrong beside picked ones."""
    return (_told(evidence, "denied"),)


def redirected(evidence: Evidence) -> tuple[Value, ...]:
    """Share of all images that are right so, and taken for their runner-up class."""
    return (_told(evidence, "redirected"),)


def denied_by_drawn(evidence: Evidence) -> tuple[Value, ...]:
    """The yardstick of `denied`: as many tries, with drawn mates."""
    return (_told(evidence, "denied_by_drawn"),)


def _told(evidence: Evidence, harm: str) -> Value:
    measure = f"mates.{harm}.{SHOWN.name}"
    found = {
        record.sample: record.measures[measure]
        for record in evidence.records
        if measure in record.measures
    }
    if not found:
        return Value(None, reason="no V-MoE, too few images, or no probe 'batch-mates'")
    return share(int(sum(found.values())), len(found))


@torch.no_grad()
def harmed(  # noqa: PLR0913 - who, where, beside whom
    model: VMoE,
    images: Images,
    labels: Labels,
    routes: Sequence[Routing],
    situation: Situation,
    *,
    group_size: int = GROUP,
    tries: int = TRIES,
) -> Harm:
    """What an adversary reaches who picks some of a victim's mates among the other images.

    Integrity and denial are told apart: a denied victim is wrong, a redirected one is taken for
    the very class that the adversary wants, the second likeliest beside drawn mates.

    Args:
        model: Frozen, in evaluation mode; a copy of it shares its parameters and takes the
            situation's capacity.
        images: In [0, 1]; each is a victim once, and a mate of the others.
        labels: Correct classes.
        routes: What the router wants for each image, one for each sparse layer.
        situation: Capacity, order and place.
        group_size: Images that share places.
        tries: Sets of mates tried for each victim.

    Raises:
        ModelError: There are too few images for so many sets of other mates.
    """
    others = len(images) - 1
    if tries * situation.mates > others or group_size - 1 > others:
        raise ModelError(
            f"{tries} sets of {situation.mates} mates need {tries * situation.mates + 1} images, "
            f"got {len(images)}; show more images at once, or try fewer sets"
        )
    crowded = with_capacity(model, situation, group_size)
    ranking = rivals(routes, by_gates=situation.order == "priority")
    drawn = _drawn(len(images), group_size - 1, tries)
    beside_drawn = torch.stack(
        [_logits(crowded, images, mates, situation.place) for mates in drawn]
    )
    guesses = torch.stack(
        [
            _logits(crowded, images, mates, situation.place).argmax(dim=1)
            for mates in _picked(ranking, drawn[0], situation.mates, tries)
        ]
    )
    ordered = beside_drawn[0].argsort(dim=1, descending=True, stable=True)
    right = ordered[:, 0] == labels
    return Harm(
        right,
        right & (guesses != labels).any(dim=0),
        right & (guesses == ordered[:, 1]).any(dim=0),
        right & (beside_drawn.argmax(dim=2) != labels).any(dim=0),
    )


def with_capacity(model: VMoE, situation: Situation, group_size: int) -> VMoE:
    """A copy that shares the parameters, whose groups of images share the experts' places."""
    shared: dict[int, object] = {id(part): part for part in (*model.parameters(), *model.buffers())}
    copy = deepcopy(model, shared)
    for layer in _sparse_layers(copy):
        layer.sparsity = replace(
            layer.sparsity,
            group_size=group_size,
            capacity_factor=situation.capacity_factor,
            batch_priority=situation.order == "priority",
        )
    return copy


def rivals(routes: Sequence[Routing], *, by_gates: bool) -> Ranking:
    """The other images, those that want a victim's experts most first.

    Two images compete by the sum, over layers and experts, of the tokens that each sends there;
    where gates decide who comes first, the mate's tokens count by their gates.
    """
    competition = sum(_competition(routing, by_gates=by_gates) for routing in routes)
    assert isinstance(competition, Tensor)  # noqa: S101 - a V-MoE has a sparse layer
    competition.fill_diagonal_(-torch.inf)
    return competition.argsort(dim=1, descending=True, stable=True)[:, :-1]


def _competition(routing: Routing, *, by_gates: bool) -> Float[Tensor, "victim victim"]:
    wanted = torch.zeros_like(routing.gates[:, 0])
    ones = torch.ones_like(routing.experts, dtype=wanted.dtype).flatten(1)
    wanted = wanted.scatter_add(1, routing.experts.flatten(1), ones)
    offered = wanted
    if by_gates:
        chosen = routing.gates.gather(2, routing.experts).flatten(1)
        offered = torch.zeros_like(wanted).scatter_add(1, routing.experts.flatten(1), chosen)
    return wanted @ offered.T


def _drawn(victims: int, mates: int, tries: int) -> list[Mates]:
    """Mates at random but the same in every run, never the victim itself."""
    generator = torch.Generator().manual_seed(victims)
    found = []
    for _ in range(tries):
        order = torch.rand(victims, victims, generator=generator).fill_diagonal_(torch.inf)
        found.append(order.argsort(dim=1)[:, :mates])
    return found


def _picked(ranking: Ranking, drawn: Mates, mates: int, tries: int) -> Iterator[Mates]:
    """The next best sets of rivals in turn, before drawn ones that fill the group."""
    for place in range(tries):
        chosen = ranking[:, place * mates : (place + 1) * mates]
        yield torch.cat([chosen, drawn.to(chosen.device)[:, mates:]], dim=1)


def _logits(
    model: VMoE, images: Images, mates: Mates, place: str
) -> Float[Tensor, "victim classes"]:
    """The victims' logits, each in the group of its mates."""
    victims = torch.arange(len(images), device=images.device)[:, None]
    mates = mates.to(images.device)
    parts = [victims, mates] if place == "first" else [mates, victims]
    groups = torch.cat(parts, dim=1)
    seat = 0 if place == "first" else -1
    found = [
        model(images[some.flatten()]).unflatten(0, tuple(some.shape))[:, seat]
        for some in groups.split(AT_ONCE)
    ]
    return torch.cat(found)


def _sparse_layers(model: nn.Module) -> Iterator[SparseMlp]:
    return (module for module in model.modules() if isinstance(module, SparseMlp))
