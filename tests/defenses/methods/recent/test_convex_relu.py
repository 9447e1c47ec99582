"""Convex training: the programs against brute force, CVXPY and gradient descent, and the network that comes of them."""

import itertools
import sys
from math import comb
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustsuite.data.dataset import Dataset
from robustsuite.defenses import convex_admm, convex_cvxpy
from robustsuite.defenses.convex_patterns import holds, sample_patterns
from robustsuite.defenses.convex_program import LOSSES, Cells, Loss, Program, losses
from robustsuite.defenses.convex_prox import lower_loss, ordered, shrink_rows, under
from robustsuite.defenses.convex_recovery import neurons, write_into
from robustsuite.defenses.convex_relu import ConvexReLU
from robustsuite.defenses.convex_sampled import sample_neurons, solve_sampled
from robustsuite.errors import InputError, PrerequisiteError, UsageError
from robustsuite.models.sidecar import find_sidecar
from robustsuite.noise import Noise
from robustsuite.registry import DEFENSES
from robustsuite.testing.fit_method import _Bench
from robustsuite.testing.toys import toy_data
from robustsuite.threat import ThreatModel
from robustsuite.training.checkpoint import save_trained
from robustsuite.training.loop import train
from robustsuite.training.trained import Trained

needs_cvxpy = pytest.mark.skipif(not convex_cvxpy.installed(), reason="CVXPY is not installed")

TURNS = 2 * torch.pi * torch.arange(5).double() / 5
AROUND = torch.cat([torch.stack([TURNS.cos(), TURNS.sin()], 1), torch.tensor([[0.05, 0.02]]).double()])
PENTAGON = Cells(AROUND, torch.zeros_like(AROUND))
"""Five points around a sixth."""


def checkerboard(n: int) -> tuple[Tensor, Tensor]:
    """Points of the unit square, labelled by the quarters that they lie in: no linear network is right."""
    x = Noise(0, "square").at(torch.arange(n)).uniform((2,)).double()
    return x, torch.where(((x - 0.5) > 0).sum(1) == 1, -1.0, 1.0).double()


def made(loss: Loss, eps: float, n: int = 16, patterns: int = 16, beta: float = 1e-3) -> Program:
    x, y = checkerboard(n)
    cells = Cells.around(x, eps)
    return Program(cells, y, sample_patterns(cells, patterns, Noise(0, "patterns")), loss, beta)


def network(v: Tensor, w: Tensor, width: int = 64) -> nn.Sequential:
    d = v.shape[1] - 1
    module = nn.Sequential(nn.Flatten(), nn.Linear(d, width), nn.ReLU(), nn.Linear(width, 2)).double()
    write_into(module, *neurons(v, w))
    return module


def answers(module: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        logits = module(x)
    assert bool((logits[:, 0] == 0).all())
    return logits[:, 1]


def by_hand(module: nn.Module, program: Program, slack: float = 1e-6) -> float:
    """The mean of the largest loss at any corner of each cell, and at 200 points inside of it."""
    cells, n, d = program.cells, len(program.y), program.cells.centre.shape[1]
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=d))).double()
    inside = 2 * Noise(1, "inside").at(torch.arange(200)).uniform((d,)).double() - 1
    found = []
    for sign in (signs, inside):
        x = cells.centre.unsqueeze(1) + sign * cells.half.unsqueeze(1)
        f = answers(module, x.view(-1, d)).view(n, -1)
        y = program.y.unsqueeze(1).expand_as(f)
        found.append(losses(program.loss, y, f, torch.zeros_like(f)).amax(1))
    assert bool((found[1] <= found[0] + slack).all())
    return float(found[0].mean())


def test_a_ball_within_the_box_is_a_cell():
    x = torch.tensor([[0.02, 0.5, 1.0]])
    cells = Cells.around(x, 0.1)
    torch.testing.assert_close(cells.centre, torch.tensor([[0.06, 0.5, 0.95]]).double())
    torch.testing.assert_close(cells.half, torch.tensor([[0.06, 0.1, 0.05]]).double())
    assert torch.equal(Cells.around(x, 0.0).centre, x.double())


def test_all_patterns_of_a_few_points_are_found():
    """As many as Cover's theorem says, without the one that is off everywhere."""
    n, d = 6, 2
    patterns = sample_patterns(PENTAGON, 200, Noise(0, "p"))
    assert patterns.shape == (n, 2 * sum(comb(n - 1, k) for k in range(d + 1)) - 1)
    assert len(patterns.T.unique(dim=0)) == patterns.shape[1]
    assert bool(patterns[:, 0].all())
    assert torch.equal(sample_patterns(PENTAGON, 5, Noise(0, "p")), patterns[:, :5])


