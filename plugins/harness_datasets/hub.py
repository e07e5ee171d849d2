"""Data sets of the Hugging Face hub: from a local copy, from the hub's cache, or from the hub."""

from __future__ import annotations

import re
import shutil
from functools import partial
from hashlib import file_digest, sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.api import DataContext, DataError, ImageRows

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

FEW = 0.05
"""Share of a split up to which its first rows are streamed instead of downloaded whole."""


class _Remote(NamedTuple):
    """One file of a repository, as the hub describes it."""

    path: str
    size: int
    sha256: str


def load(context: DataContext) -> ImageRows:
    """The rows of one split, in the order of the hub's files.

    Looked for in `data_dir` (as `cifar10/...`, `uoft-cs/cifar10/...` or
    `uoft-cs--cifar10/...`), then in the hub's own cache, then on the hub itself: a few first
    images are streamed, all others downloaded once.

    Raises:
        DataError: Nothing is here and the hub cannot be asked, or does not let us in.
    """
    files = local_files(context) or _in_hub_cache(context)
    if context.is_fetching:
        return from_files(_fetched(context, files), context.split)
    if files:
        return from_files(files, context.split)
    if context.is_offline:
        raise DataError(f"{_missing(context)}, and --offline forbids to ask the hub")
    if context.ids and max(context.ids) < FEW * context.card.splits[context.split]:
        return _streamed(context)
    return from_files(_downloaded(context), context.split)


def local_files(context: DataContext) -> list[Path]:
    """The split's files in `data_dir`; some may be missing."""
    for folder in _folders(context):
        files = sorted(folder.glob(context.card.files[context.split]))
        if files:
            return files
    return []


def from_files(files: Sequence[Path], split: str) -> ImageRows:
    """The rows of some Parquet files.

    Raises:
        DataError: One is damaged, or missing among the numbered others.
    """
    _refuse_gaps(files)
    from pyarrow.parquet import read_metadata

    digest = sha256()
    for path in files:
        stat = path.stat()
        digest.update(f"{path.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    try:
        count = sum(read_metadata(path).num_rows for path in files)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{files[0].parent}: not Parquet, or damaged: {error}; fetch it again with "
            "'harness fetch'"
        ) from error
    names = [str(path) for path in files]
    return ImageRows(partial(_read, names, split), str(files[0].parent), digest.hexdigest(), count)


def _read(files: Sequence[str], split: str) -> Any:
    """The files as they are: no second copy of them is made."""
    from datasets import load_dataset

    return load_dataset("parquet", data_files={split: list(files)}, split=split, streaming=True)


def _folders(context: DataContext) -> list[Path]:
    """Where a copy may lie below `data_dir`."""
    if context.data_dir is None:
        return []
    owner, _, name = context.card.hub_id.partition("/")
    return [context.data_dir / part for part in (name, f"{owner}/{name}", f"{owner}--{name}")]


def _refuse_gaps(files: Iterable[Path]) -> None:
    """Refuse files of which some others are missing, by the numbers in their names."""
    numbered = {
        (int(found[1]), int(found[2]))
        for path in files
        for found in [re.search(r"-(\d{5})-of-(\d{5})\.", path.name)]
        if found
    }
    for _, total in numbered:
        absent = sorted(set(range(total)) - {number for number, _ in numbered})
        if absent:
            where = next(iter(files)).parent
            raise DataError(
                f"{where}: {len(absent)} of {total} files are missing, the first is number "
                f"{absent[0]:05d}; fetch them with 'harness fetch'"
            )


def _missing(context: DataContext) -> str:
    looked = ", ".join(str(folder) for folder in _folders(context)) or "no --data folder"
    return (
        f"{context.card.hub_id}: no {context.card.files[context.split]} in {looked} or in the "
        "hub's cache"
    )


def _in_hub_cache(context: DataContext) -> list[Path]:
    """The split's files where an earlier download left them."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    pattern = context.card.files[context.split]
    try:
        folder = snapshot_download(
            context.card.hub_id,
            repo_type="dataset",
            allow_patterns=[pattern],
            local_files_only=True,
        )
    except (LocalEntryNotFoundError, OSError):
        return []
    return sorted(Path(folder).glob(pattern))


def _fetched(context: DataContext, files: list[Path]) -> list[Path]:
    """The split's files, checked against the hub; those that are here, where it cannot be asked."""
    try:
        return _downloaded(context)
    except _HubError:
        if files:
            return files
        raise


