"""The tables of a comparison, as lines of text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from harness.bench.gauge import Ceiling, clock, hardware, memory_rule
from harness.bench.program import ours
from harness.bench.race import BALL_SLACK, POINTS, counted, spread
from harness.bench.sweep import GRID, WAYS, gains
from harness.bench.tasks import MANNERS
from harness.flops import count_flops

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from harness.bench.contest import Conditions, Contest
    from harness.bench.peers import Peer, Presence
    from harness.bench.program import Standing
    from harness.bench.race import Lap
    from harness.bench.sweep import SweepLap

MEBIBYTE = 2**20
GIGA = 1e9


class Scale(NamedTuple):
    """What seconds and passes are measured by."""

    ceiling: Ceiling
    flops: int  # of one image's forward pass

    def share(self, passes: float, seconds: float) -> float:
        """The part of this machine's peak that passes in this time made use of."""
        return passes * self.flops / seconds / self.ceiling.highest


def scale(contest: Contest, ceiling: Ceiling, name: str) -> Scale:
    """The scale of a model on this machine."""
    _, channels, height, width = contest.samples.images.shape
    return Scale(ceiling, count_flops(contest.model, (channels, height, width), name))


RUNS = [
    "who",
    "seconds",
    "wall seconds",
    "robust of attacked",
    "robust of all",
    "largest change",
    "memory",
    "passes an image",
    "of peak",
]


def runs(standing: Standing, contest: Contest, scale: Scale) -> list[list[str]]:
    """A line for everybody who finished."""
    names = dict.fromkeys(lap.entrant for lap in standing.race.laps)
    return [
        _run(counted(standing.race, name), contest, scale)
        for name in names
        if name not in standing.missing
    ]


def _run(laps: list[Lap], contest: Contest, scale: Scale) -> list[str]:
    last = laps[-1]
    left, count = int(last.robust.sum()), len(last.robust)
    effort = spread([lap.seconds for lap in laps])
    memories = [lap.effort.memory for lap in laps if lap.effort.memory is not None]
    passes, share = "", ""
    if last.passes is not None:
        passes = f"{last.passes / count:.1f}"
        share = f"{100 * scale.share(last.passes, effort.median):.0f} %"
    return [
        last.entrant,
        effort.told(),
        spread([lap.effort.wall_seconds for lap in laps]).told(),
        f"{left} of {count}",
        f"{left / contest.looked_at:.2%}",
        f"{last.largest * 255:.4f}/255",
        _memory(max(memories), count) if memories else "not measured",
        passes,
        share,
    ]


def _memory(highest: int, count: int) -> str:
    """In all, and an image."""
    mebibytes = highest / MEBIBYTE
    return f"{mebibytes:.0f} MiB, {mebibytes / count:.1f} an image"


RATIOS = ["peer", "ours", "their seconds over ours", "verdicts that differ", "verdict"]


def ratios(standing: Standing, peers: Sequence[Peer]) -> list[list[str]]:
    """A line for each peer beside each of our manners; one line for a peer without a result."""
    found = {(item.peer, item.ours): item for item in standing.comparisons}
    lines = []
    for peer in peers:
        if peer.name in standing.missing:
            lines.append([peer.name, "-", "-", "-", standing.missing[peer.name]])
            continue
        for name in (ours(manner) for manner in MANNERS):
            if name in standing.missing:
                lines.append([peer.name, name, "-", "-", standing.missing[name]])
                continue
            item = found[peer.name, name]
            lines.append([peer.name, name, item.ratio.told(), str(item.differing), item.verdict])
    return lines


def rules(device: torch.device) -> str:
    """How the tables are to be read."""
    return (
        f"ratios: median [least-most] over the rounds, of {clock(device)} in the same round; "
        "above 1 we are faster\n"
        f"FAIL: we are faster, but leave more than {POINTS} % of the attacked images more robust, "
        f"or we change a pixel by more than epsilon + {BALL_SLACK:g}\n"
        "robust: by a float32 pass of the model itself over what everybody returned, clipped to "
        "[0, 1]; those of the last round\n"
        f"memory: {memory_rule(device)}, the most of all rounds\n"
        "of peak: floating-point operations of our passes, each way as one forward pass, over "
        "seconds and the fastest float32 product or convolution measured here"
    )


def facts(
    conditions: Conditions, contest: Contest, scale: Scale, present: Mapping[str, Presence]
) -> dict[str, str]:
    """What everybody shares."""
    weights = Path(conditions.weights).name or "brought by its plugin"
    if not contest.is_trained:
        weights = "initial ones; labels are the model's own predictions"
    shape = "x".join(str(side) for side in contest.samples.images.shape)
    return {
        "model": conditions.model,
        "weights": weights,
        "images": f"{len(contest.samples.ids)} of the first {contest.looked_at} of "
        f"{conditions.suite.data.name}/{conditions.suite.data.split}, which the model has right",
        "batch": f"{shape} float32, the same for all, at once",
        "epsilon": f"{conditions.epsilon}, Linf",
        "seed": str(contest.seed),
        "rounds": f"{conditions.rounds}, the first of them warm-up; the order turns round in each",
        "device": f"{contest.device}, {hardware(contest.device)}, threads: {conditions.threads}",
        "measured peak": f"{scale.ceiling.product / GIGA:.0f} GFLOP/s in products, "
        f"{scale.ceiling.convolution / GIGA:.0f} in 3x3 convolutions",
        "one forward pass": f"{scale.flops / GIGA:.4g} GFLOP",
        **(_shown(present) if present else {}),
        "our model": "a copy of that one, made ready as a run does, within the seconds counted",
    }


def _shown(present: Mapping[str, Presence]) -> dict[str, str]:
    """What is known of the peers."""
    told = [f"{name} {found.version or '(absent)'}" for name, found in present.items()]
    return {
        "peers": ", ".join(told),
        "model of the peers": "as built, its parameters wanting gradients, in evaluation mode",
    }


SWEEPS = ["way", "seconds", "gain", "passes an image", "of peak", *GRID]
SWEEP_RULES = (
    "gain: seconds of the separate runs over these, in the same round: median [least-most]\n"
    "images left: by the harness's own judgement, as in the records of a run; descending takes an "
    "image that survives a larger epsilon as robust below, and never ranks"
)


def sweeps(laps: list[SweepLap], contest: Contest, scale: Scale) -> list[list[str]]:
    """A line for each way through the grid: cost, and the images left at each epsilon."""
    gained, count = gains(laps), len(contest.samples.ids)
    lines = []
    for way in WAYS:
        own = [lap for lap in laps if lap.way == way.name and lap.number > 0]
        effort = spread([lap.seconds for lap in own])
        lines.append(
            [
                way.name,
                effort.told().replace(" ", "\n"),
                gained[way.name].told().replace(" ", "\n"),
                f"{own[-1].passes / count:.1f}",
                f"{100 * scale.share(own[-1].passes, effort.median):.0f} %",
                *(str(left) for left in own[-1].robust),
            ]
        )
    return lines