def test_robust_patterns_are_those_that_a_line_between_the_cells_has():
    x = torch.tensor([[0.2, 0.2], [0.8, 0.8], [0.2, 0.8], [0.8, 0.2]])
    on = torch.tensor([True, True, False, False])
    assert not holds(Cells.around(x, 0.0), on)  # the exclusive or
    half = torch.tensor([True, False, True, False])
    assert holds(Cells.around(x, 0.29), half)
    assert not holds(Cells.around(x, 0.31), half)
    assert sample_patterns(Cells.around(x, 0.31), 8, Noise(0, "p")).shape == (4, 1)
    clean, wide = (sample_patterns(Cells.around(x, eps), 40, Noise(0, "p")).shape[1] for eps in (0.0, 0.1))
    assert clean == wide == 13


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("width", [0.0, 0.15])
def test_the_proximal_map_of_the_worst_loss_is_its_minimum(loss, width):
    n, d = 40, 4
    draw = Noise(3, "prox").at(torch.arange(n))
    q, rows = (draw.normal((d,), draw=k).double() for k in (0, 1))
    half = width * draw.uniform((d,), draw=2).double()
    y = torch.where(draw.uniform((), draw=3) < 0.5, -1.0, 1.0).double()

    def value(g: Tensor) -> Tensor:
        worst = losses(loss, y, (rows * g).sum(1), (half * g.abs()).sum(1))
        return 0.7 * worst + (g - q).square().sum(1) / 2

    g = lower_loss(loss, q, rows, half, y, 0.7)
    for scale in (1e-1, 1e-3, 1e-5):
        for k in range(20):
            other = g + scale * draw.normal((d,), draw=10 + k).double()
            assert bool((value(other) >= value(g) - 1e-9).all())


def test_the_other_proximal_maps():
    z = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
    torch.testing.assert_close(shrink_rows(z, 1.0), torch.tensor([[2.4, 3.2], [0.0, 0.0]]))
    size, bound = torch.tensor([1.0, -3.0, 1.0, -1.0]), torch.tensor([2.0, 1.0, -4.0, -0.5])
    moved = under(size, bound)
    torch.testing.assert_close(torch.stack(moved), torch.tensor([[1.0, -2.0, 0.0, -0.25], [2.0, 2.0, 0.0, 0.25]]))
    up, low = ordered(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 2.0]))
    assert (up.tolist(), low.tolist()) == ([1.5, 3.0], [1.5, 2.0])


@needs_cvxpy
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("eps", [0.0, 0.05, 0.1])
def test_the_optimum_is_the_adversarial_loss_of_the_network(loss, eps):
    program = made(loss, eps)
    v, w = convex_cvxpy.solve(program)
    module = network(v, w)
    assert program.violation(v, w) < 1e-6
    assert by_hand(module, program) == pytest.approx(float(program.risk(v, w)), abs=1e-5)
    first, last = module[1], module[3]
    decay = sum(float(p.detach().square().sum()) for p in (first.weight, first.bias, last.weight)) / 2  # type: ignore[union-attr,operator]
    assert program.beta * decay == pytest.approx(program.objective(v, w) - float(program.risk(v, w)), rel=1e-6)


@needs_cvxpy
@pytest.mark.parametrize("loss", LOSSES)
def test_the_optimum_rises_with_eps(loss):
    """With the patterns that the largest ball leaves."""
    x, y = checkerboard(16)
    patterns = sample_patterns(Cells.around(x, 0.08), 16, Noise(0, "patterns"))
    found = []
    for eps in (0.0, 0.02, 0.04, 0.08):
        program = Program(Cells.around(x, eps), y, patterns, loss, 1e-3)
        found.append(program.objective(*convex_cvxpy.solve(program)))
    assert all(a < b for a, b in itertools.pairwise(found))


@needs_cvxpy
@pytest.mark.parametrize("loss", ["hinge", "logistic"])
def test_gradient_descent_finds_nothing_better_than_the_optimum(loss):
    """With all patterns of the points it is global; descent over wide networks comes near, from above."""
    y = torch.tensor([1.0, -1, 1, -1, -1, 1]).double()
    program = Program(PENTAGON, y, sample_patterns(PENTAGON, 200, Noise(0, "p")), loss, 0.02)
    assert program.patterns.shape[1] == 31
    optimum = program.objective(*convex_cvxpy.solve(program))
    best = float("inf")
    for seed in range(3):
        start = Noise(seed, "descent").at(torch.arange(62)).normal((4,)).double() * 0.5
        u, a = start[:, :3].clone().requires_grad_(), start[:, 3].clone().requires_grad_()
        optimizer = torch.optim.Adam([u, a], lr=0.03)
        for step in range(500):
            optimizer.param_groups[0]["lr"] = 0.03 * (1 - step / 500)
            f = (program.cells.rows @ u.T).relu() @ a
            value = losses(program.loss, program.y, f, torch.zeros_like(f)).mean()
            value = value + program.beta * (u.square().sum() + a.square().sum()) / 2
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            best = min(best, float(value.detach()))
    assert optimum - 1e-6 <= best <= 1.05 * optimum


