"""`harness break`: images that lower an entry, from whoever found them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli import options as opt
from harness.cli.output import note, print_json
from harness.errors import UsageError
from harness.suite import Suite, find_suite


def break_(
    entry: Annotated[Path, typer.Argument(help="Entry of a board.", metavar="ENTRY")],
    images: Annotated[
        Path,
        typer.Argument(help="npz file with ids and images in [0, 1], float32.", metavar="IMAGES"),
    ],
    source: Annotated[
        str, typer.Option("--source", help="Who found them and how, for the board to show.")
    ],
    epsilon: Annotated[
        str, typer.Option("--epsilon", help="Ball of the suite.  [default: the headline]")
    ] = "",
    suite: opt.SuiteOption = opt.DEFAULT_SUITE,
    weights: opt.WeightsOption = "",
    data: opt.DataOption = None,
    cache: opt.CacheOption = None,
    labels: opt.LabelsOption = None,
    device: opt.DeviceOption = "auto",
    runs: opt.RunsOption = Path("runs"),
    plugin: opt.PluginOption = None,
    no_plugin: opt.WithoutOption = None,
    as_json: opt.JsonOption = False,
) -> None:
    """Judge images by the rules of every attack, and add those that count to an entry."""
    place = opt.place_of(data, cache, offline=False, labels=labels)
    known = opt.registry(plugin, no_plugin)
    chosen = find_suite(suite, known)
    text = _radius(epsilon, chosen)
    from harness.entries import read_entry, written
    from harness.replay import broken, contender_of, read_handed
    from harness.runner import Request
    from harness.store import write_atomically

    doubted = read_entry(entry)
    row = contender_of(doubted, known, weights)
    request = Request(chosen, (row,), runs, device=device, place=place)
    found = broken(doubted, read_handed(images), request, known, epsilon=text, source=source)
    if found.broken:
        write_atomically(entry, written(found.entry))
    if as_json:
        print_json(
            {
                "epsilon": text,
                "broken": list(found.broken),
                "known": list(found.known),
                "refused": {str(sample): why for sample, why in found.refused.items()},
            }
        )
        return
    for sample, why in found.refused.items():
        note(f"sample {sample} does not count: {why}")
    typer.echo(
        f"{len(found.broken)} images of {doubted.row} broken at {text} that were robust; "
        f"{len(found.known)} were wrong before, {len(found.refused)} do not count"
    )
    if found.broken:
        note("write the board's pages again: harness publish")


def _radius(epsilon: str, suite: Suite) -> str:
    grid = [text.text for text in suite.epsilons]
    if epsilon and epsilon not in grid:
        raise UsageError(f"--epsilon {epsilon}: the suite has {', '.join(grid)}")
    return epsilon or suite.headline
