"""Figures as PNG and SVG, through matplotlib (extra `report`)."""

from __future__ import annotations

import io
from itertools import cycle
from math import ceil
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.errors import UsageError
from harness.figures import Line, Panel, Picture, drawable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
"""Told apart without colour vision (Okabe & Ito, 2008), as are the marks."""
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")
YARDSTICKS = ("chance", "clean", "noise")
"""First words of lines that stand beside measurements: grey, and drawn behind."""
MOST_LINES = 8
"""Lines that can be told apart in one figure."""
MOST_BANDS = 4
"""Lines of a panel whose intervals are drawn as bands."""
COLUMNS = 3
FORMATS = ("png", "svg")
STYLE = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}


class Look(NamedTuple):
    """How a line is drawn."""

    colour: str
    mark: str
    dashes: str


def drawn(picture: Picture) -> dict[str, bytes] | None:
    """The files of a figure by their ending; None where nothing, or too much, is to be seen.

    Raises:
        UsageError: matplotlib is not installed.
    """
    panels = drawable(picture.panels)
    names = list(dict.fromkeys(line.name for panel in panels for line in panel.lines))
    if not panels or len(names) > MOST_LINES:
        return None
    figure_type, style = _matplotlib()
    # no date and no chance inside, so that the same numbers give the same file
    with style({**STYLE, "svg.hashsalt": picture.name}):
        figure = _figure(figure_type, picture, panels, _looks(names))
        return {ending: _file(figure, ending) for ending in FORMATS}


def _file(figure: Any, ending: str) -> bytes:
    file = io.BytesIO()
    about = {"Date": None} if ending == "svg" else {"Software": None}
    figure.savefig(file, format=ending, dpi=150, metadata=about)
    return file.getvalue()


def _looks(names: Sequence[str]) -> dict[str, Look]:
    """The look of each line: colours for measurements, greys and dashes for yardsticks."""
    found: dict[str, Look] = {}
    strong = zip(cycle(COLOURS), cycle(MARKS), strict=False)
    for name in names:
        first = name.split()[0] if name else ""
        if first in YARDSTICKS:
            place = YARDSTICKS.index(first)
            same = sum(1 for known in found if known.split()[0] == first)
            grey = ("#444444", "#777777", "#999999", "#B0B0B0")[min(same, 3)]
            found[name] = Look(grey, ("", ".", "x")[place], ("--", "-.", ":")[place])
        else:
            found[name] = Look(*next(strong), "-")
    return found


def _figure(
    figure_type: Any, picture: Picture, panels: Sequence[Panel], looks: Mapping[str, Look]
) -> Any:
    columns = min(COLUMNS, len(panels))
    rows = ceil(len(panels) / columns)
    wide = max(columns, 1.5)
    beside = 2 if columns < COLUMNS else COLUMNS  # names of the legend
    size = (1.6 + 3.4 * wide, 0.7 + 2.7 * rows + 0.22 * ceil(len(looks) / beside))
    figure = figure_type(figsize=size, layout="constrained")
    axes = figure.subplots(
        rows, columns, squeeze=False, sharey=not picture.is_doubling, sharex=True
    )
    flat = list(axes.flat)
    for place, panel in zip(flat, panels, strict=False):
        _draw_panel(place, picture, panel, looks)
    for place in flat[len(panels) :]:
        place.set_visible(False)
    for place in flat[max(0, len(panels) - columns) : len(panels)]:
        place.set_xlabel(picture.x_label)
        place.tick_params(labelbottom=True)
    for place in axes[:, 0]:
        place.set_ylabel(picture.y_label)
    figure.suptitle(picture.title, fontsize=10)
    known: dict[str, Any] = {}
    for place in flat:
        handles, labels = place.get_legend_handles_labels()
        known |= dict(zip(labels, handles, strict=True))
    figure.legend(
        known.values(), known.keys(), loc="outside lower center", ncols=beside, frameon=False
    )
    return figure


def _draw_panel(axes: Any, picture: Picture, panel: Panel, looks: Mapping[str, Look]) -> None:
    for place, line in enumerate(panel.lines):
        if picture.is_scatter:
            _draw_point(axes, line, picture.spread[place], looks[line.name])
        else:
            _draw_line(axes, line, looks[line.name], is_crowded=len(panel.lines) > MOST_BANDS)
    axes.set_title(panel.title, fontsize=9)
    axes.grid(visible=True, color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    if picture.is_doubling:
        counts = sorted({point.x for line in panel.lines for point in line.points})
        axes.set_xscale("log", base=2)
        axes.set_xticks(counts, [f"{count:g}" for count in counts])


def _draw_line(axes: Any, line: Line, look: Look, *, is_crowded: bool) -> None:
    """A line with its interval: a band, or bars where bands would cover each other."""
    points = line.drawn
    xs, values = [point.x for point in points], [point.value for point in points]
    is_yardstick = look.dashes != "-"
    axes.plot(
        xs,
        values,
        color=look.colour,
        marker=look.mark,
        linestyle=look.dashes,
        markersize=4,
        linewidth=1.3,
        label=line.name,
        zorder=2 if is_yardstick else 3,
    )
    sure = [point for point in points if point.low is not None and point.high is not None]
    if is_crowded:
        if not is_yardstick:
            ends = [point.low for point in sure], [point.high for point in sure]
            axes.vlines([point.x for point in sure], *ends, color=look.colour, linewidth=0.8)
        return
    axes.fill_between(
        [point.x for point in sure],
        [point.low for point in sure],
        [point.high for point in sure],
        color=look.colour,
        alpha=0.15,
        linewidth=0,
    )


def _draw_point(axes: Any, line: Line, spread: tuple[float, float], look: Look) -> None:
    [point] = line.points
    if point.value is None or point.low is None or point.high is None:
        return
    axes.errorbar(
        [point.x],
        [point.value],
        xerr=[[point.x - spread[0]], [spread[1] - point.x]],
        yerr=[[point.value - point.low], [point.high - point.value]],
        color=look.colour,
        marker=look.mark,
        linestyle="none",
        capsize=2,
        elinewidth=0.8,
        label=line.name,
    )


def _matplotlib() -> tuple[Any, Any]:
    try:
        from matplotlib import rc_context  # noqa: PLC0415 - an extra
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ImportError as error:
        raise UsageError(
            "figures need matplotlib: pip install 'moe-robustness-harness[report]'; "
            "'--tables' writes their numbers without it"
        ) from error
    return Figure, rc_context
