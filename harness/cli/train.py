"""`harness train`: train what a run would train, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli import options as opt
from harness.cli.output import print_json, print_table, resumable
from harness.modes import TrainingMode

PrecisionOption = Annotated[
    str,
    typer.Option(
        "--precision",
        help="Of passes: float32, or bfloat16-mixed, whose weights stay float32. Other weights "
        "than float32's: give them to 'run' with --weights.",
    ),
]
CompileOption = Annotated[
    bool,
    typer.Option("--compile", help="Compile passes with torch.compile: other weights, too."),
]


def train(
    suite: opt.SuiteOption = opt.DEFAULT_SUITE,
    model: opt.ModelOption = None,
    recipe: opt.RecipeOption = "",
    start: opt.StartOption = "",
    data: opt.DataOption = None,
    cache: opt.CacheOption = None,
    offline: opt.OfflineOption = False,
    seed: opt.SeedOption = 0,
    device: opt.DeviceOption = "auto",
    precision: PrecisionOption = "float32",
    compile_: CompileOption = False,
    out: opt.OutOption = Path("runs"),
    plugin: opt.PluginOption = None,
    no_plugin: opt.WithoutOption = None,
    as_json: opt.JsonOption = False,
) -> None:
    """Train the models of a suite that have no weights yet; interrupted, it goes on."""
    mode = TrainingMode(precision, is_compiled=compile_)  # type: ignore[arg-type]
    place = opt.place_of(data, cache, offline=offline)
    known = opt.registry(plugin, no_plugin)
    chosen = opt.suite_with(suite, None, known)
    rows = opt.rows_of(chosen, opt.with_recipe(model, recipe, known), "", known, start=start)
    from harness import checkpoints, runner
    from harness.cli.progress import TerminalProgress

    request = runner.Request(
        suite=chosen,
        contenders=rows,
        out=out,
        seed=seed,
        device=device,
        place=place,
        training=mode,
    )
    with resumable(), TerminalProgress() as progress:
        folders = runner.train(request, known, [progress])
    found = {row: checkpoints.read_card(folder) or {} for row, folder in folders.items()}
    if as_json:
        print_json(
            {
                row: {
                    "weights": str(folders[row] / checkpoints.WEIGHTS),
                    "sha256": card["sha256"],
                    "epochs": card["epochs"],
                }
                for row, card in found.items()
            }
        )
        return
    lines = [
        [
            row,
            str(folders[row] / checkpoints.WEIGHTS),
            card["sha256"][:16],
            str(len(card["epochs"])),
        ]
        for row, card in found.items()
    ]
    print_table(["model", "weights", "sha256", "epochs"], lines)
