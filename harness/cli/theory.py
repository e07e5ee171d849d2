"""`harness theory`: what theory says of mixtures of linear experts, worked out."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from harness.cli import options as opt
from harness.cli.output import print_json, print_table

HEADS = ["case", "bases", "epsilon 1", "epsilon 2", "left side", "right side", "norm ratio"]


def theory(
    experts: Annotated[
        int, typer.Option("--experts", help="Experts of the balanced case.", min=1)
    ] = 4,
    noise: Annotated[
        float, typer.Option("--noise", help="Noise on the inputs of a second case.", min=0)
    ] = 1e-3,
    cut: Annotated[
        float,
        typer.Option(
            "--cut",
            help="Share of the largest singular value below which one counts as noise.",
            min=0,
            max=0.99,
        ),
    ] = 0.1,
    seed: opt.SeedOption = 0,
    as_json: opt.JsonOption = False,
) -> None:
    """Show Theorem 1 and Lemma 1 of arXiv 2210.10253 on linear experts."""
    rows, lemma = _theorem(experts, noise, cut, seed), _lemma(seed)
    if as_json:
        print_json({"theorem_1": rows, "lemma_1": lemma})
        return
    print_table(
        HEADS,
        [[_text(value) for value in row.values()] for row in rows],
        title="Theorem 1: the squared norm of the joint solution (left) is at least the right side",
        caption="norm ratio: joint solution over the largest expert's; sqrt(experts) in balance",
    )
    print_table(
        ["two experts, gates of one half", "norm"],
        [[name.replace("_", " "), _text(value)] for name, value in lemma.items()],
        title="Lemma 1: what the moving gates add to the Jacobian of a soft mixture",
    )


def _theorem(experts: int, noise: float, cut: float, seed: int) -> list[dict[str, Any]]:
    from harness import theory as known

    exact = known.balanced_problem(experts, seed=seed)
    noisy = known.perturbed(exact, noise, seed=seed)
    mirrored = known.opposite_problem(seed=seed)
    spaces, eigen = known.subspace_bases, known.eigenvector_bases
    cases = [
        ("balanced", "row spaces", exact, spaces, known.TOLERANCE),
        ("balanced", "eigenvectors", exact, eigen, known.TOLERANCE),
        (f"noise {noise:g}", "eigenvectors", noisy, eigen, known.TOLERANCE),
        (f"noise {noise:g}, cut {cut:g}", "row spaces", noisy, spaces, cut),
        ("opposite", "eigenvectors", mirrored, eigen, known.TOLERANCE),
    ]
    rows = []
    for name, told, problem, bases, tolerance in cases:
        found = known.theorem_1(
            problem, bases(problem.inputs, tolerance=tolerance), tolerance=tolerance
        )
        rows.append(
            {
                "case": name,
                "bases": told,
                "epsilon_1": found.epsilon_1,
                "epsilon_2": found.epsilon_2,
                "left": found.left,
                "right": found.right,
                "ratio": found.ratio,
            }
        )
    return rows


def _lemma(seed: int) -> dict[str, float]:
    import numpy as np

    from harness.theory import lemma_1

    random = np.random.default_rng(seed)
    outputs, routers = random.normal(size=(2, 3)), random.normal(size=(2, 5))
    jacobians = random.normal(size=(2, 3, 5))
    slope = lemma_1(routers, outputs, jacobians, np.zeros(5))
    apart = [np.linalg.norm(pair[0] - pair[1]) for pair in (outputs, routers)]
    return {
        "router_term": float(np.linalg.norm(slope.router, 2)),
        "by_hand": float(apart[0] * apart[1] / 4),
        "experts_term": float(np.linalg.norm(slope.experts, 2)),
        "jacobian": float(np.linalg.norm(slope.jacobian, 2)),
    }


def _text(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"
