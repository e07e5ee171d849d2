"""Lemma 1 and Theorem 1: golden numbers, exact cases, and inequalities that never fail."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from golden_files import golden_arrays
from harness.errors import UsageError
from harness.theory import (
    Problem,
    balanced_problem,
    eigenvector_bases,
    lemma_1,
    opposite_problem,
    perturbed,
    subspace_bases,
    theorem_1,
)
from harness_vmoe.dispatch import einsum
from harness_vmoe.moe import SparseMlp, Sparsity, Steering


def problem_of(arrays, case):
    return Problem(tuple(arrays[f"{case}_Xs"]), tuple(arrays[f"{case}_ys"]))


def norm(matrix):
    return float(np.linalg.norm(matrix, 2))


@pytest.mark.parametrize(
    ("case", "bases"),
    [("A", subspace_bases), ("B", eigenvector_bases)],
    ids=["orthogonal", "rotated"],
)
def test_gives_the_reference_numbers(case, bases):
    arrays = golden_arrays("vmoe", "theory_numpy.npz")
    problem = problem_of(arrays, case)

    found = theorem_1(problem, bases(problem.inputs))

    assert np.allclose(found.joint, arrays[f"{case}_w"], atol=1e-12)
    assert np.allclose(found.experts, arrays[f"{case}_wi"], atol=1e-12)
    assert found.epsilon_1 == pytest.approx(float(arrays[f"{case}_e1"]), abs=1e-12)
    assert found.epsilon_2 == pytest.approx(float(arrays[f"{case}_e2"]), abs=1e-12)
    assert found.left == pytest.approx(float(arrays[f"{case}_lhs"]), rel=1e-11)
    assert found.right == pytest.approx(float(arrays[f"{case}_rhs"]), rel=1e-9)


def test_gives_the_reference_jacobian():
    arrays = golden_arrays("vmoe", "theory_numpy.npz")
    outputs = arrays["L_W"] @ arrays["L_x"] + arrays["L_b"]

    found = lemma_1(arrays["L_S"], outputs, arrays["L_W"], arrays["L_x"])

    assert np.allclose(found.gates, arrays["L_p"], atol=1e-14)
    assert np.allclose(found.jacobian, arrays["L_J"], atol=1e-13)
    assert np.allclose(found.router, arrays["L_term2"], atol=1e-13)


def test_bases_of_row_spaces_are_those_of_the_reference():
    arrays = golden_arrays("vmoe", "theory_numpy.npz")

    found = subspace_bases(tuple(arrays["A_Xs"]))

    for basis, wanted in zip(found, arrays["A_U"], strict=True):
        assert np.allclose(basis @ basis.T, wanted @ wanted.T, atol=1e-13)


@pytest.mark.parametrize("count", [1, 2, 4, 9])
def test_in_balance_the_joint_solution_is_longer_by_the_root_of_the_experts(count):
    problem = balanced_problem(count)

    found = theorem_1(problem, subspace_bases(problem.inputs))

    assert found.ratio == pytest.approx(count**0.5, abs=1e-13)
    assert found.left == pytest.approx(found.right)
    assert max(found.epsilon_1, found.epsilon_2) < 1e-13


def test_repeated_eigenvalues_break_the_papers_bases_and_not_ours():
    problem = balanced_problem(4)

    papers = theorem_1(problem, eigenvector_bases(problem.inputs))

    assert papers.epsilon_1 > 0.1
    assert papers.right < papers.left / 2


def test_noise_that_is_not_cut_off_makes_the_bound_empty():
    problem = perturbed(balanced_problem(4), 1e-3)

    whole = theorem_1(problem, eigenvector_bases(problem.inputs))
    cut = theorem_1(problem, subspace_bases(problem.inputs, tolerance=0.1), tolerance=0.1)

    assert whole.epsilon_1 > 1e5
    assert whole.right == 0
    assert cut.right > 0.9 * cut.left


def test_opposite_experts_learn_nothing_together():
    problem = opposite_problem()

    found = theorem_1(problem, eigenvector_bases(problem.inputs))

    assert np.linalg.norm(found.experts, axis=1).min() > 0.1
    assert found.left == pytest.approx(0, abs=1e-25)
    assert found.right == 0


def test_experts_that_share_a_direction_have_no_bases_of_their_own():
    with pytest.raises(UsageError, match=r"share a direction.*take eigenvector_bases"):
        subspace_bases(opposite_problem().inputs)


@pytest.mark.parametrize(("count", "rank"), [(0, 3), (2, 0), (2, 9)])
def test_problems_that_cannot_be_built_are_refused(count, rank):
    with pytest.raises(UsageError, match="cannot be built"):
        balanced_problem(count, rank=rank)


def test_bases_are_orthonormal_and_orthogonal_to_each_other():
    frame = np.concatenate(
        subspace_bases(perturbed(balanced_problem(4), 0.01).inputs, tolerance=0.1), 1
    )

    assert np.allclose(frame.T @ frame, np.eye(12), atol=1e-13)


def turned_at_random(seed, size, bases):
    """The theorem on experts that are turned towards each other, their targets random."""
    random = np.random.default_rng(seed)
    exact = balanced_problem(3, seed=seed)
    turned = [part @ (np.eye(9) + size * random.normal(size=(9, 9))) for part in exact.inputs]
    problem = Problem(tuple(turned), tuple(random.normal(size=(3, 8))))
    return theorem_1(problem, bases(problem.inputs))


@pytest.mark.parametrize("bases", [subspace_bases, eigenvector_bases])
@pytest.mark.parametrize("size", [0.0, 1e-4, 1e-2, 0.1])
def test_the_left_side_is_never_below_the_right(bases, size):
    found = [turned_at_random(seed, size, bases) for seed in range(25)]

    assert not any(sides.right > sides.left * (1 + 1e-9) for sides in found)


def test_the_jacobian_is_that_of_autograd_on_a_soft_layer():
    torch.manual_seed(0)
    layer = SparseMlp(6, 8, Sparsity(4, 2)).double().eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter))
    token = torch.randn(6, dtype=torch.float64)
    everyone = torch.arange(4)[None]

    def mixed(token):
        return layer(token.view(1, 1, 6), Steering(relaxed=True)).tokens.flatten()

    def apart(token):
        return einsum(layer.experts, token[None], everyone)[0]

    found = lemma_1(
        layer.router.dense.weight.detach().numpy(),
        apart(token).detach().numpy(),
        torch.autograd.functional.jacobian(apart, token).numpy(),
        token.numpy(),
    )

    exact = torch.autograd.functional.jacobian(mixed, token).numpy()
    assert np.abs(found.jacobian - exact).max() < 1e-9
    assert norm(found.router) > 0.01


def lemma_at_random(seed, point_size=1.0, experts=3):
    random = np.random.default_rng(seed)
    routers, jacobians = random.normal(size=(experts, 5)), random.normal(size=(experts, 2, 5))
    point, offsets = point_size * random.normal(size=5), random.normal(size=(experts, 2))
    return routers, jacobians @ point + offsets, jacobians, point


def slack_at_random(seed):
    """How far the Jacobian's norm is below the sum of what bounds it."""
    routers, outputs, jacobians, point = lemma_at_random(seed)
    found = lemma_1(routers, outputs, jacobians, point)
    mixed = sum(gate * norm(own) for gate, own in zip(found.gates, jacobians, strict=True))
    return mixed + norm(found.router) - norm(found.jacobian)


