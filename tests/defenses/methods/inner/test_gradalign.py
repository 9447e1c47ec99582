"""GradAlign: nothing to align on a linear loss, the cosine by hand, and what each variant differentiates."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from robustsuite.defenses import ce
from robustsuite.defenses.fgsm_at import FGSMAT
from robustsuite.defenses.fgsm_rs import FGSMRS
from robustsuite.defenses.gradalign import GradAlign
from robustsuite.errors import UsageError


def images(n: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.rand(n, 1, 3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return x, torch.arange(n) % 3


@pytest.mark.parametrize("detach", [True, False])
def test_nothing_to_align_on_a_linear_loss(detach: bool, make_step: Callable):
    """At a margin of -2000 cross-entropy is linear to the last bit, and four equal entries normalise so."""
    layer = nn.Linear(4, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.0] * 4, [1.0] * 4]))
        layer.bias.copy_(torch.tensor([0.0, 2000]))
    module = nn.Sequential(nn.Flatten(), layer)
    x = torch.rand(6, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    step = make_step(module, x, torch.zeros(6, dtype=torch.int64))
    method = GradAlign(detach=detach)
    step.views.update(method.views(step))
    assert method.terms(step)["gradalign"].values.tolist() == [0.0] * 6


def test_two_logits_have_one_direction(make_step: Callable, linear):
    module, x, y, _ = linear
    step = make_step(module, x, y)
    method = GradAlign()
    step.views.update(method.views(step))
    assert method.terms(step)["gradalign"].values.abs().max() < 1e-6


@pytest.mark.parametrize("detach", [True, False])
def test_value_and_gradient_against_plain_autograd(detach: bool, make_step: Callable, net: nn.Module):
    x, y = images()
    step = make_step(net, x, y, "Linf:0.5")
    method = GradAlign(detach=detach)
    step.views.update(method.views(step))
    values = method.terms(step)["gradalign"].values
    grads = torch.autograd.grad(values.mean(), list(net.parameters()), allow_unused=True)

    def direction(name: str, graph: bool) -> torch.Tensor:
        leaf = step.views[name].clone().requires_grad_(True)
        loss = ce(net(leaf), step.q).sum()
        return torch.autograd.grad(loss, leaf, create_graph=graph)[0].flatten(1)

    expected = 1 - nn.functional.cosine_similarity(direction("clean", not detach), direction("noisy", True), eps=1e-30)
    reference = torch.autograd.grad(expected.mean(), list(net.parameters()), allow_unused=True)
    assert torch.allclose(values, expected, atol=1e-12)
    assert float(values.detach().max()) > 1e-3
    for mine, theirs in zip(grads, reference, strict=True):
        assert (mine is None) == (theirs is None)
        assert mine is None or torch.allclose(mine, theirs, atol=1e-10)


def test_examples_without_a_gradient_count_as_aligned(make_step: Callable):
    dead = nn.Linear(9, 3)
    with torch.no_grad():
        dead.bias.fill_(-100)
    module = nn.Sequential(nn.Flatten(), dead, nn.ReLU(), nn.Linear(3, 3))
    x, y = images()
    step = make_step(module, x.float(), y)
    method = GradAlign(detach=False)
    step.views.update(method.views(step))
    term = method.terms(step)["gradalign"].values
    assert term.tolist() == [0.0] * 5
    (term.sum() + ce(step.logits("clean"), step.q).sum()).backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in module.parameters() if p.grad is not None)


def test_tiny_gradients_have_a_direction(make_step: Callable, net: nn.Module):
    """Scaled logits of a sure network leave gradients whose squares underflow in float32."""
    module = net.float()
    x, _ = images()
    with torch.no_grad():
        list(module.parameters())[2].mul_(40)
    step = make_step(module, x.float(), module(x.float()).argmax(1))
    method = GradAlign()
    step.views.update(method.views(step))
    values = method.terms(step)["gradalign"].values
    assert bool(torch.isfinite(values).all())
    assert float(values.detach().min()) >= -1e-6
    assert float(values.detach().max()) < 2


def test_without_lam_it_is_fgsm(quick: Callable, same: Callable):
    assert same(quick(GradAlign(lam=0)), quick(FGSMAT()))
    assert same(quick(GradAlign(lam=0, init="uniform", alpha=1.25)), quick(FGSMRS()))
    assert not same(quick(GradAlign(lam=0.5)), quick(FGSMAT()))
    assert not same(quick(GradAlign(lam=0.5)), quick(GradAlign(lam=0.5, detach=False)))


def test_a_doubled_batch_has_the_same_loss(make_step: Callable, net: nn.Module, loss: Callable):
    x, y = images()
    method = GradAlign(detach=False)
    found = []
    for times in (1, 2):
        step = make_step(net, x.repeat(times, 1, 1, 1), y.repeat(times))
        if times == 2:
            step.noise = type(step.noise)(step.noise.noise, torch.arange(5).repeat(2))
        step.views.update(method.views(step))
        found.append(loss(method, step))
    assert found[0] == pytest.approx(found[1], abs=1e-12)


def test_it_trains_in_four_passes(quick: Callable):
    trained = quick(GradAlign(), epochs=4)
    assert trained.history[-1].terms["ce_adv"] < trained.history[0].terms["ce_adv"]
    assert (trained.forward, trained.backward) == (4 * 4 * 48, 5 * 4 * 48)
    both = quick(GradAlign(detach=False))
    assert (both.forward, both.backward) == (4 * 2 * 48, 6 * 2 * 48)


def test_bad_parameters(quick: Callable):
    with pytest.raises(UsageError, match="lam >= 0"):
        GradAlign(lam=-1)
    with pytest.raises(UsageError, match="zero or uniform"):
        GradAlign(init="gauss")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="bf16"):
        quick(GradAlign(), precision="bf16")
