"""SmoothMix: mixtures and their targets by hand, the climb, and the limits."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from robustsuite.defenses import Step
from robustsuite.defenses.gaussian import Gaussian, draw_noise
from robustsuite.defenses.smoothmix import SmoothMix
from robustsuite.errors import UsageError
from robustsuite.threat import ThreatModel

L2 = ThreatModel.parse("L2:0.5")
MIXED = {
    "mixed": torch.tensor([[0.5, 0.5, 0], [0, 0.5, 0]], dtype=torch.float64),
    "mixed1": torch.tensor([[1, 0, 0], [0, 0, 0.3]], dtype=torch.float64),
}
SHARE = torch.tensor([[0.25], [0.5]], dtype=torch.float64)


def test_golden_losses(noisy: Callable[..., Step], loss: Callable[..., float]):
    """Divergences 0.067864 and 0.016204 beside cross-entropies 0.362401 and 0.831756."""
    for times in (1, 2):
        step = noisy(times=times, **MIXED)
        step.trace["share"] = SHARE.repeat(times, 1)
        assert loss(SmoothMix(), step) == pytest.approx(0.807247275, abs=1e-8)
        assert loss(SmoothMix(eta=0), step) == pytest.approx(0.597078617, abs=1e-8)
        step.progress = 1 / 30
        assert loss(SmoothMix(), step) == pytest.approx((0.807247275 + 0.597078617) / 2, abs=1e-8)


def test_a_wrong_vote_is_not_mixed(noisy: Callable[..., Step], loss: Callable[..., float]):
    step = noisy(y=(0, 2), **MIXED)
    step.trace["share"] = SHARE
    assert loss(SmoothMix(), step) == pytest.approx(0.916738185, abs=1e-8)
    assert SmoothMix().terms(step)["mixup"].values[1] == 0


def test_the_climb_and_the_mixture_by_hand(make_step: Callable[..., Step], small: tuple):
    network, x, y = small
    step = make_step(*small)
    noise, far = draw_noise(step, 0.25, 2), x
    for _ in range(3):
        leaf = far.clone().requires_grad_(True)
        mean = torch.stack([network(leaf + draw).softmax(1) for draw in noise]).mean(0)
        (grad,) = torch.autograd.grad(-mean.gather(1, y.view(-1, 1)).log().sum(), leaf)
        far = (leaf + 0.4 * grad / grad.flatten(1).norm(dim=1).view(-1, 1, 1, 1)).clamp(0, 1).detach()
    views = SmoothMix(0.25, m=2, steps=3, length=0.4).views(step)
    share = step.trace["share"].view(-1, 1, 1, 1)
    assert bool(((share >= 0) & (share < 0.5)).all())
    assert len(set(share.flatten().tolist())) == 5
    assert torch.equal(views["noisy"], x + noise[0])
    assert torch.allclose(views["mixed1"], (1 - share) * x + share * far + noise[1], atol=1e-6)
    assert step.threat.distance(x, far).max() > 0.5  # no ball holds it


def test_the_first_step_may_be_learnt(make_step: Callable[..., Step], small: tuple):
    step = make_step(*small)
    noise = draw_noise(step, 0.25, 2)
    near = SmoothMix(m=2, steps=3, length=0.2, first=1).views(step)["noisy"] - noise[0]
    assert torch.allclose((near - step.x).flatten(1).norm(dim=1), torch.tensor(0.2).double(), atol=1e-6)
    step.progress = 0.5
    grown = SmoothMix(m=2, steps=3, length=0.2, first=1, warmup=1.0).views(step)["noisy"] - noise[0]
    assert torch.allclose((grown - step.x).flatten(1).norm(dim=1), torch.tensor(0.1).double(), atol=1e-6)
    step.progress = 1.0
    alone = SmoothMix(m=2, steps=3, length=0.2, first=1, eta=0).views(step)
    assert set(alone) == {"noisy", "noisy1"}
    assert torch.equal(alone["noisy"] - noise[0], near)


def test_the_gradient_reaches_the_target_too(noisy: Callable[..., Step]):
    step = noisy(**MIXED)
    step.trace["share"] = SHARE
    for name in ("noisy", "noisy1"):
        step.views[name] = step.views[name].requires_grad_(True)
    values = SmoothMix().terms(step)["mixup"].values
    assert bool(torch.autograd.grad(values.sum(), step.views["noisy"])[0].any())


def test_reductions(quick: Callable, same: Callable):
    assert same(quick(SmoothMix(0.3, m=1, eta=0), L2), quick(Gaussian(0.3), L2))
    assert same(quick(SmoothMix(0.3, m=2, eta=0), L2), quick(Gaussian(0.3, m=2), L2))
    assert not same(quick(SmoothMix(0.3, m=2, steps=1), L2), quick(Gaussian(0.3, m=2), L2))


def test_it_trains(trains: Callable):
    trains(SmoothMix(m=2, steps=2, warmup=0), 2 * (2 + 2) * 96, 2 * (2 + 2) * 96)


def test_bad_parameters(quick: Callable):
    wrong: list[dict[str, Any]] = [{"first": 5}, {"length": -1}, {"eta": -1}, {"warmup": 2}]
    for bad in wrong:
        with pytest.raises(UsageError, match="smoothmix needs 0 <= first"):
            SmoothMix(**bad)
    with pytest.raises(UsageError, match="eps > 0"):
        quick(SmoothMix(), ThreatModel.parse("L2:0"))
