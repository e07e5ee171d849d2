"""Options that several commands share, and what they mean."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from harness.cli.output import complain
from harness.errors import UsageError
from harness.modes import Mode
from harness.plan import Contender, contenders, sample_ids, with_attacks
from harness.plugins import load_plugins
from harness.registry import Registry
from harness.sources import Place, default_cache
from harness.suite import Suite, attack_spec, check_objectives, find_suite

DEFAULT_SUITE = "digits-linf"

SuiteOption = Annotated[
    str, typer.Option("--suite", help="Name of a suite, or a .toml file.", show_default=True)
]
ModelOption = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        help="A model, model.recipe, or 'all'; repeatable. Without it: the suite's own rows.",
    ),
]
RecipeOption = Annotated[
    str, typer.Option("--recipe", help="Train each --model by this recipe, not by the suite's.")
]
WeightsOption = Annotated[
    str,
    typer.Option(
        "--weights",
        help="File of weights of the one --model; or 'pretrained', which asks its plugin for them.",
        metavar="FILE",
    ),
]
StartOption = Annotated[
    str,
    typer.Option(
        "--start",
        help="File of weights that the training of the one --model starts from.",
        metavar="FILE",
    ),
]
AttackOption = Annotated[
    list[str] | None,
    typer.Option(
        "--attack",
        help="An attack, or attack:objective, in place of the suite's; repeatable. Not for the "
        "board.",
    ),
]
DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data",
        help="Folder with local copies of data sets, laid out as on the hub.",
        envvar="HARNESS_DATA",
    ),
]
CacheOption = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        help="Folder of decoded images.  [default: moe-robustness-harness in the user's cache]",
        envvar="HARNESS_CACHE",
    ),
]
OfflineOption = Annotated[bool, typer.Option("--offline", help="Never touch the network.")]
LabelsOption = Annotated[
    Path | None,
    typer.Option(
        "--labels",
        help="JSON file with all correct classes of each image, for suites that take several.",
        metavar="FILE",
    ),
]
LimitOption = Annotated[
    int | None,
    typer.Option("--limit", help="Use the first N images only. Not for the board.", min=1),
]
SeedOption = Annotated[int, typer.Option("--seed", help="Of training and attacks.", min=0)]
SeedsOption = Annotated[
    int,
    typer.Option(
        "--seeds",
        help="Train and evaluate from so many seeds, --seed and those after it: for claims about "
        "recipes.",
        min=1,
    ),
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 ...")]
ExecutorOption = Annotated[
    str, typer.Option("--executor", help="Where shards are done; see 'harness ls executors'.")
]
WorkersOption = Annotated[int, typer.Option("--workers", help="Processes of the executor.", min=1)]
BatchOption = Annotated[
    int,
    typer.Option(
        "--batch-size",
        help="Most images of one pass; 0 measures what is fastest. Changes no result.",
        min=0,
    ),
]
PrecisionOption = Annotated[
    str,
    typer.Option(
        "--precision",
        help="Of gradients: float32, tf32 or bfloat16-gradients. Success is decided in float32, "
        "and survivors are attacked again in it.",
    ),
]
CompileOption = Annotated[
    bool, typer.Option("--compile", help="Compile passes with torch.compile: for long runs.")
]
GraphsOption = Annotated[
    bool, typer.Option("--cuda-graphs", help="Replay passes as CUDA graphs, on dense models.")
]
OutOption = Annotated[Path, typer.Option("--out", help="Run folder.")]
RunsOption = Annotated[Path, typer.Option("--runs", help="Run folder.")]
SaveOption = Annotated[
    bool,
    typer.Option("--save-adversarial", help="Keep all adversarial images, as npz files."),
]
TransferOption = Annotated[
    list[str] | None,
    typer.Option(
        "--transfer-from",
        help="Attack this model, or take a folder of npz files, and judge each --model on the "
        "images; repeatable. Not for the board.",
        metavar="MODEL|DIR",
    ),
]
PluginOption = Annotated[
    list[str] | None,
    typer.Option("--plugin", help="A plugin: a .py file or a module; repeatable."),
]
WithoutOption = Annotated[
    list[str] | None,
    typer.Option("--no-plugin", help="Leave out a plugin, by name or distribution:name."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def registry(
    plugins: list[str] | None, without: list[str] | None, *, warn: bool = True
) -> Registry:
    """The plugins of this command; whoever is left out must exist, who is broken is named."""
    found = load_plugins(plugins or [], without=without or [])
    everybody = load_plugins(plugins or []) if without else found
    known = {plugin.name for plugin in everybody.plugins}
    known |= {f"{plugin.distribution}:{plugin.name}" for plugin in everybody.plugins}
    for name in without or []:
        if name not in known:
            raise UsageError(f"--no-plugin {name}: no such plugin; see 'harness plugins'")
    for plugin in found.plugins if warn else ():
        if plugin.error:
            complain(f"plugin {plugin.name!r} is broken: {plugin.error}", kind="warning")
    return found


def suite_with(name: str, attacks: list[str] | None, known: Registry) -> Suite:
    """The suite, its attacks replaced where others were named."""
    specs = [attack_spec(*_halves(attack), known) for attack in attacks or []]
    suite = with_attacks(find_suite(name, known), specs)
    check_objectives(suite, "--attack", known)
    return suite


def rows_of(
    suite: Suite, models: list[str] | None, weights: str, known: Registry, *, start: str = ""
) -> tuple[Contender, ...]:
    """The rows that a command is for."""
    found = contenders(suite, models or [], known, weights=weights, start=start)
    if not found:
        raise UsageError(f"suite {suite.name} lists no models: name one with --model")
    return found


def place_of(
    data: Path | None,
    cache: Path | None,
    *,
    offline: bool,
    limit: int | None = None,
    labels: Path | None = None,
) -> Place:
    """Where this command's images come from; offline, no library may ask the network either."""
    check_folder(data, "--data")
    if offline:
        os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    return Place(data, cache or default_cache(), is_offline=offline, limit=limit, labels=labels)


