"""A board for people: the table in Markdown, and the same numbers as CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from harness.flags import FLAGS
from harness.inference import detectable_between
from harness.report import cell_text, plain
from harness.stats import share

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from harness.entries import Entry
    from harness.registry import Registry
    from harness.standing import Place, Standing
    from harness.suite import Suite


def page(board: Standing, registry: Registry) -> str:
    """The board in Markdown, GitHub flavour."""
    suite = board.suite
    title = f"{suite.title}{f' ({board.name})' if board.name != suite.name else ''}"
    parts = [f"# {plain(title)}", "", *_preface(board), "", _table(board, registry)]
    if len(suite.epsilons) > 1:
        parts += ["", "## At every epsilon", "", _curves(board, registry)]
    reported = [place.entry for place in board.below if place.entry.content["reported"]]
    if reported:
        parts += ["", "## Reported, not measured here", "", *map(_report, reported)]
    parts += ["", *_legend(board, registry), ""]
    return "\n".join(parts)


def as_csv(board: Standing, registry: Registry) -> str:
    """One line a row, one column a number: value, low and high of each metric and epsilon."""
    lines = [_flat(board, place, registry) for place in (*board.ranked, *board.below)]
    heads = list(dict.fromkeys(head for line in lines for head in line))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, heads, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({head: _unformula(value) for head, value in line.items()} for line in lines)
    return buffer.getvalue()


def as_json(board: Standing, registry: Registry) -> str:
    """The rows as a list of objects, with the board's name and headline."""
    rows = [_flat(board, place, registry) for place in (*board.ranked, *board.below)]
    content = {
        "board": board.name,
        "suite": board.suite.name,
        "version": board.suite.version,
        "headline": board.suite.headline,
        "rows": rows,
    }
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


def entry_file(entry: Entry) -> str:
    """The file of an entry inside its board's folder."""
    model = entry.content["model"]
    seed = f"@seed{model['seed']}" if model["seed"] else ""
    return f"{model['row']}{seed}.json"


def _table(board: Standing, registry: Registry) -> str:
    heads = ["rank", "model", "experts", "recipe", *_headings(board, registry), "flags"]
    lines = [_line(board, place) for place in board.ranked]
    if board.below:
        lines.append(["below the line: no rank", *[""] * (len(heads) - 1)])
    for place in board.below:
        *cells, flags = _line(board, place)
        lines.append([*cells, f"{plain(place.reason)}; {flags}"])
    return tabulate(lines, headers=heads, tablefmt="github", disable_numparse=True)


def _line(board: Standing, place: Place) -> list[str]:
    entry = place.entry
    link = f"[{plain(entry.row)}]({board.name}/{entry_file(entry).replace(' ', '%20')})"
    return [
        _ranks_text(place),
        link,
        _experts(entry),
        plain(entry.content["model"]["recipe"]) or "-",
        *_values(board, entry),
        ", ".join(plain(flag) for flag in entry.content["flags"]) or "-",
    ]


def _ranks_text(place: Place) -> str:
    if place.ranks is None:
        return "-"
    low, high = place.ranks
    return f"{low}" if low == high else f"{low}-{high}"


def _experts(entry: Entry) -> str:
    """Experts and those that work for a token, E/K; "dense" without any."""
    card = entry.content["model"]["card"]
    if not card.get("num_experts"):
        return "dense"
    return f"{card['num_experts']}/{card.get('num_selected') or '?'}"


def _headings(board: Standing, registry: Registry) -> Iterator[str]:
    for name in board.suite.metrics:
        card = registry.find("metrics", name).card
        at = f" {board.suite.headline}" if card.by_epsilon else ""
        yield f"{card.title or name}{at}"
    yield f"best known {board.suite.headline}"


def _values(board: Standing, entry: Entry) -> Iterator[str]:
    for name in board.suite.metrics:
        value = entry.content["values"].get(name, _missing(name))
        if "value" not in value:
            value = value.get(board.suite.headline, _missing(name))
        yield _text(value, entry)
    yield _text(_best_known(board.suite, entry), entry)


def _text(value: Mapping[str, Any], entry: Entry) -> str:
    """A value; only the reason for none is somebody's own words."""
    if value["value"] is None:
        return plain(cell_text(value))
    is_bare = entry.content["reported"] and value["low"] is None  # a share without an interval
    return f"{100 * value['value']:.1f}" if is_bare else cell_text(value)


def _report(entry: Entry) -> str:
    """Whence reported numbers come, in one line of a list."""
    report = entry.content.get("report", {})
    told = [
        f"{plain(report[key])}" if key in ("source", "url") else f"{key}: {plain(report[key])}"
        for key in ("source", "url", "protocol", "licence")
        if report.get(key)
    ]
    return f"- {plain(entry.row)}, n = {entry.count} images: {'; '.join(told) or 'no source'}."


