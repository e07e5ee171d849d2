"""Whether a board is what its entries say, and what a change did to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.alike import Laws
from harness.entries import Entry, read_entry
from harness.errors import EntryError, HarnessError
from harness.page import as_csv, as_json, entry_file, page
from harness.proof import Finding, check_entry
from harness.standing import standing

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from harness.registry import Registry
    from harness.suite import Suite

__all__ = ["Finding", "check_board", "check_change", "check_entry"]

PAGES = {".md": page, ".csv": as_csv, ".json": as_json}


def check_board(suite: Suite, name: str, folder: Path, registry: Registry) -> Iterator[Finding]:
    """What is wrong with a board: each entry, where it lies, and whether the pages are its own.

    Args:
        suite: What was measured.
        name: Of the board.
        folder: Leaderboard folder.
        registry: Plugins.
    """
    entries, unread = _read(folder / name)
    yield from unread
    laws = Laws()
    for entry in entries:
        if entry.where != str(folder / name / entry_file(entry)):
            yield Finding(entry.where, f"should be {name}/{entry_file(entry)}")
        if entry.content["suite"]["board"] != name:
            yield Finding(entry.where, f"is of board {entry.content['suite']['board']}")
        yield from check_entry(entry, suite, registry, laws)
    yield from _pages(suite, name, folder, registry, entries)


def check_change(board: Path, before: Path) -> Iterator[Finding]:
    """What a change of a board's folder did to rows that were there.

    Args:
        board: The folder of entries as it is.
        before: The same folder as it was.
    """
    now = {entry_file(entry): entry for entry in _read(board)[0]}
    earlier, unread = _read(before)
    for finding in unread:
        yield Finding(finding.where, f"was there before and {finding.what}", is_error=False)
    for old in earlier:
        name = entry_file(old)
        if name not in now:
            yield Finding(old.where, "was removed; a row leaves a board only by name and reason")
            continue
        yield from _changed(old, now[name])
    for name in sorted(set(now) - {entry_file(old) for old in earlier}):
        yield Finding(now[name].where, "is new", is_error=False)
        if now[name].content["bits"]["clean"] is None and not now[name].content["reported"]:
            yield Finding(now[name].where, "has no clean bits; measure it with this harness")


def _read(folder: Path) -> tuple[list[Entry], list[Finding]]:
    """The entries of a folder that can be read, and what else lies there; links are not followed.

    Nothing of a folder that is a link itself is read.
    """
    if folder.is_symlink():
        return [], [Finding(str(folder), "is a link; put the folder itself there")]
    entries, findings = [], []
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            findings.append(Finding(str(path), "is a link; put the file itself there"))
        elif path.is_dir():
            continue
        elif path.suffix != ".json":
            findings.append(Finding(str(path), "is no entry; nothing else belongs here"))
        else:
            try:
                entries.append(read_entry(path))
            except EntryError as error:
                findings.append(Finding(str(path), str(error).removeprefix(f"{path}: ")))
    return entries, findings


def _changed(old: Entry, new: Entry) -> Iterator[Finding]:
    if _measured(old, new) == _measured(new, old):
        if new.content["best_known"][: len(old.content["best_known"])] != old.content["best_known"]:
            yield Finding(new.where, "what others broke was changed or removed; only add to it")
        return
    if new.content["reported"]:
        is_error = not old.content["reported"]
        told = "a measured row was replaced by a reported one" if is_error else "reports otherwise"
        yield Finding(new.where, told, is_error=is_error)
        return
    if old.content["provenance"].get("started") == new.content["provenance"].get("started"):
        yield Finding(new.where, "was changed without a new run: its start is still the same")
        return
    same = old.content["weights"]["sha256"] == new.content["weights"]["sha256"]
    told = "measured again on the same weights" if same else "replaced by other weights"
    yield Finding(new.where, told, is_error=False)


def _measured(entry: Entry, other: Entry) -> Mapping[str, Any]:
    """What a new run alone may change.

    Against an entry of the first schema, which lacked much, only what that one held: the same
    run may be published again in the present one.
    """
    content = entry.content
    if None not in (content["bits"]["clean"], other.content["bits"]["clean"]):
        return {key: value for key, value in content.items() if key != "best_known"}
    attacks = content["bits"]["attacks"]
    shared = set(content["values"]) & set(other.content["values"])
    return {
        "weights": content["weights"]["sha256"],
        "data": content["data"]["fingerprint"],
        "samples": content["samples"],
        "facts": content["facts"],
        "values": {name: content["values"][name] for name in shared},
        "bits": {label: about["robust"] for label, about in attacks.items()},
        "started": content["provenance"].get("started"),
    }


def _pages(
    suite: Suite, name: str, folder: Path, registry: Registry, entries: list[Entry]
) -> Iterator[Finding]:
    """Whether the pages are those that the entries give."""
    try:
        board = standing(suite, name, entries)
        wanted = {suffix: write(board, registry).encode() for suffix, write in PAGES.items()}
    except HarnessError as error:
        yield Finding(str(folder / name), f"pages cannot be written: {error}")
        return
    for suffix, content in wanted.items():
        path = folder / f"{name}{suffix}"
        is_own = path.is_file() and not path.is_symlink()
        if not is_own or path.read_bytes() != content:
            told = "is not what the entries give; write it again with 'harness publish'"
            yield Finding(str(path), told)
