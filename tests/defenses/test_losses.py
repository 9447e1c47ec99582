"""Golden values of the toy batch, recomputed in float64."""

import pytest
import torch

from robustsuite.defenses import Step, ce, kl


def test_cross_entropy_of_the_toy_batch(toy: Step):
    assert ce(toy.logits("clean"), toy.q).tolist() == pytest.approx([0.169846, 0.551445], abs=1e-5)
    assert ce(toy.logits("adv"), toy.q).tolist() == pytest.approx([0.554957, 1.551445], abs=1e-5)


def test_cross_entropy_equals_torchs(toy: Step):
    expected = torch.nn.functional.cross_entropy(toy.x, toy.y, reduction="none")
    assert torch.allclose(ce(toy.x, toy.q), expected, atol=1e-14)


def test_soft_labels(toy: Step):
    smooth = toy.q * 0.8 + 0.2 / 3
    assert float(ce(toy.x, smooth).mean()) == pytest.approx(0.593979, abs=1e-5)


def test_divergence_of_the_toy_batch(toy: Step):
    assert kl(toy.logits("clean"), toy.logits("adv")).tolist() == pytest.approx([0.171808, 0.364175], abs=1e-5)


def test_divergence_is_zero_at_itself_and_stays_finite_far_away():
    logits = torch.tensor([[500.0, -500, 0]])
    assert kl(logits, logits).item() == 0
    assert kl(logits, -logits).item() == pytest.approx(1000)


def test_divergence_has_a_gradient_on_both_sides(toy: Step):
    p, q = toy.x.clone().requires_grad_(), toy.views["adv"].clone().requires_grad_()
    kl(p, q).sum().backward()
    assert p.grad is not None
    assert q.grad is not None
    assert torch.allclose(q.grad, q.softmax(1) - p.softmax(1))
    assert p.grad.abs().sum() > 0