class _HubError(DataError):
    """The hub cannot be asked, or does not answer."""


def _downloaded(context: DataContext) -> list[Path]:
    """The split's files, downloaded where they are not here; sizes and hashes checked.

    The hub's client goes on where an earlier download was stopped.
    """
    from huggingface_hub import snapshot_download

    card = context.card
    target = _folders(context)[0] if context.data_dir else None
    remote = _remote_files(context)
    if target is not None:
        _refuse_other_copy(target, remote)
    _refuse_full_disk(remote, target)
    try:
        folder = snapshot_download(
            card.hub_id,
            repo_type="dataset",
            allow_patterns=[card.files[context.split]],
            local_dir=target,
        )
    except Exception as error:
        raise _explained(context, error) from error
    paths = [Path(folder) / file.path for file in remote]
    for path, file in zip(paths, remote, strict=True):
        told = _differs(path, file)
        if told:
            raise DataError(f"{path}: {told}; remove the file and run the same command again")
    return sorted(paths)


def _refuse_other_copy(folder: Path, remote: Iterable[_Remote]) -> None:
    """Refuse to write over somebody's own copy of the data."""
    for file in remote:
        path = folder / file.path
        told = path.exists() and _differs(path, file)
        if told:
            raise DataError(
                f"{path}: {told}; it is another copy, which is left alone: name another folder "
                "with --data"
            )


def _remote_files(context: DataContext) -> list[_Remote]:
    """What the hub has of a split, as it describes it now."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    pattern = context.card.files[context.split]
    if context.is_offline:
        raise _HubError(f"{_missing(context)}, and --offline forbids to ask the hub")
    try:
        found = list(
            HfApi().list_repo_tree(
                context.card.hub_id, str(Path(pattern).parent), repo_type="dataset"
            )
        )
    except Exception as error:
        raise _explained(context, error) from error
    files = [
        _Remote(item.path, item.size, item.lfs.sha256 if item.lfs else "")
        for item in found
        if isinstance(item, RepoFile) and Path(item.path).match(pattern)
    ]
    if not files:
        raise DataError(
            f"{context.card.hub_id}: the hub has no file {pattern} any more; the repository was "
            "changed: give a copy of it with --data"
        )
    return files


def _refuse_full_disk(files: Sequence[_Remote], target: Path | None) -> None:
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = target or Path(HF_HUB_CACHE)
    existing = next(part for part in (folder, *folder.parents) if part.exists())
    missing = [file for file in files if target is None or not (target / file.path).exists()]
    needed, free = sum(file.size for file in missing), shutil.disk_usage(existing).free
    if needed > free:
        raise DataError(
            f"{existing}: {needed / 2**30:.1f} GiB to download, but only {free / 2**30:.1f} GiB "
            "are free; name a folder on another disk with --data"
        )


def _differs(path: Path, file: _Remote) -> str:
    """Why a file is not what the hub has; empty where it is."""
    size = path.stat().st_size if path.exists() else 0
    if size != file.size:
        return f"{size} bytes where the hub has {file.size}"
    if not file.sha256:
        return ""
    with path.open("rb") as content:
        found = file_digest(content, "sha256").hexdigest()
    return "" if found == file.sha256 else f"its sha256 is {found}, on the hub {file.sha256}"


def _streamed(context: DataContext) -> ImageRows:
    """The first rows, read over the network as far as they are needed."""
    from huggingface_hub import HfApi

    card = context.card
    try:
        revision = HfApi().dataset_info(card.hub_id).sha
    except Exception as error:
        raise _explained(context, error) from error
    url = f"hf://datasets/{card.hub_id}@{revision}/{card.files[context.split]}"
    return ImageRows(
        partial(_read, [url], context.split),
        card.hub_id,
        f"{card.hub_id}@{revision}/{context.split}",
        is_prefix=True,
    )


def _explained(context: DataContext, error: Exception) -> DataError:
    """What a failed question to the hub means, and what to do."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    said = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    access = context.card.access
    if access and isinstance(error, (GatedRepoError, RepositoryNotFoundError)):
        return _HubError(f"{context.card.hub_id}: the hub does not let you in: {access}")
    return _HubError(
        f"{_missing(context)}, and the hub cannot be asked ({said}); on a machine with a network: "
        "'harness fetch --suite S --data DIR', then copy DIR here and run with --data DIR"
    )
