"""`harness plan`: what a run would do, what is done already, what the rest costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.cli import options as opt
from harness.cli.output import print_json, print_table
from harness.forecast import forecast


def plan(
    suite: opt.SuiteOption = opt.DEFAULT_SUITE,
    model: opt.ModelOption = None,
    recipe: opt.RecipeOption = "",
    start: opt.StartOption = "",
    weights: opt.WeightsOption = "",
    attack: opt.AttackOption = None,
    data: opt.DataOption = None,
    cache: opt.CacheOption = None,
    labels: opt.LabelsOption = None,
    limit: opt.LimitOption = None,
    seed: opt.SeedOption = 0,
    precision: opt.PrecisionOption = "float32",
    compiles: opt.CompileOption = False,
    cuda_graphs: opt.GraphsOption = False,
    out: opt.OutOption = Path("runs"),
    plugin: opt.PluginOption = None,
    no_plugin: opt.WithoutOption = None,
    as_json: opt.JsonOption = False,
) -> None:
    """Show what 'harness run' with the same options would do."""
    place = opt.place_of(data, cache, offline=True, limit=limit, labels=labels)
    known = opt.registry(plugin, no_plugin)
    chosen = opt.suite_with(suite, attack, known)
    wanted = opt.with_recipe(model, recipe, known)
    rows = opt.rows_of(chosen, wanted, weights, known, start=start)
    mode = opt.mode_of(precision, compiles=compiles, cuda_graphs=cuda_graphs)
    content = [
        forecast(chosen, row, known, out=out, seed=seed, place=place, mode=mode).to_json()
        for row in rows
    ]
    if as_json:
        print_json({"suite": chosen.name, "protocol": chosen.protocol, "rows": content})
        return
    print_table(
        ["model", "weights", "shards done", "images", "passes an image", "time left"],
        [_line(row) for row in content],
        title=f"{chosen.title}: {chosen.norm}, {len(chosen.epsilons)} epsilons, attacks "
        f"{', '.join(spec.label for spec in chosen.attacks)}",
        caption="passes: the most forward passes that one image can cost; time: at the pace of "
        "the shards that this model has finished in this run folder",
    )


def _line(row: dict[str, Any]) -> list[str]:
    seconds = row["seconds_left"]
    return [
        row["model"],
        row["weights"],
        f"{row['shards_done']}/{row['shards']}",
        str(row["images"]),
        "?" if row["passes"] is None else f"at most {row['passes']}",
        "known after the first shard" if seconds is None else f"{seconds:.0f} s",
    ]
