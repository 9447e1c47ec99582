"""Each way in which a model can break its contract is found, named and given a remedy."""

import pytest
import torch
from torch import nn

from robustsuite.errors import ContractError
from robustsuite.evaluation.checks import check_model, refuse
from robustsuite.models.classifier import Classifier
from robustsuite.results.flags import UNRELIABLE


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


class Softmaxed(Wrapped):
    """Probabilities that do not sum to 1."""

    def forward(self, x):
        return 50 * self.inner(x).softmax(1)


class Counting(Wrapped):
    """Counts its calls, which changes no answer."""

    def __init__(self, inner):
        super().__init__(inner)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        self.calls += 1
        return self.inner(x)


class Drifting(Wrapped):
    """Writes a running mean at test time, without a use for it that would show."""

    def __init__(self, inner):
        super().__init__(inner)
        self.register_buffer("mean", torch.zeros(1))

    def forward(self, x):
        self.get_buffer("mean").lerp_(x.detach().mean(), 0.01)
        return self.inner(x)


def _ascent(inner, x):
    leaf = x.detach().requires_grad_(True)
    (grad,) = torch.autograd.grad(inner(leaf).logsumexp(1).sum(), leaf)
    return grad


class Purified(Wrapped):
    def forward(self, x):
        with torch.enable_grad():
            grad = _ascent(self.inner, x)
        return self.inner(x + 0.01 * grad)


class PurifiedBackward(Wrapped):
    def forward(self, x):
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(True)
            self.inner(leaf).logsumexp(1).sum().backward()
        return self.inner(x + 0.01 * leaf.grad)


class PurifiedFunctional(Wrapped):
    def forward(self, x):
        return self.inner(x + 0.01 * torch.func.grad(lambda v: self.inner(v).logsumexp(1).sum())(x.detach()))


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


def test_a_good_model_raises_no_flag_on_two_images_either(problem):
    two = problem.data.take(torch.tensor([0, 1]), "first 2")
    assert not [f for f in check_model(problem.model, two) if f.raised]


@pytest.mark.parametrize(
    ("wrapper", "name", "words"),
    [
        (Nan, "finite_logits", "NaN or infinite logits on"),
        (Random, "randomness", "differ by up to"),
        (Batch, "batch_dependence", "with the other images of its batch"),
        (TrainMode, "eval_mode", "in train mode after eval"),
        (lambda m: nn.Sequential(m, nn.Softmax(1)), "probabilities", "sums to 1:"),
        (Softmaxed, "probabilities", "sums to 50:"),
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
        (Quantised, "quantised_input"),
        (Detached, "zero_gradients"),
        (Saturated, "saturated_gradients"),
        (Wrong, "gradient_mismatch"),
        (Drifting, "stateful"),
        (Purified, "test_time_optimisation"),
        (PurifiedBackward, "test_time_optimisation"),
        (PurifiedFunctional, "test_time_optimisation"),
    ],
)
def test_masked_gradients_become_flags(problem, wrapper, name):
    flags = flags_of(problem, wrapper(problem.model.module))
    assert flags[name].raised, flags[name].evidence
    assert flags[name].remedy
    refuse(list(flags.values()), randomized=False)  # suspicious, not unusable


@pytest.mark.parametrize("levels", [255, 15, 8])
def test_rounded_inputs_are_found_on_and_off_the_grid(problem, levels):
    class Rounded(Wrapped):
        def forward(self, x):
            return self.inner((x * levels).round() / levels)

    anywhere = problem.data.x.clone()
    assert flags_of(problem, Rounded(problem.model.module))["quantised_input"].raised
    for offset in (0.0, 0.5):  # in the middle of a cell, and on its edge
        problem.data.x.copy_(((levels - 1) * anywhere).round().add(offset) / levels)
        assert flags_of(problem, Rounded(problem.model.module))["quantised_input"].raised


def test_saturated_logits_alone_do_not_make_a_record_unreliable(problem):
    flags = flags_of(problem, Saturated(problem.model.module))
    assert not {name for name, f in flags.items() if f.raised} & UNRELIABLE


def test_counting_calls_is_harmless(problem):
    flags = flags_of(problem, Counting(problem.model.module))
    assert not [f for f in flags.values() if f.raised]


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
    constant = nn.Linear(16, 2)
    with torch.no_grad():
        constant.weight.zero_()
        constant.bias.copy_(torch.tensor([0.0, 1.0]))
    flags = flags_of(problem, nn.Sequential(nn.Flatten(), constant))
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
