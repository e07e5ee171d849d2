"""`harness convert`: a foreign checkpoint as weights of a registered model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli import options as opt
from harness.cli.output import note, print_json
from harness.suite import find_suite


def convert(
    source: Annotated[
        tuple[str, Path],
        typer.Option(
            "--from",
            help="A converter (see 'harness ls converters') and its file.",
            metavar="NAME FILE",
        ),
    ],
    model: Annotated[str, typer.Option("--model", help="The model that the weights are of.")],
    to: Annotated[
        Path, typer.Option("--to", help="File to write, its card beside it.", metavar="FILE")
    ],
    suite: Annotated[
        str,
        typer.Option("--suite", help="Whose classes and images the model is built for."),
    ] = opt.DEFAULT_SUITE,
    plugin: opt.PluginOption = None,
    no_plugin: opt.WithoutOption = None,
    as_json: opt.JsonOption = False,
) -> None:
    """Write a foreign checkpoint as safetensors, for --weights and --start."""
    known = opt.registry(plugin, no_plugin)
    name, path = source
    known.find("converters", name)
    known.find("models", model)
    chosen = find_suite(suite, known)
    from harness.conversion import Conversion
    from harness.conversion import convert as write

    card = write(Conversion(name, path, model, chosen, to), known)
    if as_json:
        print_json(card)
        return
    for change in card["changes"]:
        note(change)
    use = "--start" if card["missing"] else "--weights"
    print(f"{to}: {card['tensors']} tensors, sha256 {card['sha256']}; use it with {use}")
