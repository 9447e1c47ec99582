"""Smoothing as a wrap method: what it gives is the smoothed classifier that the certifier speaks of."""

import pytest
import torch
from torch import nn

from robustsuite.defenses.base import WrapMethod
from robustsuite.defenses.smoothing import Smoothing
from robustsuite.errors import UsageError
from robustsuite.models.classifier import Classifier
from robustsuite.models.smoothed import SmoothedClassifier
from robustsuite.noise import Noise
from robustsuite.registry import DEFENSES


def base():
    layer = nn.Linear(4, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[-1.0] * 4, [1.0] * 4]))
        layer.bias.copy_(torch.tensor([2.0, -2.0]))
    return Classifier(nn.Sequential(nn.Flatten(), layer), num_classes=2, input_shape=(1, 2, 2))


def test_the_wrapped_model_answers_by_vote():
    model = base()
    wrapped = Smoothing(sigma=0.2, n=300, m=5, batch=100).wrap(model)
    assert isinstance(wrapped, SmoothedClassifier)
    assert wrapped.base is model
    assert (wrapped.sigma, wrapped.n, wrapped.m, wrapped.batch) == (0.2, 300, 5, 100)
    x = torch.stack([torch.full((1, 2, 2), v) for v in (0.2, 0.5, 0.8)])
    predicted, _ = wrapped.decide(x, Noise(0, "s").at(torch.arange(3)))
    assert predicted.tolist() == [0, -1, 1]
    assert model.passes.forward == 900
    assert wrapped.logits(x)[[0, 2]].argmax(1).tolist() == [0, 1]


def test_it_is_registered_as_a_wrap_and_checks_its_parameters():
    entry = DEFENSES.get("smoothing")
    assert entry.facts["kind"] == "wrap"
    assert issubclass(entry.target, WrapMethod)
    for bad in ({"sigma": 0.0}, {"n": 0}, {"m": -1}, {"failure_probability": 2.0}):
        with pytest.raises(UsageError):
            Smoothing(**bad)
    with pytest.raises(UsageError, match="already"):
        Smoothing().wrap(Smoothing().wrap(base()))
