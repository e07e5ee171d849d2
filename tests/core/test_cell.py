"""The one place where attacks are called and judged."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from harness.cell import Protocol, Setting, evaluate
from harness.errors import AttackError, ModelError
from harness.judging import BoundAttack, Defence
from harness.numerics import Batches
from harness.tensors import CleanObservation, Observation
from harness.testing import LinearModel, LinearMoE, linear_samples
from harness.threat import ThreatModel
from harness.views import View

GRID = {"0.05": 0.05, "0.2": 0.2}


def push(objective, images, labels, threat, *, noise):
    """The exact worst case of LinearModel: all pixels down."""
    return (images - threat.epsilon).clamp(0, 1)


def stay(objective, images, labels, threat, *, noise):
    return images


def setting(attack=push, protocol="nested", model=None, **changes):
    return Setting(
        defence=Defence(model or LinearModel(), Batches(64)),
        attacks=[BoundAttack("attack", attack, lambda outcome: -outcome.margin, {})],
        threats={text: ThreatModel("linf", value) for text, value in GRID.items()},
        protocol=Protocol(protocol),
        seed=0,
    )


def probing(whole, probe):
    defence = dataclasses.replace(whole.defence, probes=[probe])
    return dataclasses.replace(whole, defence=defence)


def wrong(count=1):
    """Samples of which the first few have the wrong label."""
    samples = linear_samples(4)
    labels = samples.labels.clone()
    labels[:count] = 0
    return samples._replace(labels=labels)


def by_epsilon(findings, epsilon):
    return [record for record in findings.records if record.epsilon == epsilon]


def test_an_image_is_fooled_exactly_where_the_boundary_is_within_reach():
    findings = evaluate(setting(), linear_samples(4, gap=0.1))

    assert [record.is_robust for record in by_epsilon(findings, "0.05")] == [True] * 4
    assert [record.is_robust for record in by_epsilon(findings, "0.2")] == [False] * 4


def test_records_come_sample_by_sample_in_the_order_of_the_grid():
    findings = evaluate(setting(), linear_samples(2))

    assert [(record.sample, record.epsilon) for record in findings.records] == [
        (0, "0.05"), (0, "0.2"), (1, "0.05"), (1, "0.2"),
    ]  # fmt: skip


def test_a_record_holds_margins_norm_and_predictions():
    record = evaluate(setting(), linear_samples(1, gap=0.1)).records[0]

    # mean 0.6: margin 2 * 0.1; after 0.05 down: 2 * 0.05
    assert record.clean_margin == pytest.approx(0.2, abs=1e-6)
    assert record.adversarial_margin == pytest.approx(0.1, abs=1e-6)
    assert record.norm == pytest.approx(0.05, abs=1e-6)
    assert (record.clean_prediction, record.adversarial_prediction) == (1, 1)


def test_clean_errors_are_never_attacked_and_never_robust():
    record = evaluate(setting(), wrong()).records[0]

    assert record.flags == ("clean-error",)
    assert record.norm == 0
    assert not record.is_robust


def test_independent_attacks_clean_errors_too():
    record = evaluate(setting(protocol="independent"), wrong()).records[0]

    assert record.flags == ("clean-error",)
    assert record.norm > 0


def test_nested_carries_a_fooled_image_to_larger_epsilons():
    seen = []

    def spy(objective, images, labels, threat, *, noise):
        seen.append((threat.epsilon, len(images)))
        return push(objective, images, labels, threat, noise=noise)

    findings = evaluate(setting(spy), linear_samples(3, gap=0.01))

    assert seen == [(0.05, 3)]
    last = by_epsilon(findings, "0.2")[0]
    assert last.flags == ("carried",)
    assert last.forwards == 0
    assert not last.is_robust


def test_independent_attacks_every_image_at_every_epsilon():
    seen = []

    def spy(objective, images, labels, threat, *, noise):
        seen.append(len(images))
        return push(objective, images, labels, threat, noise=noise)

    evaluate(setting(spy, "independent"), linear_samples(3, gap=0.01))

    assert seen == [3, 3]


def test_descending_takes_a_survivor_of_a_larger_epsilon_as_robust_below():
    findings = evaluate(setting(stay, "descending"), linear_samples(2))

    assert [record.flags for record in by_epsilon(findings, "0.05")] == [("carried",)] * 2
    assert all(record.is_robust for record in findings.records)


def outside(objective, images, labels, threat, *, noise):
    return images - 1.5 * threat.epsilon


def broken_pixels(objective, images, labels, threat, *, noise):
    return images * float("nan")


def shorter(objective, images, labels, threat, *, noise):
    return images[:-1] if len(images) > 1 else images[:0]


def no_tensor(objective, images, labels, threat, *, noise):
    return None


def raising(objective, images, labels, threat, *, noise):
    raise ValueError("no gradient for me")


@pytest.mark.parametrize(
    ("attack", "reason"),
    [
        (outside, "outside the ball"),
        (broken_pixels, "NaN or infinite pixels"),
        (shorter, "not torch.float32"),
        (no_tensor, "returned NoneType"),
        (raising, "ValueError: no gradient for me"),
    ],
)
def test_an_attack_that_cheats_or_raises_becomes_a_failed_record(attack, reason):
    record = evaluate(setting(attack), linear_samples(2)).records[0]

    assert record.flags == ("failed",)
    assert reason in record.reason
    assert record.adversarial_prediction is None
    assert record.is_robust


def test_one_image_that_makes_an_attack_raise_does_not_fail_the_others():
    def picky(objective, images, labels, threat, *, noise):
        if 2 in noise.samples.tolist():
            raise RuntimeError("not this one")
        return push(objective, images, labels, threat, noise=noise)

    findings = evaluate(setting(picky), linear_samples(4, gap=0.01))

    failed = [record.sample for record in findings.records if "failed" in record.flags]
    assert failed == [2, 2]
    assert [record.is_robust for record in by_epsilon(findings, "0.2")] == [
        False,
        False,
        True,
        False,
    ]


def test_passes_of_an_attack_that_raised_are_not_counted_twice():
    def stumbling(objective, images, labels, threat, *, noise):
        objective.gradient(images)
        if len(images) > 1:
            raise RuntimeError("too many")
        return images

    findings = evaluate(setting(stumbling), linear_samples(2))

    assert [record.forwards for record in findings.records] == [1, 1, 1, 1]


def test_images_on_which_the_model_is_nan_stop_the_model_before_any_attack():
    class Fragile(nn.Module):
        def forward(self, images):
            logits = LinearModel()(images)
            return torch.where(images.mean(dim=(1, 2, 3))[:, None] > 0.7, float("nan"), logits)

    bright = linear_samples(3)
    bright.images[1] = 0.9

    with pytest.raises(ModelError, match="clean image 1 "):
        evaluate(setting(model=Fragile()), bright)


def test_an_adversarial_image_on_which_the_model_is_nan_is_a_failed_record():
    class Fragile(nn.Module):
        def forward(self, images):
            logits = LinearModel()(images)
            return torch.where(images.mean(dim=(1, 2, 3))[:, None] < 0.58, float("nan"), logits)

    record = evaluate(setting(model=Fragile()), linear_samples(1)).records[0]

    assert "NaN" in record.reason
    assert record.adversarial_margin is None


def test_probes_measure_what_was_attacked():
    def shift(observation: Observation):
        difference = observation.adversarial_images - observation.clean_images
        return {"shift": difference.flatten(1).mean(dim=1)}

    measured = probing(setting(), shift)

    records = evaluate(measured, wrong()).records

    assert records[0].measures == {}
    assert records[2].measures["shift"] == pytest.approx(-0.05, abs=1e-6)


def seen_by_a_probe(**changes):
    """What a probe is given of an attack on a routed model."""
    seen = []

    def watch(observation: Observation):
        seen.append(observation)
        return {}

    evaluate(probing(setting(model=LinearMoE(), **changes), watch), linear_samples(3))
    return seen


def test_a_probe_is_given_the_routes_of_clean_and_of_attacked_images():
    observation = seen_by_a_probe()[-1]

    for images, [routing] in (
        (observation.clean_images, observation.clean_routes),
        (observation.adversarial_images, observation.adversarial_routes),
    ):
        assert torch.equal(routing.experts, LinearMoE().routed(images).routes[0].experts)


def test_a_part_that_is_attacked_alone_has_the_routes_of_the_whole_model():
    whole = setting(model=LinearMoE())
    [attack] = whole.attacks
    observations = []

    def watch(observation: Observation):
        observations.append(observation)
        return {}

    view = probing(
        dataclasses.replace(whole, attacks=[attack._replace(view=View("experts"))]), watch
    )
    evaluate(view, linear_samples(3, gap=0.15))

    # 0.15 above grey goes to the first expert; 0.2 darker, below grey, to the last
    [clean], [attacked] = observations[-1].clean_routes, observations[-1].adversarial_routes
    assert clean.experts.unique().tolist() == [0]
    assert attacked.experts.unique().tolist() == [2]


def test_the_noise_of_probes_is_the_same_at_every_epsilon():
    first, second = (observation.noise.uniform(0) for observation in seen_by_a_probe())

    assert torch.equal(first, second)


def test_every_record_carries_what_was_measured_on_its_clean_image():
    def brightness(observation: CleanObservation):
        radius = torch.full((len(observation.samples.ids),), observation.threat.epsilon)
        return {"brightness": observation.samples.images.flatten(1).mean(dim=1), "radius": radius}

    chosen = setting()
    defence = dataclasses.replace(chosen.defence, clean_probes=[brightness])
    samples = wrong()

    records = evaluate(dataclasses.replace(chosen, defence=defence), samples).records

    expected = dict(
        zip(samples.ids.tolist(), samples.images.flatten(1).mean(dim=1).tolist(), strict=True)
    )
    largest = max(threat.epsilon for threat in chosen.threats.values())
    assert [record.measures["brightness"] for record in records] == pytest.approx(
        [expected[record.sample] for record in records]
    )
    radii = [record.measures["radius"] for record in records]
    assert radii == pytest.approx([largest] * len(records))


def test_an_image_fares_the_same_alone_and_in_a_shard(registry):
    run = registry.find("attacks", "pgd").load()
    chosen = dataclasses.replace(
        setting(), attacks=[BoundAttack("pgd", run, lambda o: -o.margin, {"steps": 3})]
    )
    samples = linear_samples(5)

    together = evaluate(chosen, samples)
    alone = evaluate(chosen, samples.rows(torch.tensor([3])))

    assert [record for record in together.records if record.sample == 3] == alone.records


def test_what_the_attack_is_given_cannot_change_the_clean_images():
    def vandal(objective, images, labels, threat, *, noise):
        return images.sub_(threat.epsilon)

    samples = linear_samples(2)

    evaluate(setting(vandal), samples)

    assert torch.equal(samples.images, linear_samples(2).images)


def test_an_image_is_fooled_only_when_no_accepted_class_is_left():
    samples = linear_samples(4)
    accepted = torch.tensor([[False, True], [True, True], [False, True], [True, True]])

    findings = evaluate(setting(), samples._replace(accepted=accepted))

    records = by_epsilon(findings, "0.2")
    assert [record.is_robust for record in records] == [False, True, False, True]
    assert [record.labels for record in records] == [(1,), (0, 1), (1,), (0, 1)]


def test_an_attack_runs_only_at_its_own_epsilons():
    everywhere = setting()
    once = everywhere.attacks[0]._replace(label="once", epsilons=("0.05",))
    both = dataclasses.replace(everywhere, attacks=[*everywhere.attacks, once])

    records = evaluate(both, linear_samples(2)).records

    assert [(record.attack, record.epsilon) for record in records[:3]] == [
        ("attack", "0.05"),
        ("attack", "0.2"),
        ("once", "0.05"),
    ]


def test_an_attack_that_was_asked_for_the_impossible_stops_the_run():
    def impossible(objective, images, labels, threat, *, noise):
        raise AttackError("init 'rnadom' is not known")

    with pytest.raises(AttackError, match="rnadom"):
        evaluate(setting(impossible), linear_samples(2))
