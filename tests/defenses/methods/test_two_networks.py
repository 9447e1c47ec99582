"""LBGAT and HAT: a natural network beside the robust one."""

from collections.abc import Callable

import pytest
import torch

from robustsuite.data.dataset import Dataset
from robustsuite.defenses import Step
from robustsuite.defenses.hat import HAT
from robustsuite.defenses.lbgat import LBGAT
from robustsuite.defenses.standard import Standard
from robustsuite.defenses.trades import TRADES
from robustsuite.errors import InputError, UsageError
from robustsuite.threat import ThreatModel
from robustsuite.training.loop import train

TEACHER = torch.tensor([[3.0, 0, -1], [0, 2, 0]], dtype=torch.float64)
KL = 0.267992


@pytest.mark.parametrize(("beta", "expected"), [(0.0, 1.694381), (6.0, 1.694381 + 6 * KL)])
def test_golden_lbgat(beta: float, expected: float, toy: Step, says: Callable, loss: Callable[..., float]):
    toy.aux = {"natural": says(TEACHER)}
    assert loss(LBGAT(beta), toy) == pytest.approx(expected, abs=1e-5)


def test_the_guidance_moves_both_networks(toy: Step, says: Callable):
    natural = says(TEACHER)
    toy.aux = {"natural": natural}
    toy.views["adv"] = toy.views["adv"].clone().requires_grad_(True)
    LBGAT().terms(toy)["guide"].values.sum().backward()
    difference = 2 * (toy.views["adv"].detach() - TEACHER) / 3
    for tensor, expected in ((toy.views["adv"], difference), (natural.answer, -difference)):
        assert tensor.grad is not None
        assert torch.allclose(tensor.grad, expected)


def test_golden_hat(toy: Step, loss: Callable[..., float]):
    toy.views["helper"] = 2 * toy.views["adv"] - toy.views["clean"]
    toy.trace["helper"] = torch.tensor([[1.0, 0, 0], [1, 0, 0]], dtype=torch.float64)
    assert loss(HAT(), toy) == pytest.approx(1.424988, abs=1e-5)
    assert loss(HAT(beta=6, gamma=0), toy) == pytest.approx(1.968595, abs=1e-5)


def test_helper_examples_lie_behind_the_adversarial_ones(toy: Step, says: Callable):
    toy.rebatch(x=torch.tensor([[0.5, 0.5, 0.1], [0.5, 0.2, 0.2]], dtype=torch.float64))
    toy.inner = lambda step, spec, x, q: x + torch.tensor([[0.1, -0.1, -0.1], [0, 0.1, 0]], dtype=torch.float64)
    toy.aux = {"helper": says(torch.tensor([[0.0, 0, 1], [2, 0, 0]], dtype=torch.float64))}
    views = HAT(stretch=3).views(toy)
    assert torch.allclose(views["helper"], torch.tensor([[0.8, 0.2, 0], [0.5, 0.5, 0.2]], dtype=torch.float64))
    assert toy.trace["helper"].tolist() == [[0, 0, 1], [1, 0, 0]]


def test_hat_without_gamma_is_trades(quick: Callable, same: Callable):
    assert same(quick(HAT(beta=2.5, gamma=0, stretch=1, steps=2)), quick(TRADES(beta=2.5, steps=2)))


def test_hat_trains_its_helper_or_takes_it(quick: Callable, same: Callable, checkpoint: Callable, survives: Callable):
    reference = checkpoint(Standard(), epochs=1)
    given, trained = quick(HAT(helper=reference, steps=2)), quick(HAT(steps=2))
    assert set(trained.history[0].terms) == {"ce", "kl", "ce_helper"}
    assert not same(given, trained)
    assert survives(HAT(steps=2))


def test_a_helper_of_other_data_is_refused(quick: Callable, checkpoint: Callable, digits: Dataset):
    smaller = Dataset("small", digits.x[:, :, 1:], digits.y, digits.ids, 3)
    reference = checkpoint(Standard(), data=smaller, epochs=1)
    with pytest.raises(InputError, match=r"the helper .* cannot be used for images"):
        quick(HAT(helper=reference, steps=1))


def test_lbgat_survives_a_kill_with_its_second_network(survives: Callable):
    assert survives(LBGAT(beta=1, steps=2))


def test_the_natural_network_learns(digits: Dataset):
    trained = train(
        LBGAT(steps=1), "mlp", {"hidden": 8, "depth": 1}, digits, ThreatModel.parse("Linf:0.05"), epochs=30,
        batch_size=16, lr=0.1, validation=0,
    )  # fmt: skip
    first, last = trained.history[0].terms, trained.history[-1].terms
    assert last["ce_natural"] < 0.7 * first["ce_natural"]
    with torch.no_grad():
        assert float((trained.module(digits.x).argmax(1) == digits.y).float().mean()) > 0.8


@pytest.mark.parametrize(("method", "bad"), [(HAT, {"gamma": -1}), (HAT, {"stretch": -1}), (LBGAT, {"beta": -1})])
def test_negative_weights_are_refused(method: Callable, bad: dict):
    with pytest.raises(UsageError, match=">= 0"):
        method(**bad)
