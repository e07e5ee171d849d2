"""`harness run`: train what has no weights, attack, show the table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from harness.cli import options as opt
from harness.cli.output import complain, print_json, print_table, resumable
from harness.registry import Registry
from harness.suite import Suite

if TYPE_CHECKING:
    from harness.runner import Result


def run(
    suite: opt.SuiteOption = opt.DEFAULT_SUITE,
    model: opt.ModelOption = None,
    recipe: opt.RecipeOption = "",
    start: opt.StartOption = "",
    weights: opt.WeightsOption = "",
    attack: opt.AttackOption = None,
    transfer_from: opt.TransferOption = None,
    data: opt.DataOption = None,
    cache: opt.CacheOption = None,
    offline: opt.OfflineOption = False,
    labels: opt.LabelsOption = None,
    limit: opt.LimitOption = None,
    seed: opt.SeedOption = 0,
    seeds: opt.SeedsOption = 1,
    device: opt.DeviceOption = "auto",
    executor: opt.ExecutorOption = "inline",
    workers: opt.WorkersOption = 2,
    batch_size: opt.BatchOption = 0,
    precision: opt.PrecisionOption = "float32",
    compiles: opt.CompileOption = False,
    cuda_graphs: opt.GraphsOption = False,
    out: opt.OutOption = Path("runs"),
    save_adversarial: opt.SaveOption = False,
    plugin: opt.PluginOption = None,
    no_plugin: opt.WithoutOption = None,
    as_json: opt.JsonOption = False,
) -> None:
    """Run a suite and show its table; the same command again goes on where it was stopped."""
    place = opt.place_of(data, cache, offline=offline, limit=limit, labels=labels)
    known = opt.registry(plugin, no_plugin)
    known.find("executors", executor)
    chosen = opt.suite_with(suite, attack, known)
    wanted = opt.with_recipe(model, recipe, known)
    rows = opt.rows_of(chosen, wanted, weights, known, start=start)
    from harness import runner, transfer
    from harness.cli.progress import TerminalProgress

    opt.check_device(device)
    given = transfer.origins(chosen, transfer_from, known) if transfer_from else None
    request = runner.Request(
        suite=chosen,
        contenders=rows,
        out=out,
        seed=seed,
        limit=limit,
        device=device,
        executor=executor,
        workers=workers,
        batch_size=batch_size,
        place=place,
        saves_all=save_adversarial,
        mode=opt.mode_of(precision, compiles=compiles, cuda_graphs=cuda_graphs),
        flags=opt.flags_of(chosen, attack, limit, known),
    )
    with resumable(), TerminalProgress() as progress:
        result = (
            runner.run_seeds(request, known, [progress], count=seeds)
            if given is None
            else transfer.run(request, given, known, [progress])
        )
    for row, error in result.errors.items():
        complain(error if row in error else f"{row}: {error}")
    if as_json:
        content = {"suite": chosen.name, "protocol": chosen.protocol, "rows": list(result.rows)}
        print_json(content)
    elif result.rows:
        _show(chosen, result, known)
    if result.errors:
        raise typer.Exit(3 if result.rows else 1)


def _show(suite: Suite, result: Result, known: Registry) -> None:
    from harness.flags import FLAGS
    from harness.report import cells, headings

    rows = result.rows
    attacks = dict.fromkeys(record.attack for cell in result.cells for record in cell.records)
    heads = ["model", *headings(suite, known), "flags"]
    lines = [
        [
            f"{row['model']} (seed {row['seed']})" if row["seed"] else str(row["model"]),
            *(text.partition(" (")[0].replace(" [", "\n[") for text in cells(suite, row)),
            "\n".join(_flags(row)) or "-",
        ]
        for row in rows
    ]
    boards = dict.fromkeys(str(row["board"]) for row in rows)
    n = max((row["n"] for row in rows), default=0)
    print_table(
        heads,
        lines,
        title=f"{suite.title} ({', '.join(boards)}): n = {n}, {suite.norm}, protocol "
        f"{suite.protocol}, attacks {', '.join(attacks)}; "
        "per cent with 95 % intervals",
        caption="\n".join(
            [
                *(f"n/a: {text[5:-1]}" for text in _reasons(suite, rows)),
                *(
                    f"{flag}: {FLAGS.get(flag, flag)}"
                    for flag in sorted({f for r in rows for f in _flags(r)})
                ),
            ]
        ),
    )


def _flags(row: dict[str, Any]) -> list[str]:
    flags = row["flags"]
    return [str(flag) for flag in flags] if isinstance(flags, list) else []


def _reasons(suite: Suite, rows: Sequence[dict[str, Any]]) -> list[str]:
    """Why numbers are missing, each reason once: `n/a (reason)`."""
    from harness.report import cells

    told = [text for row in rows for text in cells(suite, row) if text.startswith("n/a (")]
    return list(dict.fromkeys(told))
