"""DKL and IKL: the gradient identity, golden parts, and the class means of the epoch before."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from robustsuite.defenses import Step, kl
from robustsuite.defenses.ikl import DKL, IKL, pairwise
from robustsuite.defenses.trades import TRADES
from robustsuite.errors import UsageError


def leaves(toy: Step) -> tuple[torch.Tensor, torch.Tensor]:
    clean, adversarial = (toy.views[name].detach().clone().requires_grad_(True) for name in ("clean", "adv"))
    toy.views.update(clean=clean, adv=adversarial)
    return clean, adversarial


def test_the_decoupled_divergence_has_the_gradients_of_the_divergence(toy: Step):
    clean, adversarial = leaves(toy)
    expected = torch.autograd.grad(kl(clean, adversarial).sum(), (clean, adversarial))
    terms = DKL(wmse=1, sce=1).terms(toy)
    found = torch.autograd.grad((terms["wmse"].values + terms["sce"].values).sum(), (clean, adversarial))
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-12)
    assert found[0][0].tolist() == pytest.approx([0.179984, -0.146935, -0.033049], abs=1e-6)
    assert found[1][0].tolist() == pytest.approx([-0.269698, 0.234012, 0.035686], abs=1e-6)


def test_golden_parts(toy: Step):
    parts = DKL().terms(toy)
    assert parts["wmse"].values.tolist() == pytest.approx([0.126726, 0.327717], abs=1e-5)
    assert parts["sce"].values.tolist() == pytest.approx([0.696075, 1.339503], abs=1e-5)
    toy.memory["means"] = torch.full((3, 3), 1 / 3, dtype=torch.float64)
    assert IKL().terms(toy)["wmse"].values.tolist() == pytest.approx([0.194444, 0.333333], abs=1e-5)


def test_golden_losses(toy: Step, doubled: Step, loss: Callable[..., float]):
    for step in (toy, doubled):
        step.memory["means"] = torch.full((3, 3), 1 / 3, dtype=torch.float64)
        expected = 0.360645 + 20 * (0.194444 + 0.333333) / 2 + 4 * (0.696075 + 1.339503) / 2
        assert loss(IKL(), step) == pytest.approx(expected, abs=1e-4)


def test_the_pairwise_sum_against_brute_force():
    generator = torch.Generator().manual_seed(0)
    gap, weight = torch.randn(5, 7, generator=generator), torch.rand(5, 7, generator=generator)
    brute = torch.zeros(5)
    for j in range(7):
        for k in range(7):
            brute += weight[:, j] * weight[:, k] * (gap[:, j] - gap[:, k]) ** 2 / 4
    assert torch.allclose(pairwise(gap, weight), brute, rtol=1e-5)


def test_symmetric_moves_both_branches(toy: Step):
    _, adversarial = leaves(toy)
    one, two = (DKL(symmetric=s).terms(toy)["wmse"].values.sum() for s in (False, True))
    assert torch.autograd.grad(one, adversarial, allow_unused=True, retain_graph=True)[0] is None
    assert torch.autograd.grad(two, adversarial)[0].abs().sum() > 0.1


def test_class_means_are_those_of_the_epoch_before(toy: Step):
    method = IKL(temperature=1)

    class Context:
        memory: dict[str, Any] = toy.memory
        num_classes, device = 3, torch.device("cpu")

    context: Any = Context()
    method.setup(context)
    assert torch.equal(toy.memory["means"], torch.full((3, 3), 1 / 3))
    toy.y = torch.tensor([0, 0])
    method.post_step(toy)
    method.epoch_end(context)
    p = toy.views["clean"].softmax(1)
    assert torch.allclose(toy.memory["means"][0].double(), p.mean(0), atol=1e-6)
    assert torch.allclose(toy.memory["means"][1:], torch.full((2, 3), 1 / 3))  # not seen: as they were
    assert not toy.memory["counts"].any()


def test_dkl_takes_the_step_of_trades(quick: Callable):
    one_step = {"epochs": 1, "batch_size": 48}  # further on, signs of tiny gradients part them
    a, b = quick(DKL(steps=2), **one_step), quick(TRADES(beta=6, steps=2), **one_step)
    for name, tensor in a.last_state.items():
        assert torch.allclose(tensor, b.last_state[name], atol=1e-6), name


def test_ikl_survives_a_kill_with_its_means(survives: Callable, quick: Callable, same: Callable):
    assert survives(IKL(wmse=2, sce=1, steps=2))
    still = quick(IKL(wmse=2, sce=1, steps=2, ramp=1.0))
    assert not same(still, quick(IKL(wmse=2, sce=1, steps=2)))


def test_the_radius_grows(toy: Step):
    asked = []
    toy.inner = lambda step, spec, x, q: asked.append(spec.eps) or x
    for progress in (0.0, 0.25, 0.5, 1.0):
        toy.progress = progress
        IKL(ramp=0.5).views(toy)
    assert asked == [0, 0.5, 1, 1]


@pytest.mark.parametrize("bad", [{"wmse": -1}, {"temperature": 0}, {"ramp": 2}])
def test_bad_parameters(bad: dict):
    with pytest.raises(UsageError, match="needed"):
        IKL(**bad)
