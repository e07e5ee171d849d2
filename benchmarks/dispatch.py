"""Ways to send tokens to experts, side by side in one run: forward and the gradient at the tokens.

python benchmarks/dispatch.py [--rounds 9]
"""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Annotated

import torch
import typer
from torch import Tensor
from torch.nn import functional

from harness.provenance import versions
from harness_vmoe.dispatch import Experts, grouped, loop

if TYPE_CHECKING:
    from collections.abc import Callable

EXPERTS, SELECTED, WIDTH, HIDDEN = 8, 2, 192, 768
IMAGES, TOKENS, GROUP = 64, 65, 8
"""64 images of 65 tokens are 4,160; eight of them share a group, as in the released code."""


def main(rounds: Annotated[int, typer.Option(help="Times that each way is run.")] = 9) -> None:
    """Print one JSON object: CPU seconds of each way and how many times as fast as one-hot."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    mlp = Experts(EXPERTS, WIDTH, HIDDEN).requires_grad_(requires_grad=False)
    for parameter in mlp.parameters():
        parameter.add_(torch.randn_like(parameter) / 10)
    tokens = torch.randn(IMAGES * TOKENS, WIDTH)
    gates, experts = torch.randn(len(tokens), EXPERTS).softmax(dim=1).topk(SELECTED)
    expected = _one_hot(mlp, tokens, experts, gates)
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    gaps = {}
    for _ in range(rounds):
        for name, way in WAYS.items():
            leaf = tokens.clone().requires_grad_()
            start = time.process_time()
            mixed = way(mlp, leaf, experts, gates)
            torch.autograd.grad(mixed.square().sum(), [leaf])
            seconds[name].append(round(time.process_time() - start, 4))
            gaps[name] = float((mixed.detach() - expected).abs().max() / expected.abs().max())
    least = {name: min(found) for name, found in seconds.items()}
    told = {
        name: {
            "cpu_seconds": seconds[name],
            "times as fast": round(least["one-hot"] / least[name], 2),
            "largest difference": gaps[name],
        }
        for name in WAYS
    }
    about = {"tokens": len(tokens), "experts": EXPERTS, "selected": SELECTED, "width": WIDTH}
    json.dump({**told, **about, "threads": 1, "versions": versions()}, sys.stdout, indent=1)


def _combined(
    dispatch: Callable[[Experts, Tensor, Tensor], Tensor],
) -> Callable[[Experts, Tensor, Tensor, Tensor], Tensor]:
    """One of ours, its outputs weighted and summed as the sparse layer does."""

    def way(mlp: Experts, tokens: Tensor, experts: Tensor, gates: Tensor) -> Tensor:
        return (gates[:, :, None] * dispatch(mlp, tokens, experts)).sum(dim=1)

    return way


def _one_hot(mlp: Experts, tokens: Tensor, experts: Tensor, gates: Tensor) -> Tensor:
    """A place for each token of a group at every expert, so that none can be dropped."""
    return _by_places(mlp, tokens, experts, gates, GROUP * TOKENS)


def _one_hot_of_fullest(mlp: Experts, tokens: Tensor, experts: Tensor, gates: Tensor) -> Tensor:
    """Only as many places as the fullest expert needs, which is known once routes are."""
    loads = functional.one_hot(experts.view(-1, GROUP * TOKENS * SELECTED), EXPERTS).sum(dim=1)
    return _by_places(mlp, tokens, experts, gates, int(loads.max()))


def _by_places(
    mlp: Experts, tokens: Tensor, experts: Tensor, gates: Tensor, capacity: int
) -> Tensor:
    """Tokens go to places, and come back, by products with masks.

    The masks are scattered, which costs less than the released products of one-hot vectors.
    """
    # G group, S token, E expert, C place, D width, F hidden
    size = GROUP * TOKENS
    by_group = tokens.view(-1, size, WIDTH)
    queue = functional.one_hot(experts.view(-1, size, SELECTED).transpose(1, 2), EXPERTS)
    places = (queue.flatten(1, 2).cumsum(dim=1) - 1).view_as(queue)
    places = places.transpose(1, 2).flatten(0, 1).gather(2, experts[:, :, None])[:, :, 0]
    cells = experts * capacity + places
    empty = tokens.new_zeros(len(tokens), EXPERTS * capacity)
    shape = (-1, size, EXPERTS, capacity)
    dispatch = empty.scatter(1, cells, 1.0).view(shape)
    combine = empty.scatter(1, cells, gates).view(shape)
    sent = torch.einsum("gsec,gsd->egcd", dispatch, by_group).flatten(1, 2)
    hidden = torch.einsum("end,edf->enf", sent, mlp.hidden.weight) + mlp.hidden.bias[:, None]
    hidden = functional.gelu(hidden, approximate="tanh")
    outputs = torch.einsum("enf,efd->end", hidden, mlp.out.weight) + mlp.out.bias[:, None]
    outputs = outputs.view(EXPERTS, -1, capacity, WIDTH)
    mixed: Tensor = torch.einsum("egcd,gsec->gsd", outputs, combine)
    return mixed.flatten(0, 1)


def _masked_loop(mlp: Experts, tokens: Tensor, experts: Tensor, gates: Tensor) -> Tensor:
    """The usual code: for each expert, those of its tokens that a mask finds."""
    mixed = torch.zeros_like(tokens)
    for expert in range(EXPERTS):
        rows, ranks = (experts == expert).nonzero(as_tuple=True)
        hidden = tokens[rows] @ mlp.hidden.weight[expert] + mlp.hidden.bias[expert]
        hidden = functional.gelu(hidden, approximate="tanh")
        outputs = hidden @ mlp.out.weight[expert] + mlp.out.bias[expert]
        mixed = mixed.index_add(0, rows, gates[rows, ranks, None] * outputs)
    return mixed


WAYS = {
    "one-hot": _one_hot,
    "one-hot, places of the fullest": _one_hot_of_fullest,
    "masked loop": _masked_loop,
    "loop": _combined(loop),
    "grouped": _combined(grouped),
}


if __name__ == "__main__":
    typer.run(main)
