"""IGR: attributions of an image and of its adversarial view."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from robustsuite.data.dataset import Dataset
from robustsuite.defenses import Step
from robustsuite.defenses.composed import compose
from robustsuite.defenses.igr import IGR
from robustsuite.defenses.pgd_at import PGDAT
from robustsuite.defenses.standard import Standard
from robustsuite.defenses.trades import TRADES
from robustsuite.errors import UsageError
from robustsuite.models.attributions import integrated_gradients, label_gradient
from robustsuite.registry import DEFENSES
from robustsuite.testing import check_defense
from robustsuite.threat import ThreatModel
from robustsuite.training.loop import train

BASE = ("pgd_at", PGDAT(steps=1))


def attributions(step: Step, x: Tensor, points: int) -> Tensor:
    return integrated_gradients(partial(label_gradient, step.forward), x, step.y, points)


class Cubic(nn.Module):
    """Logits ``W x^3``: the integral of its gradient is known."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.clone())

    def forward(self, x: Tensor) -> Tensor:
        return x**3 @ self.weight.T


@pytest.mark.parametrize("points", [1, 3])
def test_of_a_linear_network_they_are_its_weights_times_the_image(points: int, toy: Step):
    layer = nn.Linear(3, 3).double()
    toy.module = layer
    found = attributions(toy, toy.x, points)
    assert torch.allclose(found, layer.weight[toy.y] * toy.x)
    a, b = (layer.weight[toy.y] * view for view in (toy.x, toy.views["adv"]))
    assert torch.allclose(IGR(points=points).terms(toy)["igr"].values, 1 - torch.cosine_similarity(a, b))


def test_against_the_integral_and_completeness(toy: Step):
    weight = torch.tensor([[1.0, -2, 0.5], [0, 1, 3], [2, 2, 2]]).double()
    toy.module = Cubic(weight)
    exact = weight[toy.y] * toy.x**3  # x * integral of 3 w (x s)^2
    assert torch.allclose(attributions(toy, toy.x, 4000), exact, rtol=1e-3)
    # right sums of s^2: (S + 1)(2S + 1) / 2S^2 times the integral
    assert torch.allclose(attributions(toy, toy.x, 2), exact * 15 / 8)
    label = toy.module(toy.x).gather(1, toy.y.view(-1, 1))[:, 0]
    assert torch.allclose(attributions(toy, toy.x, 4000).sum(1), label, rtol=1e-3)


def test_the_same_view_lacks_nothing_and_the_gradient_reaches_the_weights(toy: Step):
    toy.module = Cubic(torch.tensor([[1.0, -2, 0.5], [0, 1, 3], [2, 2, 2]]).double())
    IGR().terms(toy)["igr"].values.sum().backward()
    grad = toy.module.weight.grad
    assert grad is not None
    assert float(grad[:2].abs().sum()) > 0
    assert grad[2].tolist() == [0, 0, 0]  # no label
    toy.views["adv"] = toy.x
    assert IGR().terms(toy)["igr"].values.abs().max() < 1e-12


def test_attributions_leave_the_statistics_alone(quick: Callable, same: Callable):
    batches = quick(compose(BASE, ("igr", IGR())), epochs=1).last_state["1.num_batches_tracked"]
    assert batches == 3
    assert same(quick(compose(BASE, ("igr", IGR(weight=0)))), quick(compose(BASE)))


def test_it_goes_with_trades(quick: Callable):
    assert set(quick(compose(("trades", TRADES(steps=1)), ("igr", IGR()))).history[0].terms) == {"ce", "kl", "igr"}


def test_attributions_are_aligned(digits: Dataset):
    held, free = (
        train(
            compose(("pgd_at", PGDAT(steps=3)), ("igr", IGR(weight=weight))), "small_cnn", {"width": 4}, digits,
            ThreatModel.parse("Linf:0.05"), epochs=8, batch_size=8, lr=0.05, validation=0,
        ).history[-1].terms["igr"] / weight
        for weight in (1.0, 1e-9)
    )  # fmt: skip
    assert held < 0.5 * free


def test_the_contract_holds():
    assert [str(f) for f in check_defense(DEFENSES.get("igr")) if not f.ok] == []


def test_what_cannot_be_is_refused(quick: Callable):
    for bad in ({"weight": -1}, {"points": 0}):
        with pytest.raises(UsageError, match="igr needs"):
            IGR(**bad)
    with pytest.raises(UsageError, match="the view 'adv', which standard does not make"):
        quick(compose(("standard", Standard()), ("igr", IGR())))
