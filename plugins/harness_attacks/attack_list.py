"""The attacks: names, cards and every parameter."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.api import AttackCard, hookimpl

if TYPE_CHECKING:
    from harness.api import Parameters, Register

MADRY = "Madry et al., 2018, https://arxiv.org/abs/1706.06083"
CROCE = "Croce & Hein, 2020, https://arxiv.org/abs/2003.01690"
FAST_ADAPTIVE = "Croce & Hein, 2020, https://arxiv.org/abs/1907.02044"


def _passes(parameters: Parameters) -> int:
    """Forward passes of an image that survives all steps of all restarts."""
    steps, draws = int(parameters["steps"]), int(parameters["draws"])
    return int(parameters["restarts"]) * (steps + 1) * draws


ENSEMBLE = {"steps": 100, "targets": 9, "queries": 5000, "stop": "first"}
RANDOM = {"steps": 100, "draws": 20, "stop": "first", "version": "rand"}


def _autoattack_passes(parameters: Parameters) -> int:
    """Forward passes of an image that survives all parts, with the one that judges each part."""
    steps, targets = int(parameters["steps"]), int(parameters["targets"])
    plain, drawn, walked = steps + 1, 1 + targets * (steps + 1), 1 + 2 * targets * steps
    standard = 1 + plain + drawn + walked + int(parameters["queries"]) + 1 + 4
    if parameters["version"] == "standard":
        return standard
    return standard + 4 * plain + 5 * plain + (1 + 5 * 2 * targets * steps) + 2


@hookimpl
def register_attacks(register: Register) -> None:
    """Bring the controls, attacks of one objective with their presets, and rows of attacks."""
    register(
        "clean",
        "harness_attacks.controls:clean",
        card=AttackCard("The clean image itself: a control.", control=True, passes=lambda _: 0),
    )
    register(
        "noise",
        "harness_attacks.controls:noise",
        card=AttackCard(
            "A random image at distance epsilon: a control.", control=True, passes=lambda _: 0
        ),
    )
    register(
        "fgsm",
        "harness_attacks.fgsm:fgsm",
        card=AttackCard(
            "One full step along the gradient at the clean image.",
            source="Goodfellow et al., 2015, https://arxiv.org/abs/1412.6572",
            fidelity="exact",
            returns_last=True,
            passes=lambda _: 1,
        ),
    )
    register(
        "apgd-t",
        "harness_attacks.targeted:apgd_targeted",
        card=AttackCard(
            "AutoPGD on the targeted DLR loss, towards each of the 9 likeliest other classes.",
            source=CROCE,
            fidelity="exact",
            note="an image that is fooled leaves at once, which changes no verdict; the loss in "
            "the records is that of the ranking pass",
            passes=lambda chosen: 1 + int(chosen["targets"]) * (int(chosen["steps"]) + 1),
        ),
        defaults=TARGETED,
    )
    register(
        "fab",
        "harness_attacks.fab:fab",
        card=AttackCard(
            "Targeted FAB: the smallest perturbation, sought along the nearest boundaries.",
            source=f"{FAST_ADAPTIVE}, as the official code (fra31/auto-attack) has it",
            fidelity="exact",
            note="the targeted FAB-T of AutoAttack's standard version; an image that is fooled "
            "inside the ball leaves at once, which changes no verdict; the loss in the records "
            "is that of the ranking pass",
            passes=lambda chosen: (
                1 + 2 * int(chosen["restarts"]) * int(chosen["targets"]) * int(chosen["steps"])
            ),
        ),
        defaults=FAB,
    )
    register(
        "square",
        "harness_attacks.square:square",
        card=AttackCard(
            "Random search that repaints a square at a time: black-box, by the margin alone.",
            source="Andriushchenko et al., 2020, https://arxiv.org/abs/1912.00049, as the official "
            "code (fra31/auto-attack) has it",
            fidelity="repaired",
            note="squares reach the last row and column, as in the paper, where the official ones "
            "end one pixel short; each image has places and colours of its own, where the "
            "official code draws them once for the batch",
            objective="margin",
            passes=lambda chosen: int(chosen["restarts"]) * (int(chosen["queries"]) + 1),
        ),
        defaults=SQUARE,
    )
    _register_rows(register)
    for name, changes, card in _presets():
        register(name, "harness_attacks.pgd:pgd", card=card, defaults={**PGD, **changes})
    register(
        "apgd",
        "harness_attacks.apgd:apgd",
        card=AttackCard(
            "Projected gradient descent with momentum, whose steps halve where the loss stalls.",
            source=f"{CROCE}, as the official code (fra31/auto-attack) has it",
            fidelity="exact",
            note="an image that is fooled leaves the race at its first fooling iterate, where the "
            "official code returns the last, which changes no verdict",
            passes=_passes,
        ),
        defaults=APGD,
    )
    register(
        "apgd-100-vmoe",
        "harness_attacks.apgd:apgd",
        card=AttackCard(
            "AutoPGD with 100 steps on cross-entropy, from one random start.",
            source="the AutoPGD of arXiv 2210.10253",
            fidelity="inferred",
            note="the paper gives only the 100 steps: its code came from elsewhere and is not "
            "released, so loss, start and restarts are those of the official AutoPGD",
            passes=_passes,
        ),
        defaults=APGD,
    )


def _register_rows(register: Register) -> None:
    """Bring what calls other attacks."""
    for version, told in (
        ("standard", "AutoPGD on cross-entropy, targeted AutoPGD, targeted FAB, Square, in a row."),
        ("plus", "Five restarts of AutoPGD and FAB, then all parts of the standard version."),
    ):
        register(
            f"autoattack-{version}",
            "harness_attacks.autoattack:autoattack",
            card=AttackCard(
                told,
                source=f"{CROCE}; fra31/auto-attack, version {version!r}",
                fidelity="exact" if version == "standard" else "inferred",
                note="fooled images leave inside each part, which changes no verdict"
                + ("" if version == "standard" else "; its untargeted FAB is the targeted one"),
                passes=_autoattack_passes,
            ),
            defaults={**ENSEMBLE, "version": version},
        )
    register(
        "autoattack-rand",
        "harness_attacks.autoattack:autoattack",
        card=AttackCard(
            "AutoPGD on cross-entropy and on DLR, each pass the mean of 20: for random models.",
            source=f"{CROCE}; fra31/auto-attack, version 'rand'",
            fidelity="repaired",
            note="loss and verdict of a step are means too, where the official code averages the "
            "gradient alone and takes those of the last draw",
            passes=lambda chosen: (2 * (int(chosen["steps"]) + 2) * int(chosen["draws"])) + 1,
        ),
        defaults=RANDOM,
    )
    register(
        "worst-of",
        "harness_attacks.cascade:worst_of",
        card=AttackCard(
            "The worst case of a list of attacks, each on the images that the others left.",
            note='attacks = ["apgd", "apgd:dlr"]: names, with an objective where it is not the '
            "card's",
            members="attacks",
        ),
        defaults={"attacks": [], "stop": "first"},
    )
    _register_routed(register)


def _register_routed(register: Register) -> None:
    """Bring what forces the routes of a Mixture-of-Experts model."""
    register(
        "moe-battery",
        "harness_attacks.experts:moe_battery",
        card=AttackCard(
            "AutoPGD with the router detached, relaxed, and with each next likely expert forced, "
            "then steered to each; on a dense model restarts of equal cost.",
            passes=lambda chosen: (int(chosen["steps"]) + 3) * (5 + 4 * int(chosen["experts"])) + 3,
        ),
        defaults={"experts": 4, "steps": 50, "stop": "first"},
    )
    register(
        "forced-expert",
        "harness_attacks.experts:forced_expert",
        card=AttackCard(
            "AutoPGD with each expert forced in turn, judged with the routes that the model takes.",
            passes=lambda chosen: (2 * int(chosen["steps"]) + 3) * int(chosen["experts"]),
            needs_routes=True,
        ),
        defaults={"experts": 8, "steps": 50, "stop": "first"},
    )
    register(
        "steered",
        "harness_attacks.experts:steered",
        card=AttackCard(
            "Each expert's loss climbed inside the region where the router chooses it: for hard "
            "routers.",
            passes=lambda chosen: 3 * (int(chosen["steps"]) + 1) * int(chosen["experts"]),
            needs_routes=True,
        ),
        defaults={"experts": 8, "steps": 40, "init": "random", "stop": "first"},
    )


PGD = {
    "steps": 40,
    "relative_step_size": 0.1,
    "restarts": 1,
    "init": "random",
    "draws": 1,
    "stop": "first",
}

APGD = {
    "steps": 100,
    "restarts": 1,
    "rho": 0.75,
    "init": "random",
    "draws": 1,
    "stop": "first",
}


def _presets() -> list[tuple[str, dict[str, object], AttackCard]]:
    """Each preset of PGD: its name, what differs, its card."""
    plain: list[tuple[str, dict[str, object], AttackCard]] = [
        (
            f"pgd-{steps}",
            {"steps": steps, "relative_step_size": 0.25},
            AttackCard(
                f"PGD with {steps} steps of epsilon / 4 from a random start.",
                source=MADRY,
                fidelity="inferred",
                note="2/255 at epsilon 8/255, the step that the evaluations of RT-ER and AdvMoE "
                "share; they judge the last iterate, here the first that fools counts",
                passes=_passes,
                returns_last=True,
            ),
        )
        for steps in (10, 20, 50)
    ]
    return [
        (
            "pgd",
            {},
            AttackCard(
                "Projected gradient descent.",
                source=MADRY,
                fidelity="exact",
                note="an image that is fooled leaves the race, which changes no verdict",
                passes=_passes,
                returns_last=True,
            ),
        ),
        *plain,
        (
            "pgd-50-dual",
            {"steps": 49, "relative_step_size": 0.25, "init": "dark-corner"},
            AttackCard(
                "What the released code of RT-ER calls PGD-50: 49 steps of epsilon / 4 from the "
                "dark corner of the ball.",
                source="TIML-Group/Robust-MoE-Dual-Model at 30ef94d, attack/PGD.py "
                "(arXiv 2502.06832)",
                fidelity="exact",
                note="to compare with the paper's numbers alone, never to rank by: its random "
                "start always ends in clip(image - epsilon), which takes its first step; here the "
                "first fooling iterate counts, there the last",
                passes=_passes,
            ),
        ),
        (
            "pgd-40-vmoe",
            {"steps": 40, "relative_step_size": 1 / 40, "init": "clean"},
            AttackCard(
                "PGD with 40 steps of epsilon / 40 from the clean image.",
                source="google-research/vmoe, the attack of arXiv 2210.10253 (eq. 5)",
                fidelity="repaired",
                note="clipped to valid pixels, which the released code is not; any fooling "
                "iterate counts, not only the last",
                passes=_passes,
                returns_last=True,
            ),
        ),
    ]


FAB = {
    "steps": 100,
    "targets": 9,
    "restarts": 1,
    "alpha_max": 0.1,
    "eta": 1.05,
    "beta": 0.9,
    "init": "clean",
    "stop": "first",
}

SQUARE = {"queries": 5000, "p_init": 0.8, "restarts": 1, "init": "random", "stop": "first"}

TARGETED = {"steps": 100, "targets": 9, "rho": 0.75, "init": "random", "stop": "first"}
