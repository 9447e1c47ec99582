"""GOR: groups of filters that are held orthonormal."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from robustsuite.defenses import Step
from robustsuite.defenses.composed import compose
from robustsuite.defenses.gor import GOR, distance
from robustsuite.defenses.pgd_at import PGDAT
from robustsuite.errors import UsageError
from robustsuite.registry import ARCHITECTURES, DEFENSES
from robustsuite.testing import check_defense

ROWS = torch.tensor([[1.0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 2, 0]])
BASE = ("pgd_at", PGDAT(steps=1))


@ARCHITECTURES.register("tests_nine_filters")
def nine_filters(num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    """9 filters make two groups of 4 and a rest."""
    size = 9 * input_shape[1] * input_shape[2]
    return nn.Sequential(nn.Conv2d(input_shape[0], 9, 3, padding=1), nn.Flatten(), nn.Linear(size, num_classes))


def penalty(method: GOR, module: nn.Module, step: Step) -> float:
    step.module = module
    values = method.terms(step)["gor"].values
    assert values.shape == (2,)
    assert values[0] == values[1]
    return float(values[0].detach())


def test_the_sheets_groups():
    inter = ROWS.unflatten(0, (2, 2))
    assert [float(distance(group[None])) for group in inter] == [2, 9]
    assert [float(distance(group[None])) for group in inter.transpose(0, 1)] == [0, 9]
    assert float(distance(inter)) == 11
    assert float(distance(torch.eye(6)[:4].view(1, 4, 6))) == 0


@pytest.mark.parametrize("between", ["inter", "intra"])
@pytest.mark.parametrize(("filters", "width"), [(16, 1), (16, 3), (3, 2), (64, 1)])
def test_against_a_loop_over_groups(between: str, filters: int, width: int, toy: Step):
    layer = nn.Conv2d(2, filters, width)
    weight = layer.weight.detach().flatten(1).double()
    count = max(1, min(8, filters // 4))
    size, expected = filters // count, 0.0
    groups = [range(g * size, (g + 1) * size) for g in range(count)]
    if between == "intra":
        groups = [range(i, filters, size) for i in range(size)]
    for rows in groups:
        part = weight[list(rows)]
        gram = part.T @ part if part.shape[0] >= part.shape[1] else part @ part.T
        expected += float(sum((gram[i, j] - int(i == j)) ** 2 for i in range(len(gram)) for j in range(len(gram))))
    found = penalty(GOR(groups=8, between=between), nn.Sequential(layer), toy)  # type: ignore[arg-type]
    assert found == pytest.approx(expected, rel=1e-5)


def test_linear_layers_are_asked_for_or_alone(toy: Step):
    convolution, linear = nn.Conv2d(1, 4, 3), nn.Linear(6, 8)
    both = nn.Sequential(convolution, nn.Flatten(), linear)
    whole = penalty(GOR(linear=True), both, toy)
    assert whole == pytest.approx(penalty(GOR(), both, toy) + penalty(GOR(), nn.Sequential(linear), toy), rel=1e-5)


def test_training_with_it_brings_filters_nearer_to_orthonormal(quick: Callable, same: Callable, toy: Step):
    plain, held = quick(compose(BASE)), quick(compose(BASE, ("gor", GOR(weight=0.1))), epochs=4)
    assert penalty(GOR(), held.module, toy) < 0.5 * penalty(GOR(), plain.module, toy)
    assert same(quick(compose(BASE, ("gor", GOR(weight=0)))), plain)
    assert set(held.history[0].terms) == {"ce_adv", "gor"}


def test_the_contract_holds():
    assert [str(f) for f in check_defense(DEFENSES.get("gor")) if not f.ok] == []


def test_bad_parameters_and_widths_are_refused(quick: Callable):
    bads: list[dict[str, Any]] = [{"weight": -1}, {"groups": 0}, {"between": "both"}]
    for bad in bads:
        with pytest.raises(UsageError, match="gor needs"):
            GOR(**bad)
    with pytest.raises(UsageError, match=r"the 9 filters of the layer '0' into 2 groups"):
        quick(compose(BASE, ("gor", GOR())), arch="tests_nine_filters")
