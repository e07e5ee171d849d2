"""`harness bench`: how fast we are beside other libraries, on the same model and images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from harness.cli import options as opt
from harness.cli.output import complain, note, print_table
from harness.errors import UsageError
from harness.store import write_atomically
from harness.threat import ThreatModel, radius

QUICK_IMAGES, QUICK_ROUNDS = 16, 3
SWEPT = "apgd-ce-50"

AgainstOption = Annotated[
    str,
    typer.Option("--against", help="Other libraries, with commas between.", metavar="NAMES"),
]
TaskOption = Annotated[
    list[str],
    typer.Option("--attack", help="pgd-20, apgd-ce-50 or autoattack-standard; repeatable."),
]
OneModelOption = Annotated[str, typer.Option("--model", help="A registered model.")]
ImagesOption = Annotated[
    int,
    typer.Option("--images", help="First N images; those that the model has right count.", min=1),
]
EpsilonOption = Annotated[str, typer.Option("--epsilon", help="Radius in Linf.")]
RoundsOption = Annotated[
    int, typer.Option("--rounds", help="Times that everybody runs; the first warms up.", min=2)
]
ThreadsOption = Annotated[int, typer.Option("--threads", help="Of this process.", min=1)]
FileOption = Annotated[
    Path | None,
    typer.Option("--json", help="Write all rounds into this file.", metavar="FILE"),
]
QuickOption = Annotated[
    bool,
    typer.Option("--quick", help=f"{QUICK_IMAGES} images, {QUICK_ROUNDS} rounds: does it work?"),
]
SweepOption = Annotated[
    bool,
    typer.Option("--sweep", help="Instead, our AutoPGD over nine epsilons by each protocol."),
]


def bench(
    against: AgainstOption = "art,torchattacks,foolbox,pyautoattack",
    attack: TaskOption = ["pgd-20", "apgd-ce-50"],  # noqa: B006 - typer's default; nobody changes it
    suite: opt.SuiteOption = "cifar10-linf",
    model: OneModelOption = "cnn/resnet14w24",
    weights: opt.WeightsOption = "",
    data: opt.DataOption = None,
    cache: opt.CacheOption = None,
    offline: opt.OfflineOption = False,
    images: ImagesOption = 256,
    epsilon: EpsilonOption = "5/255",
    seed: opt.SeedOption = 0,
    rounds: RoundsOption = 5,
    threads: ThreadsOption = 1,
    device: opt.DeviceOption = "auto",
    quick: QuickOption = False,
    sweep: SweepOption = False,
    plugin: opt.PluginOption = None,
    no_plugin: opt.WithoutOption = None,
    file: FileOption = None,
) -> None:
    """Measure speed side by side with other libraries, everybody judged alike."""
    from harness.bench.peers import PEERS
    from harness.bench.tasks import TASKS, chosen

    if quick:
        images, rounds = min(images, QUICK_IMAGES), min(rounds, QUICK_ROUNDS)
    _check_writable(file)
    peers = chosen([name for name in against.split(",") if name], PEERS, "--against")
    tasks = chosen(attack, TASKS, "--attack")
    place = opt.place_of(data, cache, offline=offline, limit=images)
    known = opt.registry(plugin, no_plugin)
    chosen_suite = opt.suite_with(suite, None, known)
    opt.rows_of(chosen_suite, [model], weights, known)
    radius_wanted = ThreatModel("linf", radius(epsilon)).epsilon
    from harness.bench.contest import Conditions
    from harness.bench.measure import measured, measured_sweep

    opt.check_device(device)
    conditions = Conditions(
        suite=chosen_suite,
        place=place,
        model=model,
        weights=weights,
        num_images=images,
        epsilon=epsilon,
        radius=radius_wanted,
        device=device,
        seed=seed,
        rounds=rounds,
        threads=threads,
    )
    if sweep:
        found = measured_sweep(conditions, known, TASKS[SWEPT], note)
    else:
        found = measured(conditions, known, tasks=tasks, peers=peers, told=note)
    for table in found.tables:
        print_table(table.heads, table.lines, title=table.title, caption=table.caption)
    if file is not None:
        content = json.dumps(found.document, indent=1, ensure_ascii=False, allow_nan=False)
        write_atomically(file, (content + "\n").encode())
    for failure in found.given_up:
        complain(failure)
    if found.given_up:
        raise typer.Exit(3)


def _check_writable(file: Path | None) -> None:
    """Refuse, before the hours of a comparison, a file that nobody could write afterwards."""
    if file is not None and (file.is_dir() or not file.absolute().parent.is_dir()):
        raise UsageError(f"--json {file}: no file in an existing folder; make the folder first")
