"""Each way in which a model can break its contract is found, named and given a remedy."""

import pytest
import torch
from torch import nn

from robustsuite.errors import ContractError
from robustsuite.evaluation.checks import check_model, refuse
from robustsuite.models.classifier import Classifier


class Wrapped(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner


class Nan(Wrapped):
    def forward(self, x):
        z = self.inner(x)
        return torch.where(x.flatten(1)[:, :1] > 0.5, z / 0, z)


class Random(Wrapped):
    def forward(self, x):
        return self.inner(x + 0.1 * torch.randn_like(x))


class Batch(Wrapped):
    """Batch statistics at test time."""

    def forward(self, x):
        return self.inner(x - x.mean(0, keepdim=True))


class TrainMode(Wrapped):
    def forward(self, x):
        self.inner.train()
        return self.inner(x)


class Quantised(Wrapped):
    def forward(self, x):
        return self.inner((x * 8).round() / 8)


class Detached(Wrapped):
    def forward(self, x):
        return self.inner(x.detach() + 0 * x.mean())


class Saturated(Wrapped):
    """Cross-entropy is exactly 0 in float32: a gradient attack sees nothing."""

    def forward(self, x):
        return 1e6 * self.inner(x)


class Wrong(Wrapped):
    """Right gradients of another function (straight-through)."""

    def forward(self, x):
        z = self.inner(x)
        return (z - (-z)).detach() * 0.5 + (-z) - (-z).detach()


def flags_of(problem, module):
    model = Classifier(module, num_classes=2, input_shape=(1, 4, 4))
    return {f.name: f for f in check_model(model, problem.data)}


def test_a_good_model_raises_no_flag(problem):
    flags = flags_of(problem, problem.model.module)
    assert len(flags) >= 8
    assert not [f for f in flags.values() if f.raised]


@pytest.mark.parametrize(
    ("wrapper", "name", "words"),
    [
        (Nan, "finite_logits", "NaN or infinite logits on"),
        (Random, "randomness", "differ by up to"),
        (Batch, "batch_dependence", "with the other images of its batch"),
        (TrainMode, "eval_mode", "in train mode after eval"),
        (lambda m: nn.Sequential(m, nn.Softmax(1)), "probabilities", "sums to 1"),
    ],
)
def test_fatal_faults_are_refused_with_evidence_and_remedy(problem, wrapper, name, words):
    flags = flags_of(problem, wrapper(problem.model.module))
    assert flags[name].raised
    assert words in flags[name].evidence
    with pytest.raises(ContractError, match=name) as error:
        refuse(list(flags.values()), randomized=False)
    assert flags[name].remedy
    assert flags[name].remedy in str(error.value)


@pytest.mark.parametrize(
    ("wrapper", "name"),
    [
        (Quantised, "gradient_mismatch"),
        (Detached, "zero_gradients"),
        (Saturated, "zero_gradients"),
        (Wrong, "gradient_mismatch"),
    ],
)
def test_masked_gradients_become_flags(problem, wrapper, name):
    flags = flags_of(problem, wrapper(problem.model.module))
    assert flags[name].raised, flags[name].evidence
    refuse(list(flags.values()), randomized=False)  # suspicious, not unusable


def test_declared_randomness_is_accepted(problem):
    flags = flags_of(problem, Random(problem.model.module))
    refuse(list(flags.values()), randomized=True)


def test_normalisation_twice_or_missing(problem):
    class Normalize(nn.Module):
        def forward(self, x):
            return (x - 0.5) / 0.25

    flags = flags_of(problem, nn.Sequential(Normalize(), Normalize(), problem.model.module))
    assert flags["normalisation"].raised
    assert "two normalisation layers" in flags["normalisation"].evidence
    shifted = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with torch.no_grad():
        shifted[1].weight.zero_()
        shifted[1].bias.copy_(torch.tensor([0.0, 1.0]))
    flags = flags_of(problem, shifted)
    assert "--mean/--std" in flags["normalisation"].remedy or not flags["normalisation"].raised


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (nn.Flatten(), "returns 16 logits, but 2 classes"),
        (nn.Identity(), "float logits of shape"),
        (nn.Sequential(nn.Flatten(0), nn.Unflatten(0, (1, -1))), "float logits of shape"),
    ],
)
def test_wrong_output_shape(problem, module, words):
    with pytest.raises(ContractError, match=words):
        flags_of(problem, module)
