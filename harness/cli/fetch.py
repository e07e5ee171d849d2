"""`harness fetch`: download what a suite needs, check it, decode it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from harness.cli import options as opt
from harness.cli.output import note, print_json, print_table, resumable
from harness.errors import UsageError
from harness.suite import DataSpec, find_suite


def fetch(
    suite: opt.SuiteOption = opt.DEFAULT_SUITE,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            help="Folder for the files, laid out as on the hub; without it, the hub's own cache.",
            envvar="HARNESS_DATA",
        ),
    ] = None,
    cache: opt.CacheOption = None,
    train: Annotated[
        bool, typer.Option("--train", help="The images to train on, too: often many times more.")
    ] = False,
    plugin: opt.PluginOption = None,
    no_plugin: opt.WithoutOption = None,
    as_json: opt.JsonOption = False,
) -> None:
    """Download a suite's images and check them; interrupted, the same command goes on."""
    from harness.data import load_images
    from harness.sources import Place, default_cache

    known = opt.registry(plugin, no_plugin)
    chosen = find_suite(suite, known)
    images_alone = replace(chosen.data, labels="one")  # label sets are the user's own file
    _make(data)
    place = Place(data, cache or default_cache(), is_fetching=True)
    found = []
    with resumable():
        for split in _splits(chosen.data, train=train):
            note(f"{chosen.data.name}/{split} ...")
            images = load_images(known, images_alone, split, place)
            copy = chosen.data.copy_of(images.fingerprint) if split == chosen.data.split else ""
            found.append(
                {
                    "split": split,
                    "images": len(images.labels),
                    "complete": not images.is_partial,
                    "fingerprint": images.fingerprint,
                    "board": chosen.board(copy) if split == chosen.data.split else None,
                }
            )
    if as_json:
        print_json({"suite": chosen.name, "data": chosen.data.name, "splits": found})
        return
    print_table(
        ["split", "images", "fingerprint", "board"],
        [
            [
                str(row["split"]),
                f"{row['images']}{'' if row['complete'] else ', fewer than the hub has'}",
                str(row["fingerprint"]),
                str(row["board"] or "-"),
            ]
            for row in found
        ],
    )


def _make(folder: Path | None) -> None:
    try:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--data {folder}: cannot be made: {error.strerror}") from error


def _splits(data: DataSpec, *, train: bool) -> list[str]:
    """The splits that a run of the suite reads."""
    wanted = [data.split, *([data.train, data.validation] if train else [])]
    return [split for split in dict.fromkeys(wanted) if split]