def mode_of(precision: str, *, compiles: bool, cuda_graphs: bool) -> Mode:
    """How this command computes gradients."""
    return Mode(precision, is_compiled=compiles, is_captured=cuda_graphs)  # type: ignore[arg-type]


def check_folder(path: Path | None, option: str) -> None:
    """Refuse a folder that is not there."""
    if path is not None and not path.is_dir():
        where = f" (or {option_variable(option)})" if option == "--data" else ""
        raise UsageError(f"{option} {path}: no such folder{where}")


def check_device(name: str) -> None:
    """Refuse a device that is not there."""
    import torch

    from harness.numerics import resolve_device

    try:
        torch.empty(0, device=resolve_device(name))
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"--device {name}: {str(error).splitlines()[0]}; try --device cpu"
        ) from error


def option_variable(option: str) -> str:
    """The environment variable behind an option, with its value."""
    name = {"--data": "HARNESS_DATA"}[option]
    return f"{name}={os.environ.get(name, '')}"


def _halves(attack: str) -> tuple[str, str]:
    name, _, objective = attack.partition(":")
    return name, objective


def with_recipe(models: list[str] | None, recipe: str, known: Registry) -> list[str] | None:
    """The models, each with the recipe that `--recipe` names."""
    if not recipe:
        return models
    known.find("recipes", recipe)
    if not models or "all" in models:
        raise UsageError("--recipe belongs to models: name them with --model")
    return [f"{model}.{recipe}" for model in models]


def flags_of(
    suite: Suite, attacks: list[str] | None, limit: int | None, known: Registry
) -> tuple[str, ...]:
    """What keeps the rows of this command off the board."""
    card = known.find("datasets", suite.data.name).card
    total = len(sample_ids(suite, card))
    flags = ["limited"] if limit is not None and limit < total else []
    return (*flags, "other-attacks") if attacks else tuple(flags)