def _best_known(suite: Suite, entry: Entry) -> Mapping[str, Any]:
    bits = None if entry.content["reported"] else entry.best_known(suite.headline)
    if bits is None:
        return _missing("best known")
    return share(int(bits.sum()), len(bits)).to_json()


def _missing(name: str) -> Mapping[str, Any]:
    return {"value": None, "low": None, "high": None, "n": None, "reason": f"no {name}"}


def _curves(board: Standing, registry: Registry) -> str:
    """Every number that has one value an epsilon."""
    suite = board.suite
    cards = {name: registry.find("metrics", name).card for name in suite.metrics}
    wide = [name for name, card in cards.items() if card.by_epsilon]
    lines = [
        [plain(place.entry.row), cards[name].title or name, *_curve(suite, place.entry, name)]
        for place in (*board.ranked, *board.below)
        for name in wide
    ]
    heads = ["model", "number", *(epsilon.text for epsilon in suite.epsilons)]
    return tabulate(lines, headers=heads, tablefmt="github", disable_numparse=True)


def _curve(suite: Suite, entry: Entry, name: str) -> Iterator[str]:
    values = entry.content["values"].get(name, {})
    for epsilon in suite.epsilons:
        yield _text(values.get(epsilon.text, _missing(name)), entry)


def _preface(board: Standing) -> Iterable[str]:
    suite = board.suite
    attacks = ", ".join(f"`{attack.label}`" for attack in suite.attacks)
    n = max((place.entry.count for place in board.ranked), default=0)
    if len(board.ranked) > 1 and board.ranked[0].ranks is not None:
        smallest = detectable_between(board.bits())
        if smallest is not None:
            yield (
                f"With n = {n} images a difference of less than {100 * smallest:.1f} points "
                "between neighbours would be missed more than once in five times (McNemar at 5 %)."
            )
        yield "Rank ranges, 95 % over all rows at once: which rows these images tell apart at all."
    yield (
        f"Suite `{board.name}` version {suite.version}, protocol `{suite.protocol}`, norm "
        f"{suite.norm}, attacks {attacks}, n = {n} images of `{suite.data.name}/"
        f"{suite.data.split}`; sorted by the first accuracy or error at {suite.headline}."
    )
    yield (
        "Accuracies are percentages of all images with 95 % Wilson intervals; they speak of one "
        "checkpoint and of image sampling, not of training seeds."
    )
    yield "Robust: right on the clean image and under every attack of the list, image by image."
    for machine in sorted({_machine(place.entry) for place in board.ranked}):
        yield f"Computed on {machine}."


def _machine(entry: Entry) -> str:
    told = entry.content["provenance"]
    device = told.get("machine", {}).get("device", "an unknown device")
    torch = told.get("versions", {}).get("torch", "unknown")
    return (
        f"{plain(str(device))} in {plain(entry.content['precision'])}, torch {plain(str(torch))}, "
        f"seed {entry.content['model']['seed']}"
    )


def _legend(board: Standing, registry: Registry) -> Iterator[str]:
    for name in board.suite.metrics:
        card = registry.find("metrics", name).card
        yield f"- {card.title or name}: {card.summary}"
    yield (
        "- best known: robust accuracy when the images that others broke count too; their sources "
        "stand in the entry."
    )
    raised = {flag for place in board.ranked for flag in place.entry.content["flags"]}
    for flag in sorted(raised):
        yield f"- `{plain(flag)}`: {FLAGS.get(flag, plain(flag))}."


def _flat(board: Standing, place: Place, registry: Registry) -> dict[str, Any]:
    """One row with one number a column."""
    content = place.entry.content
    card = content["model"]["card"]
    found: dict[str, Any] = {
        "rank_low": place.ranks.low if place.ranks else None,
        "rank_high": place.ranks.high if place.ranks else None,
        "model": place.entry.row,
        "num_experts": card.get("num_experts"),
        "num_selected": card.get("num_selected"),
        "recipe": content["model"]["recipe"],
        "seed": content["model"]["seed"],
        "n": place.entry.count,
    }
    for name in board.suite.metrics:
        value = content["values"].get(name, _missing(name))
        if registry.find("metrics", name).card.by_epsilon:
            for epsilon in board.suite.epsilons:
                found |= _numbers(f"{name} {epsilon.text}", value.get(epsilon.text, {}))
        else:
            found |= _numbers(name, value)
    found |= _numbers(f"best-known {board.suite.headline}", _best_known(board.suite, place.entry))
    report = content.get("report", {})
    if content["reported"]:
        found |= {f"reported {key}": report.get(key) for key in ("source", "url", "licence")}
    return found | {
        "flags": " ".join(content["flags"]),
        "below_the_line": place.reason,
        "weights": content["weights"]["sha256"],
        "entry": f"{board.name}/{entry_file(place.entry)}",
    }


def _numbers(name: str, value: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: value.get("value")}
    if value.get("low") is not None:
        found |= {f"{name} low": value["low"], f"{name} high": value["high"]}
    return found


def _unformula(value: Any) -> Any:
    """Text that no spreadsheet takes for a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@") else value
