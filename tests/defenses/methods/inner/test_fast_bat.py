"""Fast-BAT: the implicit gradient against differentiation through the perturbation, and its edges."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from robustsuite.defenses import Step, ce
from robustsuite.defenses.composed import compose
from robustsuite.defenses.eps_ramp import EpsRamp
from robustsuite.defenses.fast_bat import FastBAT
from robustsuite.defenses.label_smoothing import LabelSmoothing
from robustsuite.errors import UsageError
from robustsuite.threat import ThreatModel


def play(method: FastBAT, step: Step) -> list[Tensor]:
    """The gradient that the optimiser gets."""
    step.views.update({name: view.detach() for name, view in method.views(step).items()})
    parameters = list(step.module.parameters())
    for parameter in parameters:
        parameter.grad = None
    method.gradient(step, {"ce_adv": method.terms(step)["ce_adv"].values.mean()})
    return [p.grad for p in parameters if p.grad is not None]


def images(n: int = 6) -> tuple[Tensor, Tensor]:
    x = torch.rand(n, 1, 3, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return x, torch.arange(n) % 3


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("alpha", [0.05, 1.0, 5.0])
def test_the_papers_formula_is_the_derivative_through_the_last_step(
    steps: int, alpha: float, make_step: Callable, net: nn.Module
):
    """From a fixed z, d(w) = clip(z + rate g(z; w)) is differentiated by autograd, the clip included."""
    x, y = images()
    step = make_step(net, x, y, "Linf:0.1")
    found = play(FastBAT(steps=steps, alpha=alpha, lam=0), step)
    start = step.views["start"].detach().clone().requires_grad_(True)
    (ascent,) = torch.autograd.grad(ce(net(start), step.q).sum(), start, create_graph=True)
    delta = (start.detach() - x + alpha * 0.1 * ascent).clamp(-0.1, 0.1)
    moving = (x + delta).clamp(0, 1)
    assert torch.allclose(moving, step.views["adv"], atol=1e-12)
    loss = ce(net(moving), step.q).mean()
    expected = torch.autograd.grad(loss, list(net.parameters()))
    still = torch.autograd.grad(ce(net(moving.detach()), step.q).mean(), list(net.parameters()))
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-10)
    gap = max(float((a - b).abs().max()) for a, b in zip(expected, still, strict=True))
    assert gap > 1e-6  # the implicit part is there


def test_at_the_corners_it_is_the_gradient_of_fgsm(make_step: Callable, net: nn.Module):
    """No coordinate is free: d is a corner of the ball, and the implicit term is gone."""
    x, y = images()
    x = 0.3 + 0.4 * x
    step = make_step(net, x, y, "Linf:0.1")
    found = play(FastBAT(steps=1, alpha=1e9), step)
    assert not bool(step.trace["inside"].any())
    corner = step.views["adv"].detach()
    start = step.views["start"].detach().clone().requires_grad_(True)
    (ascent,) = torch.autograd.grad(ce(net(start), step.q).sum(), start)
    assert torch.allclose(corner, x + 0.1 * ascent.sign(), atol=1e-12)
    expected = torch.autograd.grad(ce(net(corner), step.q).mean(), list(net.parameters()))
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-14)


def test_lam_scales_the_implicit_part(make_step: Callable, net: nn.Module):
    x, y = images()
    grads = {lam: play(FastBAT(steps=1, alpha=1, lam=lam), make_step(net, x, y)) for lam in (5.0, 10.0, float("inf"))}
    implicit = {lam: [a - b for a, b in zip(grads[lam], grads[float("inf")], strict=True)] for lam in (5.0, 10.0)}
    assert max(float(part.abs().max()) for part in implicit[5.0]) > 1e-4
    for five, ten in zip(implicit[5.0], implicit[10.0], strict=True):
        assert torch.allclose(five, 2 * ten, atol=1e-12)


def test_a_doubled_batch_has_the_same_gradient(make_step: Callable, net: nn.Module):
    x, y = images()
    once = play(FastBAT(alpha=1), make_step(net, x, y))
    twice = make_step(net, x.repeat(2, 1, 1, 1), y.repeat(2))
    twice.noise = type(twice.noise)(twice.noise.noise, torch.arange(6).repeat(2))
    for one, two in zip(once, play(FastBAT(alpha=1), twice), strict=True):
        assert torch.allclose(one, two, atol=1e-12)


@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_a_ramp_reaches_its_radius_once(progress: float, make_step: Callable, net: nn.Module):
    x, y = images()
    step = make_step(net, 0.3 + 0.4 * x, y, progress=progress)
    step.adjust = EpsRamp().inner
    views = FastBAT(alpha=1e9).views(step)
    assert float((views["adv"] - step.x).abs().max()) == pytest.approx(0.1 * progress, abs=1e-9)


def test_it_trains_with_and_without_its_implicit_part(quick: Callable, same: Callable):
    trained = quick(FastBAT(), epochs=4)
    assert trained.history[-1].terms["ce_adv"] < trained.history[0].terms["ce_adv"]
    # two steps, the loss, and the implicit part, which is differentiated again
    assert (trained.forward, trained.backward) == (4 * 48 * 4, 4 * 48 * 5)
    assert not same(quick(FastBAT(lam=1)), quick(FastBAT(lam=float("inf"))))
    assert quick(FastBAT(lam=float("inf"))).forward == 2 * 48 * 3


def test_the_attack_sees_its_own_labels(quick: Callable, same: Callable):
    base = ("fast_bat", FastBAT())
    both, loss_only = (
        quick(compose(base, ("label_smoothing", LabelSmoothing(0.3, scope=scope)))) for scope in ("both", "loss")
    )
    assert not same(both, loss_only)


def test_bad_parameters_and_other_norms(quick: Callable):
    for steps, alpha, lam in ((0, 1.0, 1.0), (1, -1, 1), (1, 1, -1), (1, 1, float("nan"))):
        with pytest.raises(UsageError, match="fast_bat needs"):
            FastBAT(steps, alpha, lam)
    with pytest.raises(UsageError, match="fast_bat is made for Linf, not for L2:1"):
        quick(FastBAT(), threat=ThreatModel.parse("L2:1"))
    with pytest.raises(UsageError, match="bf16"):
        quick(FastBAT(), precision="bf16")
