"""Weights: safetensors with their hash and a card, read with suspicion."""

from __future__ import annotations

import io
import json
import re
import shutil
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

from harness import hashing
from harness.errors import CheckpointError
from harness.store import write_atomically

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

WEIGHTS = "weights.safetensors"
CARD = "card.json"
MISFIT = re.compile(
    r"size mismatch for (\S+): copying a param with shape torch\.Size\(\[(.*?)\]\) "
    r"from checkpoint, the shape in current model is torch\.Size\(\[(.*?)\]\)"
)
"""How torch tells of a tensor whose shape is not the model's."""
Shape = tuple[int, ...]


def save_weights(folder: Path, model: nn.Module, card: Mapping[str, Any]) -> str:
    """Write a model's weights and their card; the card, with the hash, comes last.

    Returns:
        The sha256 of the weights file.
    """
    content = save_safetensors(plain_state(model))
    sha256 = hashing.of_bytes(content)
    write_atomically(folder / WEIGHTS, content)
    text = json.dumps({**card, "sha256": sha256}, indent=1, sort_keys=True)
    write_atomically(folder / CARD, (text + "\n").encode())
    return sha256


def read_card(folder: Path) -> dict[str, Any] | None:
    """The card of a finished training; None before it is finished."""
    try:
        content: dict[str, Any] = json.loads((folder / CARD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if (folder / WEIGHTS).is_file() else None


def plain_state(model: nn.Module) -> dict[str, Tensor]:
    """A copy of a model's state on the CPU, each tensor with memory of its own."""
    return {
        name: value.detach().cpu().contiguous().clone()
        for name, value in model.state_dict().items()
    }


def state_hash(model: nn.Module) -> str:
    """The sha256 of a model's state, as if it were saved."""
    return hashing.of_bytes(save_safetensors(plain_state(model)))


def load_weights(model: nn.Module, path: Path, *, sha256: str = "") -> str:
    """Load a file of weights into a model, every key and shape in its place.

    Args:
        model: Changed in place.
        path: safetensors, or a pickle of nothing but tensors.
        sha256: Hash that the file must have; empty where nobody stated one.

    Returns:
        The sha256 of the file.

    Raises:
        CheckpointError: No such file, another hash, no weights, or those of another model.
    """
    found = file_hash(path, sha256)
    fit_state(model, read_state(path), path)
    return found


def file_hash(path: Path, expected: str = "") -> str:
    """The sha256 of a file of weights.

    Raises:
        CheckpointError: It cannot be read, or has another hash than the one expected.
    """
    try:
        found = hashing.of_file(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    if expected and found != expected:
        raise CheckpointError(
            f"{path}: sha256 is {found}, {expected} was expected; "
            "the file was altered or is another one: fetch it again, or delete its folder where a "
            "run trained it"
        )
    return found


def fetch(url: str, sha256: str, folder: Path) -> Path:
    """The local copy of weights on the web, downloaded once and checked.

    Raises:
        CheckpointError: No hash is known, no connection, or another file than expected.
    """
    if not sha256:
        raise CheckpointError(f"{url}: its card states no sha256; add one, or use --weights FILE")
    if not is_url(url):
        raise CheckpointError(f"{url}: no address on the web; use --weights FILE for a file")
    path = folder / f"{sha256[:16]}-{Path(url).name}"
    if not path.exists():
        try:
            with urllib.request.urlopen(url, timeout=60) as answer:  # noqa: S310 - the scheme is checked above
                buffer = io.BytesIO()
                shutil.copyfileobj(answer, buffer)
        except (urllib.error.URLError, OSError, ValueError, HTTPException) as error:
            raise CheckpointError(
                f"{url}: cannot be fetched: {error}; fetch it elsewhere and give --weights FILE"
            ) from error
        found = hashing.of_bytes(buffer.getvalue())
        if found != sha256:
            raise CheckpointError(
                f"{url}: what came has sha256 {found}, {sha256} was expected; nothing was kept: "
                "fetch it elsewhere and give --weights FILE"
            )
        write_atomically(path, buffer.getvalue())
    return path


def is_url(text: str) -> bool:
    """The text is an address on the web."""
    return text.startswith(("https://", "http://"))


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, told by its first bytes what it is.

    Raises:
        CheckpointError: It holds no weights, or more than tensors.
    """
    content = path.read_bytes()
    start = content[:512].lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise CheckpointError(
            f"{path}: a web page, not weights; its host answered with a page: "
            "fetch the file again in a browser"
        )
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path}: a Git LFS pointer, not weights; run 'git lfs pull'")
    if _is_pickle(content):
        return _unpickled(content, path)
    try:
        return load_safetensors(content)
    except SafetensorError as error:
        raise CheckpointError(
            f"{path}: no safetensors file and no PyTorch checkpoint: {error}"
        ) from error


def _is_pickle(content: bytes) -> bool:
    """A zip archive or a bare pickle; safetensors have a brace after 8 bytes of length."""
    if content[8:9] == b"{":
        return False
    return content[:4] == b"PK\x03\x04" or content[:1] == b"\x80"


def _unpickled(content: bytes, path: Path) -> dict[str, Tensor]:
    """The tensors of a pickle; code in it is refused and never executed."""
    try:
        loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds here
        raise CheckpointError(
            f"{path}: a pickle that holds more than tensors, or is damaged; it was not executed. "
            "Where you trust it, load it yourself and save its state_dict with safetensors"
        ) from error
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in loaded.items()
    ):
        raise CheckpointError(f"{path}: holds no state dict, a table of tensors by name")
    return loaded


def fit_state(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Load a state as the model itself does, which may know other names for its keys.

    Args:
        model: Changed in place; left as it was where the state is refused.
        state: Every tensor of the model, by name.
        path: Where it came from, for the message.

    Raises:
        CheckpointError: Tensors are missing, foreign, of another shape, NaN or infinite.
    """
    for name, value in state.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise CheckpointError(f"{path}: {name} holds NaN or infinite values")
    before = plain_state(model)
    content = model.state_dict()  # carries the versions of its layers, so that none is lenient
    content.clear()
    content.update(state)
    try:
        model.load_state_dict(content)
    except RuntimeError as error:
        model.load_state_dict(before)
        raise CheckpointError(f"{path}: {_refusal(str(error), list(before))}") from error


def _refusal(told: str, own: list[str]) -> str:
    """What torch tells of a state that does not fit, in short."""
    missing = _quoted(r"Missing key\(s\) in state_dict: (.*)", told)
    foreign = _quoted(r"Unexpected key\(s\) in state_dict: (.*)", told)
    if missing or foreign:
        return (
            f"weights of another model: {_some('missing', missing)}"
            f"{_some('unexpected', foreign)}name the model that they were saved from"
        )
    shapes = {name: (_sides(file), _sides(model)) for name, file, model in MISFIT.findall(told)}
    if not shapes:
        return f"the model refuses these weights: {told}"
    if counts := _classes(shapes, own[-1]):
        theirs, ours = counts
        return (
            f"the file's head has {theirs} classes, the data set has {ours}; "
            f"take a data set of {theirs} classes, or train the model by a recipe"
        )
    name, (file, model) = next(iter(shapes.items()))
    return f"{name} has shape {file}, the model's has {model}"


def _classes(shapes: Mapping[str, tuple[Shape, Shape]], last: str) -> tuple[int, int] | None:
    """The classes of the file and of the model, where only these of the last layer differ."""
    if {name.rpartition(".")[0] for name in shapes} != {last.rpartition(".")[0]}:
        return None
    if any(not file or not model or file[1:] != model[1:] for file, model in shapes.values()):
        return None
    counts = {(file[0], model[0]) for file, model in shapes.values()}
    return counts.pop() if len(counts) == 1 else None


def _quoted(pattern: str, text: str) -> list[str]:
    """The quoted names in the line that the pattern finds."""
    line = re.search(pattern, text)
    return re.findall(r'"([^"]+)"', line[1]) if line else []


def _sides(text: str) -> Shape:
    return tuple(int(side) for side in text.split(",") if side.strip())


def _some(what: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""  # noqa: PLR2004 - a few are enough
    return f"{what} {', '.join(names[:3])}{more}; "
