"""Schedules have the shape that their names promise."""

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from robustsuite.defenses.context import Auxiliary
from robustsuite.training.optim import OPTIMIZERS, SCHEDULES, make_optimizer, schedule_factor
from robustsuite.training.settings import Settings


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("constant", [1, 1, 1, 1]),
        ("cosine", [1, 0.853553, 0.5, 0]),
        ("multistep", [1, 1, 0.1, 0.01]),
        ("cyclic", [0.01, 0.5, 1, 0.01]),
        ("late_steps", [1, 1, 1, 0.01]),
        ("one_cycle", [0.05, 1, 0.75, 0]),
    ],
)
def test_factors(name: str, expected: list[float]):
    factor = schedule_factor(name)
    assert [factor(p) for p in (0, 0.25, 0.5, 1)] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
def test_factors_stay_in_range(name: str):
    values = [schedule_factor(name)(i / 100) for i in range(100)]
    assert 0 < min(values) <= max(values) <= 1


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_descends(name: str):
    module = nn.Linear(1, 1)
    nn.init.ones_(module.weight)  # far from the minimum, which a step of 0.1 may otherwise jump over
    nn.init.ones_(module.bias)
    optimizer = make_optimizer(Settings(optimizer=name, lr=0.1), module)
    before = module(torch.ones(1, 1)).pow(2)
    before.backward()
    optimizer.step()
    assert module(torch.ones(1, 1)).pow(2).item() < before.item()


def one(value: float) -> nn.Module:
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, value)
    return module


def descend(module: nn.Module, optimizer: Optimizer, times: int) -> float:
    parameter = next(module.parameters())
    for _ in range(times):
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    return parameter.item()


def test_sgd_has_momentum_and_decay():
    module = one(1.0)
    # v1 = 1.5, w1 = 0.85; v2 = 0.9 * 1.5 + 1 + 0.5 * 0.85 = 2.775
    optimizer = make_optimizer(Settings(lr=0.1, weight_decay=0.5), module)
    assert descend(module, optimizer, 2) == pytest.approx(0.85 - 0.2775)


def test_decay_may_leave_biases_and_normalisation_alone():
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    decayed, free = make_optimizer(Settings(weight_decay=0.5, decay_all=False), module).param_groups
    assert [tuple(p.shape) for p in decayed["params"]] == [(2, 1, 3, 3)]
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.5, 0.0)
    assert len(free["params"]) == 3
    (everything,) = make_optimizer(Settings(), module).param_groups
    assert len(everything["params"]) == 4


def test_trained_auxiliary_models_have_groups_of_their_own():
    frozen, trained = Auxiliary(one(1.0)), Auxiliary(one(2.0), trained=True, lr=0.5, weight_decay=0.0)
    groups = make_optimizer(Settings(weight_decay=0.1), one(0.0), [frozen, trained]).param_groups
    assert [(g["scale"], g["weight_decay"]) for g in groups] == [(1.0, 0.1), (0.5, 0.0)]
