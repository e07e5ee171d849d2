"""`harness transfer`: every model under the attacks on every model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli import options as opt
from harness.cli.output import complain, print_json, print_table, resumable
from harness.errors import UsageError

if TYPE_CHECKING:
    from harness.suite import Suite
    from harness.transfer import Crossing, Matrix


def transfer(
    suite: opt.SuiteOption = opt.DEFAULT_SUITE,
    model: opt.ModelOption = None,
    recipe: opt.RecipeOption = "",
    attack: opt.AttackOption = None,
    epsilon: Annotated[
        str, typer.Option("--epsilon", help="One of the suite's.  [default: its headline]")
    ] = "",
    data: opt.DataOption = None,
    cache: opt.CacheOption = None,
    offline: opt.OfflineOption = False,
    labels: opt.LabelsOption = None,
    limit: opt.LimitOption = None,
    seed: opt.SeedOption = 0,
    device: opt.DeviceOption = "auto",
    executor: opt.ExecutorOption = "inline",
    workers: opt.WorkersOption = 2,
    batch_size: opt.BatchOption = 0,
    precision: opt.PrecisionOption = "float32",
    compiles: opt.CompileOption = False,
    cuda_graphs: opt.GraphsOption = False,
    out: opt.OutOption = Path("runs"),
    plugin: opt.PluginOption = None,
    no_plugin: opt.WithoutOption = None,
    as_json: opt.JsonOption = False,
) -> None:
    """Attack every model, judge each on the images of all; the same command again goes on."""
    place = opt.place_of(data, cache, offline=offline, limit=limit, labels=labels)
    known = opt.registry(plugin, no_plugin)
    known.find("executors", executor)
    chosen = opt.suite_with(suite, attack, known)
    radius = _epsilon(chosen, epsilon)
    rows = opt.rows_of(chosen, opt.with_recipe(model, recipe, known), "", known)
    from harness import runner
    from harness import transfer as transfers
    from harness.cli.progress import TerminalProgress

    opt.check_device(device)
    transfers.check_transferable(chosen, known)
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
        mode=opt.mode_of(precision, compiles=compiles, cuda_graphs=cuda_graphs),
        flags=opt.flags_of(chosen, attack, limit, known),
    )
    with resumable(), TerminalProgress() as progress:
        found = transfers.matrix(request, radius, known, [progress])
    for row, error in found.errors.items():
        complain(error if row in error else f"{row}: {error}")
    if as_json:
        print_json(_content(chosen, radius, found))
    elif found.crossings:
        _show(chosen, radius, found)
    if found.errors:
        raise typer.Exit(3 if found.crossings else 1)


def _epsilon(suite: Suite, wanted: str) -> str:
    """The radius that was asked for, as the suite writes it."""
    known = [epsilon.text for epsilon in suite.epsilons]
    if wanted and wanted not in known:
        raise UsageError(f"--epsilon {wanted}: suite {suite.name} has {', '.join(known)}")
    return wanted or suite.headline


def _content(suite: Suite, epsilon: str, found: Matrix) -> dict[str, Any]:
    return {
        "suite": suite.name,
        "protocol": suite.protocol,
        "epsilon": epsilon,
        "attacks": _attacks(found),
        "crossings": [
            {
                "source": crossing.source,
                "target": crossing.target,
                "robust_accuracy": crossing.robust_accuracy.to_json(),
                "attack_success_rate": crossing.attack_success_rate.to_json(),
            }
            for crossing in found.crossings
        ],
        "attacked": list(found.attacked.rows),
        "judged": list(found.judged.rows),
    }


def _attacks(found: Matrix) -> list[str]:
    """The labels of the attacks whose images were shown."""
    sources = [
        source for cell in found.judged.cells for source in cell.manifest["ingredients"]["sources"]
    ]
    return list(dict.fromkeys(attack for source in sources for attack in source["attacks"]))


def _show(suite: Suite, epsilon: str, found: Matrix) -> None:
    targets = list(dict.fromkeys(crossing.target for crossing in found.crossings))
    by_source: dict[str, list[Crossing]] = {}
    for crossing in found.crossings:
        by_source.setdefault(crossing.source, []).append(crossing)
    ns = sorted({crossing.robust_accuracy.n or 0 for crossing in found.crossings})
    print_table(
        ["attacked (down), judged (across)", *targets],
        [[name, *map(_text, row)] for name, row in by_source.items()],
        title=f"{suite.title}: robust accuracy of the judged model under the attacks on the "
        f"attacked one ({', '.join(_attacks(found))}), image by image; {suite.norm} {epsilon}, "
        f"protocol {suite.protocol}, n = {', '.join(map(str, ns))}; per cent with 95 % intervals",
        caption="\n".join(["equal names: white box", *_legend(found)]),
    )


def _legend(found: Matrix) -> list[str]:
    """What a reader must know of the rows, attacked or judged."""
    from harness.flags import FLAGS

    raised: dict[str, list[str]] = {}
    for row in (*found.attacked.rows, *found.judged.rows):
        for flag in row["flags"]:
            raised.setdefault(flag, []).append(row["model"])
    return [
        f"{flag} ({', '.join(dict.fromkeys(models))}): {FLAGS.get(flag, flag)}"
        for flag, models in sorted(raised.items())
        if flag != "transfer"  # all are
    ]


def _text(crossing: Crossing) -> str:
    from harness.report import cell_text

    return cell_text(crossing.robust_accuracy.to_json())
