"""Directions of gradients: closed forms, and rows that have none."""

import pytest
import torch

from robustsuite.defenses.directions import direction, misalignment


def test_closed_forms():
    a = torch.tensor([[1.0, 0], [1, 0], [0, 0], [2, 2]])
    b = torch.tensor([[1.0, 1], [-3, 0], [1, 0], [5, 5]])
    assert misalignment(a, b).tolist() == pytest.approx([0.292893, 2, 0, 0], abs=1e-6)
    assert torch.equal(direction(torch.zeros(2, 1, 3)), torch.zeros(2, 3))


def test_tiny_gradients_keep_their_direction_and_zero_ones_give_no_nan():
    a = torch.tensor([[3e-15, 4e-15], [0, 0]], requires_grad=True)
    assert direction(a)[0].tolist() == pytest.approx([0.6, 0.8])
    misalignment(a, torch.tensor([[1.0, 0], [1, 0]])).sum().backward()
    assert a.grad is not None
    assert bool(a.grad.isfinite().all())
    assert a.grad[1].tolist() == [0, 0]


def test_the_gradient_is_that_of_torch():
    a = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0)).double().requires_grad_(True)
    b = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(1)).double()
    (mine,) = torch.autograd.grad(misalignment(a, b).sum(), a)
    (torchs,) = torch.autograd.grad((1 - torch.cosine_similarity(a.flatten(1), b.flatten(1))).sum(), a)
    assert torch.allclose(mine, torchs)