def test_the_jacobian_is_bounded_by_its_two_parts():
    slack = [slack_at_random(seed) for seed in range(200)]

    assert min(slack) >= -1e-12


def test_a_constant_that_all_experts_add_leaves_the_routers_part():
    routers, outputs, jacobians, point = lemma_at_random(1)

    plain, shifted = (
        lemma_1(routers, outputs + constant, jacobians, point) for constant in (0.0, 7.0)
    )

    assert np.allclose(shifted.router, plain.router, atol=1e-12)


def test_of_two_experts_with_equal_gates_the_routers_part_is_a_quarter_of_both_distances():
    routers, outputs, jacobians, _ = lemma_at_random(2, experts=2)

    found = lemma_1(routers, outputs, jacobians, np.zeros(5))

    # p = 1/2 each: R = 1/4 (f_1 - f_2) (s_1 - s_2)'
    wanted = np.outer(outputs[0] - outputs[1], routers[0] - routers[1]) / 4
    assert np.allclose(found.router, wanted)


def test_far_from_the_boundary_the_routers_part_vanishes():
    routers, outputs, jacobians, point = lemma_at_random(3, point_size=1000)

    assert norm(lemma_1(routers, outputs, jacobians, point).router) < 1e-100


def test_the_command_shows_the_root_of_the_experts(harness):
    done = harness("theory", "--experts", 9, "--json")

    content = json.loads(done.out)
    first, papers, noisy, cut, opposite = content["theorem_1"]
    assert first["ratio"] == pytest.approx(3)
    assert first["right"] == pytest.approx(first["left"])
    assert papers["epsilon_1"] > 0.1
    assert (noisy["right"], opposite["right"]) == (0, 0)
    assert cut["right"] > 0.5 * cut["left"]
    assert content["lemma_1"]["router_term"] == pytest.approx(content["lemma_1"]["by_hand"])


def test_the_command_prints_both_tables(harness):
    done = harness("theory")

    assert done.code == 0, done.err
    assert "Theorem 1" in done.out
    assert "Lemma 1" in done.out
