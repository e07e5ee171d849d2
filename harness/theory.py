"""What theory says of mixtures of linear experts: Lemma 1 and Theorem 1, as numbers.

Puigcerver et al., 2022, https://arxiv.org/abs/2210.10253; there is no official code for this part.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from harness.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

Array: TypeAlias = "NDArray[np.floating[Any]]"

TOLERANCE = 1e-9
"""Singular values below this share of the largest count as 0."""


class Problem(NamedTuple):
    """Least squares whose examples are split among experts by a fixed routing."""

    inputs: tuple[Array, ...]  # of each expert: (example, dimension)
    targets: tuple[Array, ...]  # of each expert: (example,)


class Norms(NamedTuple):
    """The two sides of Theorem 1, and what it is made of."""

    joint: Array  # (dimension,): least squares of all examples
    experts: Array  # (expert, dimension): of those of each expert
    epsilon_1: float  # how far the inverse on a basis is from that of the expert's examples
    epsilon_2: float  # how far the experts' examples share directions
    left: float  # the squared norm of the joint solution
    right: float  # what it is at least

    @property
    def ratio(self) -> float:
        """The joint solution's norm over the largest of the experts': its Lipschitz constants."""
        return float(np.linalg.norm(self.joint) / np.linalg.norm(self.experts, axis=1).max())


class Slope(NamedTuple):
    """Lemma 1 at one point: how a soft mixture changes with its input."""

    gates: Array  # (expert,)
    experts: Array  # (output, dimension): the experts' Jacobians, mixed
    router: Array  # (output, dimension): what the moving gates add

    @property
    def jacobian(self) -> Array:
        """The exact Jacobian of the mixture."""
        whole: Array = self.experts + self.router
        return whole


def lemma_1(routers: Array, outputs: Array, jacobians: Array, point: Array) -> Slope:
    """The Jacobian of `sum(softmax(S x)_i f_i(x))` and its two parts.

    It does not cover a choice of K experts, which jumps where two gates are equal.

    Args:
        routers: S, (expert, dimension).
        outputs: f_i at the point, (expert, output).
        jacobians: Of each expert at the point, (expert, output, dimension).
        point: x, (dimension,).
    """
    logits = routers @ point
    weights = np.exp(logits - logits.max())
    gates = weights / weights.sum()
    # E expert, C output, D dimension
    experts = np.einsum("e,ecd->cd", gates, jacobians)
    router = np.einsum("e,ec,ed->cd", gates, outputs, routers - gates @ routers)
    return Slope(gates, experts, router)


def theorem_1(problem: Problem, bases: Sequence[Array], *, tolerance: float = TOLERANCE) -> Norms:
    """Both sides of Theorem 1, its bracket corrected.

    The squared norm of w is at least the sum over experts of the squared positive part of
    `|w_i| - epsilon_1 |X'y| - epsilon_2 sum(|X_j'y_j| for j != i)`.

    Args:
        problem: Examples and their fixed routing.
        bases: Of each expert: orthonormal columns (dimension, rank), orthogonal to the others'.
        tolerance: Singular values of examples below this share of the largest are noise: without
            the cut, noise of 1e-3 makes both epsilons enormous and the bound 0.
    """
    inputs, targets = np.concatenate(problem.inputs), np.concatenate(problem.targets)
    whole = _inverse(inputs, tolerance)
    inverses = [_inverse(part, tolerance) for part in problem.inputs]
    moments = [part.T @ wanted for part, wanted in zip(*problem, strict=True)]
    solutions = np.stack(
        [inverse @ moment for inverse, moment in zip(inverses, moments, strict=True)]
    )
    joint = whole @ (inputs.T @ targets)
    epsilon_1 = max(
        _size(basis @ basis.T @ whole - inverse)
        for basis, inverse in zip(bases, inverses, strict=True)
    )
    epsilon_2 = _shared(problem.inputs, inverses, tolerance)
    lengths = np.array([np.linalg.norm(moment) for moment in moments])
    slack = epsilon_1 * np.linalg.norm(inputs.T @ targets)
    slack = slack + epsilon_2 * (lengths.sum() - lengths)
    kept = np.maximum(np.linalg.norm(solutions, axis=1) - slack, 0)
    return Norms(
        joint,
        solutions,
        epsilon_1,
        epsilon_2,
        left=float(joint @ joint),
        right=float(kept @ kept),
    )


def subspace_bases(inputs: Sequence[Array], *, tolerance: float = TOLERANCE) -> tuple[Array, ...]:
    """Orthogonal bases as near as can be to the row spaces of the experts' examples.

    Unlike the paper's eigenvectors they are well defined where eigenvalues are equal: the row
    spaces' own bases, made orthogonal all at once (Loewdin, 1950).

    Raises:
        UsageError: The row spaces share a direction, so that no such bases exist.
    """
    spans = [_span(part, tolerance) for part in inputs]
    left, sizes, right = np.linalg.svd(np.concatenate(spans, axis=1), full_matrices=False)
    count = sum(span.shape[1] for span in spans)
    if len(sizes) < count or sizes[-1] < np.sqrt(tolerance):
        raise UsageError(
            "the experts' examples share a direction, so that no orthogonal bases are near all; "
            "lower the noise, cut off more of it, or take eigenvector_bases"
        )
    ends = np.cumsum([span.shape[1] for span in spans])
    return tuple(np.split(left @ right, ends[:-1], axis=1))


def eigenvector_bases(
    inputs: Sequence[Array], *, tolerance: float = TOLERANCE
) -> tuple[Array, ...]:
    """The paper's bases: each eigenvector of X'X goes to the expert that it lies nearest to.

    Where eigenvalues are equal the eigenvectors are any of a space, may lie between the experts,
    and the bound comes to nothing: take `subspace_bases`.
    """
    vectors = _span(np.concatenate(list(inputs)), tolerance)
    near = [np.linalg.norm(_span(part, tolerance).T @ vectors, axis=0) for part in inputs]
    owner = np.argmax(np.stack(near), axis=0)
    return tuple(vectors[:, owner == expert] for expert in range(len(inputs)))


def balanced_problem(
    num_experts: int, *, rank: int = 3, examples: int = 8, seed: int = 0
) -> Problem:
    """Experts of equal norm whose examples share no direction.

    Theorem 1 is an equality there, and the joint solution is sqrt(experts) times as long as each
    expert's.

    Raises:
        UsageError: No experts, or more directions than examples.
    """
    if num_experts < 1 or not 1 <= rank <= examples:
        raise UsageError(f"{num_experts} experts of rank {rank} cannot be built; give 1 or more")
    random = np.random.default_rng(seed)
    frame, _ = np.linalg.qr(random.normal(size=(num_experts * rank, num_experts * rank)))
    rows, _ = np.linalg.qr(random.normal(size=(examples, rank)))
    wanted = rows @ random.normal(size=rank)
    parts = np.split(frame, num_experts, axis=1)
    return Problem(tuple(rows @ part.T for part in parts), (wanted,) * num_experts)


def perturbed(problem: Problem, size: float, *, seed: int = 0) -> Problem:
    """The same problem under noise on its inputs, of full rank."""
    random = np.random.default_rng(seed)
    noisy = tuple(part + size * random.normal(size=part.shape) for part in problem.inputs)
    return Problem(noisy, problem.targets)


def opposite_problem(*, rank: int = 3, examples: int = 8, seed: int = 0) -> Problem:
    """Two experts whose examples are each other's mirror image: together they learn nothing.

    X_1 = -X_2 with equal targets gives w = 0, whatever the experts' own norms are.
    """
    first = balanced_problem(1, rank=rank, examples=examples, seed=seed)
    [inputs], [targets] = first
    return Problem((inputs, -inputs), (targets, targets))


def _inverse(inputs: Array, tolerance: float) -> Array:
    """The pseudo-inverse of X'X, from the singular values of X that are no noise."""
    _, sizes, right = np.linalg.svd(inputs, full_matrices=False)
    kept = sizes > tolerance * sizes[0]
    inverse: Array = (right[kept].T / sizes[kept] ** 2) @ right[kept]
    return inverse


def _span(inputs: Array, tolerance: float) -> Array:
    """An orthonormal basis of the row space: (dimension, rank)."""
    _, sizes, right = np.linalg.svd(inputs, full_matrices=False)
    basis: Array = right[sizes > tolerance * sizes[0]].T
    return basis


def _shared(inputs: Sequence[Array], inverses: Sequence[Array], tolerance: float) -> float:
    """The largest action of an expert's inverse on the row space of another."""
    spans = [_span(part, tolerance) for part in inputs]
    found = [
        _size(inverse @ span)
        for one, inverse in enumerate(inverses)
        for other, span in enumerate(spans)
        if one != other
    ]
    return max(found, default=0.0)


def _size(matrix: Array) -> float:
    """The spectral norm."""
    return float(np.linalg.norm(matrix, 2)) if matrix.size else 0.0
