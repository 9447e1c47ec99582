"""CURE: both masks on the sheet's gradient, golden sums, revision, and TRADES where nothing is conserved."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from robustsuite.defenses import Step
from robustsuite.defenses.cure import CURE, masked, prominent
from robustsuite.defenses.trades import TRADES
from robustsuite.errors import UsageError
from robustsuite.noise import Noise
from robustsuite.registry import ARCHITECTURES

GRADIENT = torch.tensor([-3, -1, 0, 0.5, 2, 4, 1, -0.2, 0.1, 0.3])
SIGNED = [False, False, True, True, True, True, True, False, True, True]
ABSOLUTE = [True, True, False, True, True, True, True, False, False, True]


def test_the_masks_of_the_sheet():
    assert prominent(GRADIENT, 0.3, "soft_signed_conv1").tolist() == SIGNED
    assert prominent(GRADIENT, 0.3, "hard_abs_all").tolist() == ABSOLUTE
    for rgp in ("soft_signed_conv1", "hard_abs_all"):
        assert prominent(GRADIENT, 0.0, rgp).all()


def test_what_is_masked_in_a_resnet():
    ARCHITECTURES.discover()
    resnet = ARCHITECTURES.get("resnet18").target(num_classes=10, input_shape=(3, 32, 32))
    names = {id(p): name for name, p in resnet.named_parameters()}
    soft = [names[id(p)] for p in masked(resnet, "soft_signed_conv1")]
    assert len(soft) == 8
    assert all("conv1" in name for name in soft)
    left = set(names.values()) - {names[id(p)] for p in masked(resnet, "hard_abs_all")}
    assert len(left) == 2  # the classifier's


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (CURE(natural=0.5, robust=0.5, gamma=0), (0.360645 + 0.267992) / 2),
        (CURE(gamma=0), 0.1 * 0.360645 + 0.9 * 0.267992),
        (CURE(gamma=0, adv_loss="ce"), 0.1 * 0.360645 + 0.9 * 1.053201),
    ],
)
def test_golden(method: CURE, expected: float, toy: Step, loss: Callable):
    assert loss(method, toy) == pytest.approx(expected, abs=1e-5)


def test_golden_stable_model(toy: Step, loss: Callable):
    """It answers z at both: KL(p || p) + KL(p || p')."""
    toy.trace["cure"] = [toy.views["clean"], toy.views["clean"]]
    assert loss(CURE(natural=0, robust=0, gamma=2), toy) == pytest.approx(2 * 0.267992, abs=1e-5)


def test_the_gradient_is_the_masked_sum(toy: Step):
    toy.module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3)).double()
    method = CURE(gamma=0, p=0.4)

    def scalars() -> dict:
        toy.forget_logits()
        return {name: term.weight * term.values.mean() for name, term in method.terms(toy).items()}

    plain = torch.autograd.grad(sum(scalars().values()), list(toy.module.parameters()))
    method.gradient(toy, scalars())
    for (name, parameter), grad in zip(toy.module.named_parameters(), plain, strict=True):
        assert parameter.grad is not None
        kept = torch.ones_like(grad, dtype=torch.bool)
        if name.startswith("0."):
            smallest = grad.abs().flatten().sort().values
            kept = grad.abs() > smallest[int(0.4 * (len(smallest) - 1))]
        assert torch.allclose(parameter.grad, grad * kept)


def test_revision_by_chance_and_by_decay(toy: Step):
    toy.module, stable = nn.Linear(1, 1), nn.Linear(1, 1)
    toy.aux = {"cure": stable}
    method, moves = CURE(r=0.2), 0
    for number in range(1000):
        toy.noise = Noise(0, f"train/step{number}").at(torch.arange(2))
        before = stable.weight.item()
        with torch.no_grad():
            toy.module.weight.fill_(number + 1.0)
        method.post_step(toy)
        if stable.weight.item() != before:
            moves += 1
            decay = min(1 - 1 / (number + 2), 0.999)
            assert stable.weight.item() == pytest.approx(decay * before + (1 - decay) * (number + 1), rel=1e-4)
    assert 200 - 50 < moves < 200 + 50
    assert toy.memory["steps"] == 1000


def test_where_nothing_is_conserved_it_is_trades(quick: Callable, same: Callable):
    plain = quick(TRADES(beta=6, steps=2))
    assert same(quick(CURE(1, 6, 0, p=0, steps=2)), plain)
    assert not same(quick(CURE(1, 6, 0, p=0.3, steps=2)), plain)
    assert not same(quick(CURE(1, 6, 1, p=0, r=1, steps=2)), plain)


def test_it_trains_and_goes_on(quick: Callable, survives: Callable):
    method = CURE(natural=1, steps=1, r=1)
    trained = quick(method, epochs=4)
    assert trained.history[-1].terms["ce"] < trained.history[0].terms["ce"]
    assert survives(method)


def test_bad_parameters(quick: Callable):
    for bad in ({"natural": -1}, {"gamma": -1}, {"p": 2}, {"r": -1}, {"decay": 2}, {"rgp": "none"}, {"adv_loss": "l2"}):
        with pytest.raises(UsageError, match="cure needs"):
            CURE(**bad)
    with pytest.raises(UsageError, match="called conv1"):
        quick(CURE(rgp="soft_signed_conv1"))
