"""Schedules have the shape that their names promise."""

import pytest
import torch
from torch import nn

from robustsuite.training.optim import SCHEDULES, make_optimizer, schedule_factor


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("constant", [1, 1, 1, 1]),
        ("cosine", [1, 0.853553, 0.5, 0]),
        ("multistep", [1, 1, 0.1, 0.01]),
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


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_every_optimizer_descends(name: str):
    parameter = nn.Parameter(torch.tensor([2.0]))
    optimizer = make_optimizer(name, [parameter], 0.1, 0.0)
    (parameter**2).sum().backward()
    optimizer.step()
    assert parameter.item() < 2


def test_sgd_has_momentum_and_decay():
    parameter = nn.Parameter(torch.tensor([1.0]))
    optimizer = make_optimizer("sgd", [parameter], 0.1, 0.5)
    for _ in range(2):
        parameter.grad = torch.tensor([1.0])
        optimizer.step()
    # v1 = 1.5, w1 = 0.85; v2 = 0.9 * 1.5 + 1 + 0.5 * 0.85 = 2.775
    assert parameter.item() == pytest.approx(0.85 - 0.2775)
