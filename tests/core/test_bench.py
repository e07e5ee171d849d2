"""Comparisons of speed: their arithmetic, their verdicts, and what happens to who is not there."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from harness.bench.contest import Conditions, Contest, as_found, judged
from harness.bench.gauge import Ceiling, Effort, gauged
from harness.bench.measure import measured
from harness.bench.peers import PEERS, Peer, presence
from harness.bench.program import held
from harness.bench.race import (
    Entrant,
    Lap,
    Proposal,
    Race,
    compared,
    counted,
    in_order,
    raced,
    verdict,
)
from harness.bench.report import Scale, ratios, runs
from harness.bench.sweep import GRID, WAYS, gains, swept
from harness.bench.tasks import MANNERS, TASKS, chosen
from harness.errors import UsageError
from harness.sources import Place
from harness.suite import find_suite
from harness.testing import LinearModel, linear_samples

EPSILON = 0.2
SHORT = replace(
    TASKS["pgd-20"], registered="pgd", parameters={"steps": 3, "relative_step_size": 1.0}
)
SCALE = Scale(Ceiling(product=1e9, convolution=2e9), flops=1000)
NOBODY = Peer("nobody", "no-such-distribution", "pip install nobody", {})


def linear_contest(registry, *, gap=0.1, epsilon=EPSILON):
    """Four images at a known distance from the boundary."""
    return Contest(
        registry, LinearModel(), linear_samples(4, gap=gap), 5, num_classes=2, epsilon=epsilon
    )


def small_network():
    """Something with parameters, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5))


def network_contest(registry):
    model, samples = small_network(), linear_samples(6, gap=0.1)
    with torch.no_grad():
        labels = model(samples.images).argmax(dim=1)
    model.eval()
    return Contest(registry, model, samples._replace(labels=labels), 6, num_classes=5, epsilon=0.05)


def lap(entrant, number, seconds, robust=(True, False), largest=EPSILON):
    effort = Effort(seconds, seconds, None, None)
    return Lap(entrant, number, seconds, effort, torch.tensor(robust), largest, None)


def stay(contest, task):
    return contest.samples.images.clone()


def push(contest, task):
    """The exact worst case of LinearModel: all pixels down."""
    return (contest.samples.images - contest.epsilon).clamp(0, 1)


def fail(contest, task):
    raise RuntimeError("out of luck")


def present(name, run):
    """A peer that is there: it is the same distribution as torch."""
    return Peer(name, "torch", "pip install torch", {"pgd": run})


def silent(told):
    """Hears of every lap and says nothing."""


def test_a_ratio_is_the_median_of_the_ratios_of_each_round_without_the_warm_up():
    theirs = [lap("peer", number, seconds) for number, seconds in enumerate((99, 2, 6, 10))]
    ours = [lap("ours", number, seconds) for number, seconds in enumerate((1, 1, 2, 2))]

    found = compared(Race((*theirs, *ours), {}), "peer", "ours", epsilon=EPSILON)

    # 2/1, 6/2, 10/2
    assert found.ratio == (3, 2, 5)
    assert found.ratio.told() == "3.00 [2.00-5.00]"


def test_ratios_pair_laps_of_the_same_round_though_the_order_turns():
    laps = (
        lap("ours", 0, 1), lap("peer", 0, 1),
        lap("peer", 1, 8), lap("ours", 1, 2),
        lap("ours", 2, 10), lap("peer", 2, 20),
    )  # fmt: skip

    found = compared(Race(laps, {}), "peer", "ours", epsilon=EPSILON)

    assert found.ratio == (3, 2, 4)


def test_the_images_with_another_verdict_are_counted():
    theirs = [lap("peer", number, 1, (True, True, False)) for number in range(2)]
    ours = [lap("ours", number, 1, (True, False, True)) for number in range(2)]

    found = compared(Race((*theirs, *ours), {}), "peer", "ours", epsilon=EPSILON)

    assert found.differing == 2


def test_every_other_round_is_run_backwards():
    assert [in_order("abc", number) for number in range(3)] == ["abc", "cba", "abc"]


def with_robust(count):
    """A lap on 250 images, of which each is worth 0.4 points."""
    return lap("entrant", 1, 1, tuple(place < count for place in range(250)))


@pytest.mark.parametrize(
    ("ours", "ratio", "told"),
    [(100, 2.0, "ok"), (101, 2.0, "ok"), (102, 2.0, "FAIL"), (102, 0.9, "ok"), (90, 2.0, "ok")],
    ids=["equal", "0.4 points", "0.8 points", "weaker but slower", "stronger"],
)
def test_faster_but_weaker_by_more_than_0_4_points_fails(ours, ratio, told):
    found = verdict(with_robust(100), with_robust(ours), ratio=ratio, epsilon=EPSILON)

    assert found.partition(":")[0] == told


