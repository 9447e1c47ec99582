"""SmoothAdv with PGD and with DDN: the attack on the mean softmax, its noise, and the limits."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustsuite.defenses import InnerSpec, Step
from robustsuite.defenses.gaussian import Gaussian, draw_noise
from robustsuite.defenses.smoothadv import SmoothAdv, ramp
from robustsuite.defenses.smoothadv_ddn import SmoothAdvDDN
from robustsuite.defenses.soft_smoothed import SoftSmoothed, mean_log_softmax
from robustsuite.errors import UsageError
from robustsuite.models.classifier import Passes
from robustsuite.threat import ThreatModel

L2 = ThreatModel.parse("L2:0.5")


def probability(network: nn.Module, x: Tensor, y: Tensor, noise: list[Tensor]) -> Tensor:
    with torch.no_grad():
        mean = torch.stack([network(x + draw).softmax(1) for draw in noise]).mean(0)
    return mean.gather(1, y.view(-1, 1)).squeeze(1)


def test_the_target_is_the_log_of_the_mean_softmax(make_step: Callable[..., Step], small: tuple):
    network, x, _ = small
    noise, passes = draw_noise(make_step(*small), 0.5, 3), Passes()
    target = SoftSmoothed(network, noise, passes)
    leaf = x.clone().requires_grad_(True)
    mean = torch.stack([network(leaf + draw).softmax(1) for draw in noise]).mean(0)
    assert torch.allclose(target(leaf), mean.log(), atol=1e-12)
    got, want = (
        torch.autograd.grad(logs[:, 0].sum(), leaf, retain_graph=True)[0] for logs in (target(leaf), mean.log())
    )
    assert torch.allclose(got, want, atol=1e-12)
    assert (passes.forward, passes.backward) == (2 * 10, 2 * 10)  # what the caller counts comes on top
    with torch.no_grad():
        target(x)
    assert passes.backward == 20
    one = [torch.tensor([[1.0, -90, 4]])]
    assert torch.equal(mean_log_softmax(one), one[0].log_softmax(1))


def test_two_steps_worked_out_by_hand(make_step: Callable[..., Step], small: tuple):
    """Far from the box, a step of eps along the unit gradient, then another that the ball draws back."""
    network, x, y = small
    step = make_step(*small, threat="L2:0.1")
    noise = draw_noise(step, 0.25, 2)
    delta = torch.zeros_like(x)
    for _ in range(2):
        leaf = (x + delta).requires_grad_(True)
        mean = torch.stack([network(leaf + draw).softmax(1) for draw in noise]).mean(0)
        (grad,) = torch.autograd.grad(-mean.gather(1, y.view(-1, 1)).log().sum(), leaf)
        delta = delta + 0.1 * grad / grad.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        delta = delta * (0.1 / delta.flatten(1).norm(dim=1).clamp(min=0.1)).view(-1, 1, 1, 1)
    views = SmoothAdv(0.25, m=2, steps=2).views(step)
    assert torch.allclose(views["adv"], x + delta, atol=1e-7)
    assert torch.allclose(views["noisy"], x + delta + noise[0], atol=1e-7)
    assert torch.allclose(views["noisy1"], x + delta + noise[1], atol=1e-7)
    assert all(p.grad is None for p in network.parameters())


@pytest.mark.parametrize("method", [SmoothAdv(0.25, m=4, warmup=0), SmoothAdvDDN(0.25, m=4, warmup=0)])
def test_the_attack_lowers_the_probability_within_the_ball(method: SmoothAdv, make_step: Callable, small: tuple):
    step = make_step(*small, threat="L2:1")
    noise = draw_noise(step, 0.25, 4)
    adv = method.attacked(step, noise)
    before, after = (probability(step.module, x, step.y, noise) for x in (step.x, adv))
    assert step.threat.contains(step.x, adv).all()
    assert (after <= before).all()
    assert (after < before).any()


def test_the_ball_grows_and_the_steps_with_it(make_step: Callable[..., Step], small: tuple):
    asked: list[InnerSpec] = []

    def inner(step: Step, spec: InnerSpec, x: Tensor, q: Tensor) -> Tensor:
        asked.append(spec)
        return x

    step = make_step(*small, inner=inner)
    for progress in (0.0, 0.05, 0.1, 1.0):
        step.progress = progress
        SmoothAdv(steps=4, warmup=0.1).views(step)
    assert [(spec.steps, spec.alpha, spec.eps, spec.init) for spec in asked] == [
        (4, 0.25, 0.5, "zero"),
        (4, 0.5, 1.0, "zero"),
        (4, 0.5, 1.0, "zero"),
    ]
    assert ramp(0.0, 0.0) == 1


def test_which_noise_the_loss_has(make_step: Callable[..., Step], small: tuple):
    step = make_step(*small)
    base: dict[str, Any] = {"sigma": 0.25, "m": 2, "steps": 2}
    every, first, fresh = SmoothAdv(**base), SmoothAdv(**base, losses="first"), SmoothAdv(**base, fresh=True)
    views, one, other = (method.views(step) for method in (every, first, fresh))
    assert set(views) == {"adv", "noisy", "noisy1"}
    assert set(one) == {"adv", "noisy"}
    assert first.joint == ()
    assert torch.equal(one["adv"], views["adv"])
    assert torch.equal(other["adv"], views["adv"])
    assert torch.equal(one["noisy"], views["noisy"])
    later = draw_noise(step, 0.25, 4)
    assert torch.equal(other["noisy"], other["adv"] + later[2])


def test_ddn_stays_where_the_vote_is_wrong_already(make_step: Callable[..., Step], small: tuple):
    network, x, _ = small
    step = make_step(network, x, torch.zeros(5, dtype=torch.int64), threat="L2:3")
    noise = draw_noise(step, 0.25, 4)
    vote = SoftSmoothed(network, noise, Passes())(x).argmax(1)
    method = SmoothAdvDDN(0.25, m=4, steps=20, warmup=0)
    step.y, step.q = (vote + 1) % 3, nn.functional.one_hot((vote + 1) % 3, 3).double()
    assert torch.equal(method.attacked(step, noise), x)
    step.y, step.q = vote, nn.functional.one_hot(vote, 3).double()
    far = method.attacked(step, noise)
    moved = (far != x).flatten(1).any(1)
    assert moved.any()
    assert (SoftSmoothed(network, noise, Passes())(far).argmax(1) != vote)[moved].all()
    near = SmoothAdvDDN(0.25, m=4, steps=2, warmup=0).attacked(step, noise)
    found = moved & (near != x).flatten(1).any(1)
    assert (step.threat.distance(x, far) <= step.threat.distance(x, near) + 1e-6)[found].all()


def test_reductions(quick: Callable, same: Callable):
    zero = ThreatModel.parse("L2:0")
    for kind in (SmoothAdv, SmoothAdvDDN):
        assert same(quick(kind(0.3, m=1, steps=0), L2), quick(Gaussian(0.3), L2))
        assert same(quick(kind(0.3, m=2, steps=0), L2), quick(Gaussian(0.3, m=2), L2))
        assert same(quick(kind(0.3, m=1, steps=1), zero), quick(Gaussian(0.3), zero))
    assert not same(quick(SmoothAdv(0.3, m=1, steps=1), L2), quick(Gaussian(0.3), L2))


@pytest.mark.parametrize("kind", [SmoothAdv, SmoothAdvDDN])
def test_it_trains(kind: type[SmoothAdv], trains: Callable):
    trains(kind(m=2, steps=2, warmup=0), 2 * 3 * 96, 2 * 3 * 96)


def test_bad_parameters(quick: Callable):
    wrong: list[dict[str, Any]] = [{"steps": -1}, {"warmup": 2}, {"losses": "last"}]
    for bad in wrong:
        with pytest.raises(UsageError, match="smoothadv needs steps"):
            SmoothAdv(**bad)
    with pytest.raises(UsageError, match=r"smoothadv_ddn needs gamma in \(0,1\)"):
        SmoothAdvDDN(gamma=1.0)
    with pytest.raises(UsageError, match="made for L2"):
        quick(SmoothAdv())