@needs_cvxpy
@pytest.mark.parametrize(
    ("loss", "eps", "steps", "near"),
    [
        ("hinge", 0.0, 1000, 0.05),
        ("logistic", 0.0, 1000, 0.01),
        ("squared", 0.0, 2000, 0.005),
        ("hinge", 0.05, 800, 0.05),
        ("logistic", 0.05, 800, 0.03),
        ("squared", 0.05, 250, 0.1),
    ],
)
def test_admm_comes_to_the_same_optimum(loss, eps, steps, near):
    program = made(loss, eps, patterns=10)
    exact = program.objective(*convex_cvxpy.solve(program))
    v, w = convex_admm.solve(program, steps=steps)
    assert program.objective(v, w) == pytest.approx(exact, rel=near)
    assert by_hand(network(v, w), program, slack=0.1) == pytest.approx(float(program.risk(v, w)), abs=near)


@needs_cvxpy
@pytest.mark.parametrize("loss", LOSSES)
def test_the_sampled_program_has_one_optimum(loss):
    x, y = checkerboard(24)
    rows = Cells.around(x, 0.0).rows
    drawn = sample_neurons(30, 3, Noise(0, "neurons"))
    torch.testing.assert_close(drawn.norm(dim=1), torch.ones(30).double())
    features = (rows @ drawn.T).clamp(min=0)

    def value(weights: Tensor) -> float:
        risk = losses(loss, y, features @ weights, torch.zeros_like(y)).mean()
        return float(risk + 1e-3 * weights.abs().sum())

    exact = convex_cvxpy.solve_sampled(features, y, loss, 1e-3)
    assert value(solve_sampled(features, y, loss, 1e-3, steps=1500)) == pytest.approx(value(exact), rel=5e-3)


def quick(method: ConvexReLU, data: Dataset | None = None, **changed: Any) -> Trained:
    recipe: dict[str, Any] = {"arch_params": {"hidden": 16, "depth": 1}, "epochs": 1, **changed}
    threat = ThreatModel.parse("Linf:0.05")
    return train(method, "mlp", data=data or toy_data(40, classes=2), threat=threat, **recipe)


@pytest.mark.parametrize(
    "params",
    [
        {"steps": 300},
        {"loss": "logistic", "robust": False, "steps": 300},
        {"program": "sampled", "robust": False, "beta": 1e-2, "steps": 500},
    ],
)
def test_it_trains_a_network_that_the_suite_can_load(params, tmp_path):
    method = ConvexReLU(**{"solver": "admm", **params})
    trained = quick(method)
    data = toy_data(40, classes=2)
    with torch.no_grad():
        logits = trained.module(data.x)
    assert bool((logits.argmax(1) == data.y).all())
    y = 2.0 * data.y.double() - 1
    terms = trained.history[0].terms
    if not method.robust:
        risk = float(losses(method.loss, y, logits[:, 1].double(), torch.zeros_like(y)).mean())
        assert risk == pytest.approx(terms["risk"], abs=2e-3)
    assert len(trained.history) == 1
    assert trained.passes == {"forward": 0, "backward": 0}
    told = find_sidecar(save_trained(trained, tmp_path / "m"))
    assert told is not None
    assert told.defense is not None
    assert told.defense["params"]["loss"] == method.loss


def test_it_keeps_the_contract_of_a_fit_method():
    bench = _Bench(ConvexReLU(solver="admm", steps=200))
    for check in (bench.training, bench.repeatable, bench.resuming, bench.checkpoint):
        check()


def test_without_cvxpy_the_own_solver_is_taken_or_the_extra_is_named(monkeypatch):
    small: dict[str, Any] = {"robust": False, "steps": 100}
    own = quick(ConvexReLU(solver="admm", **small))
    monkeypatch.setattr(convex_cvxpy, "installed", lambda: False)
    monkeypatch.setitem(sys.modules, "cvxpy", None)
    other = quick(ConvexReLU(**small))
    assert all(torch.equal(own.last_state[name], tensor) for name, tensor in other.last_state.items())
    with pytest.raises(PrerequisiteError, match=r"robustsuite\[convex\].*solver=admm"):
        quick(ConvexReLU(solver="cvxpy", **small))


def test_what_it_cannot_train_is_refused():
    assert DEFENSES.get("convex_relu").facts["fidelity"] == "reconstructed"
    with pytest.raises(InputError, match="two classes, toy has 3"):
        quick(ConvexReLU(), toy_data(30))
    for arch in ({"depth": 2}, {"hidden": 1, "depth": 1}):
        with pytest.raises(UsageError, match=r"mlp with depth=1|at least 2 hidden"):
            quick(ConvexReLU(), arch_params=arch)
    bads: list[dict[str, Any]] = [
        {"loss": "ce"}, {"solver": "scs"}, {"beta": 0.0}, {"program": "sampled"}, {"steps": 0},
    ]  # fmt: skip
    for bad in bads:
        with pytest.raises(UsageError, match="convex_relu"):
            ConvexReLU(**bad)
    with pytest.raises(UsageError, match="make it wider"):
        network(torch.rand(3, 3).double(), torch.rand(3, 3).double(), width=5)
    with pytest.raises(UsageError, match="no convex loss"):
        losses("ce", torch.ones(1), torch.ones(1), torch.ones(1))  # pyright: ignore[reportArgumentType]
