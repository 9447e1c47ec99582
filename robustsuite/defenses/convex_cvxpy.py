"""The convex programs handed to CVXPY: exact to the solver's tolerance, for small ones."""

import importlib.util
from typing import Any

import torch
from torch import Tensor

from robustsuite.defenses.convex_program import Loss, Program
from robustsuite.errors import PrerequisiteError, RobustsuiteError


def installed() -> bool:
    """Whether CVXPY can be imported."""
    return importlib.util.find_spec("cvxpy") is not None


def solve(program: Program) -> tuple[Tensor, Tensor]:
    """The v and w ``[P,d+1]`` that minimise ``program``; raises `PrerequisiteError` without CVXPY."""
    cp = _cvxpy()
    rows, half, patterns = (t.numpy() for t in (program.cells.rows, program.cells.half, program.patterns))
    shape = (patterns.shape[1], rows.shape[1])
    v, w = cp.Variable(shape), cp.Variable(shape)
    linear = patterns @ (v - w)
    answers = cp.sum(cp.multiply(rows, linear), axis=1)
    reach = cp.sum(cp.multiply(half, cp.abs(linear[:, :-1])), axis=1)
    penalty = cp.sum(cp.norm(v, 2, axis=1)) + cp.sum(cp.norm(w, 2, axis=1))
    sides = 2 * patterns - 1
    kept = [cp.multiply(sides, rows @ z.T) >= half @ cp.abs(z[:, :-1].T) for z in (v, w)]
    _minimise(cp, _risk(cp, program.loss, program.y.numpy(), answers, reach) + program.beta * penalty, kept)
    return torch.from_numpy(v.value), torch.from_numpy(w.value)


def solve_sampled(features: Tensor, y: Tensor, loss: Loss, beta: float) -> Tensor:
    """The weights a ``[m]`` that minimise ``mean_k loss(features_k . a, y_k) + beta |a|_1``."""
    cp = _cvxpy()
    weights = cp.Variable(features.shape[1])
    risk = _risk(cp, loss, y.numpy(), features.numpy() @ weights, 0)
    _minimise(cp, risk + beta * cp.norm1(weights), [])
    return torch.from_numpy(weights.value)


def _risk(cp: Any, loss: Loss, y: Any, answers: Any, reach: Any) -> Any:
    """The mean of `convex_program.losses`."""
    short = reach - cp.multiply(y, answers)
    if loss == "hinge":
        return cp.sum(cp.pos(1 + short)) / len(y)
    if loss == "logistic":
        return cp.sum(cp.logistic(short)) / len(y)
    return cp.sum_squares(cp.abs(answers - y) + reach) / (2 * len(y))


def _minimise(cp: Any, objective: Any, constraints: list[Any]) -> None:
    problem = cp.Problem(cp.Minimize(objective), constraints)
    problem.solve(solver=cp.CLARABEL)
    if problem.status not in (cp.OPTIMAL, cp.OPTIMAL_INACCURATE):
        raise RobustsuiteError(f"the solver ends with '{problem.status}'; rescale beta, or take solver=admm.")


def _cvxpy() -> Any:
    try:
        import cvxpy
    except ImportError as error:
        raise PrerequisiteError(
            f"solver=cvxpy needs CVXPY ({error}): pip install 'robustsuite[convex]', or take solver=admm."
        ) from error
    return cvxpy