def test_who_leaves_the_ball_is_told():
    inside, outside = lap("a", 1, 1), lap("b", 1, 1, largest=EPSILON + 1e-5)

    assert verdict(inside, outside, ratio=1, epsilon=EPSILON) == "FAIL: ours left the ball"
    assert verdict(outside, inside, ratio=1, epsilon=EPSILON) == "void: the peer left the ball"


def test_the_judge_asks_the_model_itself_about_the_clipped_images(registry):
    contest = linear_contest(registry)
    images = contest.samples.images.clone()
    images[0] -= 0.15  # beyond the boundary, 0.1 away
    images[1] += 5  # clipped to 1

    found = judged(contest, images)

    assert found.robust.tolist() == [False, True, True, True]
    assert found.largest == pytest.approx(float(1 - contest.samples.images[1].min()))


def test_an_absent_peer_is_told_with_the_command_that_brings_it(registry):
    absent = {"nobody": presence(NOBODY)}

    standing = held(linear_contest(registry), SHORT, [NOBODY], absent, rounds=2, told=silent)

    assert standing.missing["nobody"] == "absent: pip install nobody"
    assert ratios(standing, [NOBODY]) == [["nobody", "-", "-", "-", "absent: pip install nobody"]]


def test_a_peer_whose_import_fails_counts_as_absent():
    found = presence(Peer("no_such_module", "torch", "pip install it", {}))

    assert found.version == ""
    assert "absent: its import raised ModuleNotFoundError" in found.reason
    assert "pip install it" in found.reason


@pytest.mark.parametrize(
    ("name", "task", "told"),
    [
        ("foolbox", "apgd-ce-50", "n/a: foolbox has no AutoPGD"),
        ("pyautoattack", "pgd-20", "n/a: pyautoattack has no PGD"),
        ("art", "autoattack-standard", "n/a: art has no standard AutoAttack"),
    ],
)
def test_a_peer_without_the_attack_is_told(registry, name, task, told):
    short = replace(SHORT, kind=TASKS[task].kind)
    there = {name: presence(present("torch", stay))}

    standing = held(linear_contest(registry), short, [PEERS[name]], there, rounds=2, told=silent)

    assert standing.missing[name] == told


def test_a_peer_that_raises_is_out_and_the_others_go_on(registry):
    contest = linear_contest(registry)
    entrants = [
        Entrant("good", lambda: Proposal(push(contest, SHORT)), is_peer=True),
        Entrant("bad", lambda: fail(contest, SHORT), is_peer=True),
    ]

    race = raced(contest, entrants, rounds=3, told=silent)

    assert race.failures == {"bad": "raised RuntimeError: out of luck"}
    assert [item.number for item in race.laps] == [0, 1, 2]
    assert len(counted(race, "good")) == 2


def test_an_error_of_our_own_is_not_hidden(registry):
    contest = linear_contest(registry)
    entrants = [Entrant("ours", lambda: fail(contest, SHORT), is_peer=False)]

    with pytest.raises(RuntimeError, match="out of luck"):
        raced(contest, entrants, rounds=2, told=silent)


def test_each_peer_stands_beside_each_of_our_manners(registry):
    contest, peers = linear_contest(registry), [present("torch", stay)]
    found = {"torch": presence(peers[0])}

    standing = held(contest, SHORT, peers, found, rounds=3, told=silent)

    lines = ratios(standing, peers)
    assert [line[1] for line in lines] == [f"ours, {manner.name}" for manner in MANNERS]
    assert [line[3] for line in lines[:2]] == ["4", "4"]  # ours fools all, staying none
    assert [line[0] for line in runs(standing, contest, SCALE)][-1] == "torch"


def test_a_manner_that_the_engine_does_not_know_is_told(registry):
    standing = held(linear_contest(registry), SHORT, [], {}, rounds=2, told=silent)

    ran = {item.entrant for item in standing.race.laps}
    assert ran | set(standing.missing) == {f"ours, {manner.name}" for manner in MANNERS}


def test_dropping_takes_fewer_passes_to_the_same_verdicts(registry):
    standing = held(linear_contest(registry), SHORT, [], {}, rounds=2, told=silent)

    equal, dropping = (
        counted(standing.race, name)[0] for name in ("ours, equal protocol", "ours, dropping")
    )
    assert dropping.passes < equal.passes == 4 * (3 + 4)  # 3 steps, one last look
    assert torch.equal(dropping.robust, equal.robust)


