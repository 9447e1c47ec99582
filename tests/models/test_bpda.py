"""Substituted gradients: the forward pass bit for bit, the backward pass another function's."""

import pytest
import torch
from torch import nn

from robustsuite.errors import ContractError, UsageError
from robustsuite.models.bpda import BPDA, Transformed, around, transformed
from robustsuite.models.classifier import Classifier, Facts

X = torch.rand(5, 1, 3, 3, generator=torch.Generator().manual_seed(0))


class Step(nn.Module):
    calls = 0

    def forward(self, x):
        Step.calls += 1
        return (3 * x).round() / 3


class Square(nn.Module):
    def forward(self, x):
        return x**2


def test_values_of_the_one_and_gradient_of_the_other():
    leaf = X.clone().requires_grad_(True)
    out = BPDA(Step(), Square())(leaf)
    assert torch.equal(out.detach(), Step()(X))
    (grad,) = torch.autograd.grad((out * X).sum(), leaf)
    torch.testing.assert_close(grad, 2 * X * X)


def test_without_a_gradient_the_substitute_is_not_asked():
    class Never(nn.Module):
        def forward(self, x):
            raise AssertionError

    module = BPDA(Step(), Never())
    assert torch.equal(module(X), Step()(X))
    with torch.no_grad():
        assert torch.equal(module(X.clone().requires_grad_(True)), Step()(X))


def test_a_substitute_of_another_shape_is_refused():
    with pytest.raises(ContractError, match="shape"):
        BPDA(Step(), nn.Flatten())(X.clone().requires_grad_(True))


def plain(**facts) -> Classifier:
    net = nn.Sequential(nn.Flatten(), nn.Linear(9, 2))
    return Classifier(net, num_classes=2, input_shape=(1, 3, 3), facts=Facts(**facts))


@pytest.mark.parametrize(
    ("surrogate", "exact", "base", "want"),
    [
        ("exact", "full", "full", "full"),
        ("exact", "none", "full", "none"),
        ("identity", "none", "full", "surrogate"),
        ("soft", "none", "full", "surrogate"),
        ("exact", "full", "surrogate", "surrogate"),
        ("identity", "none", "none", "none"),
    ],
)
def test_what_is_declared_is_the_worse_of_network_and_front(surrogate, exact, base, want):
    model = plain(differentiable=base, randomized=True)
    made = transformed(model, Step(), surrogate, soft=Square(), exact=exact)
    assert made.facts == Facts(randomized=True, differentiable=want)
    assert made.passes is model.passes
    assert type(made) is Classifier


def test_soft_needs_a_soft_version_and_a_wrapped_model_is_refused():
    with pytest.raises(UsageError, match="identity or exact"):
        transformed(plain(), Step(), "soft")
    model = plain()
    model.__class__ = type("Other", (Classifier,), {})
    with pytest.raises(UsageError, match="already"):
        transformed(model, Step(), "identity")


def test_a_model_inside_keeps_its_device_shape_and_classes():
    model = plain()
    made = around(model, Transformed(nn.Identity(), model.module), "full")
    assert (made.num_classes, made.input_shape, made.device) == (2, (1, 3, 3), model.device)
    assert torch.equal(made.logits(X), model.logits(X))