def test_a_run_leaves_model_and_generators_as_it_found_them(registry):
    contest = network_contest(registry)
    before = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())  # noqa: NPY002
    contest.model[0].weight.requires_grad_(False)

    with as_found(contest):
        contest.model.train()
        contest.model.requires_grad_(True)
        contest.model(contest.samples.images).sum().backward()
        random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002

    after = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())  # noqa: NPY002
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])
    assert not any(module.training for module in contest.model.modules())
    assert all(parameter.grad is None for parameter in contest.model.parameters())
    assert not contest.model[0].weight.requires_grad


def test_every_run_draws_from_the_same_seed(registry):
    contest = linear_contest(registry)

    drawn = []
    for _ in range(2):
        with as_found(contest):
            drawn.append((random.random(), float(np.random.rand()), float(torch.rand(1))))  # noqa: NPY002

    assert drawn[0] == drawn[1]


def test_the_cost_of_a_call_is_measured_around_it():
    result, effort = gauged(lambda: torch.ones(3), torch.device("cpu"))

    assert result.tolist() == [1, 1, 1]
    assert effort.wall_seconds > 0
    assert effort.cpu_seconds >= 0


def test_the_share_of_the_peak_counts_passes_as_forward_passes():
    # 10^6 passes of 1,000 operations in 2 s are 0.5 GFLOP/s of the higher peak, 2 GFLOP/s
    assert SCALE.share(1_000_000, 2.0) == 0.25


def test_a_sweep_of_either_protocol_is_as_strong_as_separate_runs_for_fewer_passes(registry):
    contest = linear_contest(registry, gap=2.5 / 255)

    laps = swept(contest, SHORT, rounds=2, told=silent)

    last = {item.way: item for item in laps if item.number == 1}
    separate, nested, descending = (last[way.name] for way in WAYS)
    # the boundary is 2.5/255 away: fooled from 3/255 on
    expected = tuple(4 if radius < 2.5 / 255 else 0 for radius in GRID.values())
    assert separate.robust == nested.robust == descending.robust == expected
    assert separate.passes == 4 * 9 * (3 + 4)
    assert separate.passes > nested.passes > descending.passes
    assert gains(laps)[WAYS[0].name] == (1, 1, 1)


def test_an_unknown_name_gets_the_nearest_one():
    with pytest.raises(UsageError, match="--against 'fooldbox' is not known; did you mean"):
        chosen(["art", "fooldbox"], PEERS, "--against")


def conditions(registry, tmp_path):
    return Conditions(
        suite=find_suite("digits-linf", registry),
        place=Place(cache_dir=tmp_path, is_offline=True, limit=8),
        model="cnn/digits",
        weights="",
        num_images=8,
        epsilon="32/255",
        radius=32 / 255,
        device="cpu",
        seed=0,
        rounds=2,
        threads=1,
    )


def test_a_whole_comparison_with_art(registry, tmp_path):
    told = []

    found = measured(
        conditions(registry, tmp_path),
        registry,
        tasks=[TASKS["pgd-20"]],
        peers=[PEERS["art"], NOBODY],
        told=told.append,
    )

    [task] = found.document["tasks"]
    assert found.given_up == []
    assert [(item["peer"], item["ours"]) for item in task["comparisons"]][:2] == [
        ("art", "ours, equal protocol"),
        ("art", "ours, dropping"),
    ]
    assert all(len(item["robust"]) == 8 for item in task["laps"])
    assert max(item["largest_change"] for item in task["laps"]) <= 32 / 255 + 1e-6
    assert task["missing"]["nobody"] == "absent: pip install nobody"
    assert "warm-up: art" in "\n".join(told)


CALLS = [
    (name, task)
    for name, peer in PEERS.items()
    for task in ("pgd-20", "apgd-ce-50")
    if TASKS[task].kind in peer.adapters
]


@pytest.mark.parametrize(("name", "task"), CALLS)
def test_a_peer_stays_in_the_ball_and_leaves_our_images_alone(registry, name, task):
    pytest.importorskip(name, reason=f"{name} is not installed: {PEERS[name].install}")
    contest = network_contest(registry)
    before = contest.samples.images.clone()
    run = PEERS[name].adapters[TASKS[task].kind]

    with as_found(contest):
        images = run(contest, TASKS[task])

    assert images.shape == before.shape
    assert judged(contest, images).largest <= contest.epsilon + 1e-6
    assert float((images - before).abs().max()) > contest.epsilon / 2
    assert torch.equal(contest.samples.images, before)


@pytest.mark.parametrize(("name", "task"), CALLS)
def test_a_peer_draws_the_same_again(registry, name, task):
    pytest.importorskip(name, reason=f"{name} is not installed: {PEERS[name].install}")
    contest = network_contest(registry)
    run = PEERS[name].adapters[TASKS[task].kind]

    found = []
    for _ in range(2):
        with as_found(contest):
            found.append(run(contest, TASKS[task]))

    assert torch.equal(*found)
