"""Reduced precision for attacks: what a view shares, what it changes, and what it leaves exact."""

import pytest
import torch
from torch import nn

from robustsuite.errors import UsageError
from robustsuite.models.classifier import Classifier, Facts
from robustsuite.models.precision import exact_arithmetic, parse_precision, tf32_arithmetic
from robustsuite.models.randomized import RandomizedClassifier
from robustsuite.models.smoothed import SmoothedClassifier
from robustsuite.noise import Noise


def network() -> nn.Module:
    """A strided first layer, as on most image networks, and one more; weights that bfloat16 rounds."""
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(32, 4)
    )
    for i, parameter in enumerate(net.parameters()):
        draws = Noise(i, "test/weights").at(torch.arange(parameter.shape[0])).normal(tuple(parameter.shape[1:]))
        parameter.data = 0.3 * draws.reshape(parameter.shape)
    return net


def classifier(**facts) -> Classifier:
    return Classifier(network(), num_classes=4, input_shape=(3, 8, 8), facts=Facts(**facts))


@pytest.fixture
def x() -> torch.Tensor:
    return Noise(0, "test/x").at(torch.arange(6)).uniform((3, 8, 8))


def first(logits: torch.Tensor) -> torch.Tensor:
    return logits[:, 0]


def test_float32_is_the_classifier_itself():
    model = classifier()
    assert model.attacking("float32") is model


def test_a_view_shares_the_network_and_its_counters(x):
    model = classifier()
    view = model.attacking("bf16")
    assert (view.module, view.passes) == (model.module, model.passes)
    view.logits(x)
    view.gradient(x, first)
    assert (model.passes.forward, model.passes.backward) == (12, 6)


@pytest.mark.parametrize("channels_last", [False, True])
def test_bf16_answers_in_float32_and_differs_by_its_rounding(x, channels_last):
    model = classifier()
    exact, slope = model.gradient(x, first)
    logits, grad = model.attacking("bf16", channels_last=channels_last).gradient(x, first)
    assert logits.dtype == grad.dtype == torch.float32
    for got, want in ((logits, exact), (grad, slope)):
        error = ((got - want).abs().max() / want.abs().max()).item()
        assert 1e-5 < error < 2e-2  # bfloat16 keeps 8 bits
    assert grad.is_contiguous()


def test_the_plain_classifier_keeps_its_bits_beside_a_view(x):
    model = classifier()
    before = model.gradient(x, first)
    model.attacking("bf16", channels_last=True).gradient(x, first)
    assert all(map(torch.equal, before, model.gradient(x, first)))


def test_losses_are_computed_in_float32_outside_of_autocast(x):
    seen = []

    def losses(logits):
        seen.append((logits.dtype, torch.is_autocast_enabled("cpu"), (logits @ logits.T).dtype))
        return logits.sum(1)

    classifier().attacking("bf16").gradient(x, losses)
    assert seen == [(torch.float32, False, torch.float32)]


def test_channels_last_reaches_the_network_and_changes_rounding_alone(x):
    model, seen = classifier(), []
    model.module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    view = model.attacking("float32", channels_last=True)
    torch.testing.assert_close(view.logits(x), model.logits(x), rtol=1e-4, atol=1e-5)
    last, plain = (images.is_contiguous(memory_format=torch.channels_last) for images in seen)
    assert (last, plain) == (True, False)


@pytest.mark.parametrize("sampling", [RandomizedClassifier, lambda base: SmoothedClassifier(base, sigma=0.1)])
def test_classifiers_that_sample_refuse(sampling):
    model = sampling(classifier())
    assert model.attacking("float32") is model
    with pytest.raises(UsageError, match="plain networks"):
        model.attacking("bf16")


def test_channels_last_is_for_images():
    model = Classifier(nn.Linear(5, 2), num_classes=2, input_shape=(5,))
    with pytest.raises(UsageError, match=r"images \[C,H,W\]"):
        model.attacking("bf16", channels_last=True)


def test_precisions_are_named_and_tf32_needs_cuda():
    cpu, cuda = torch.device("cpu"), torch.device("cuda", 0)
    assert [parse_precision(name, cuda) for name in ("float32", "tf32", "bf16")] == ["float32", "tf32", "bf16"]
    with pytest.raises(UsageError, match="arithmetic of CUDA"):
        parse_precision("tf32", cpu)
    with pytest.raises(UsageError, match="one of float32, tf32, bf16, got 'fp16'"):
        parse_precision("fp16", cpu)


def switches() -> tuple[object, ...]:
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    single = getattr(matmul, "fp32_precision", None)  # torch from 2.9 on
    return torch.get_float32_matmul_precision(), cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark, single


def test_tf32_is_on_inside_exact_inside_of_that_and_as_it_was_after():
    before = switches()
    with tf32_arithmetic():
        inside = switches()
        assert inside[:3] == ("high", True, True)
        with exact_arithmetic():
            assert torch.get_float32_matmul_precision() == "highest"
        with tf32_arithmetic():
            assert switches() == inside
        assert switches() == inside
    assert switches() == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_on_cuda_a_view_rounds_and_the_plain_classifier_does_not(x, precision):
    model = Classifier(network(), num_classes=4, input_shape=(3, 8, 8), device="cuda")
    want = classifier().logits(x)
    exact, reduced = model.logits(x.cuda()).cpu(), model.attacking(precision).logits(x.cuda()).cpu()
    assert (exact - want).abs().max() < 1e-5 * want.abs().max()
    assert (reduced - want).abs().max() > 1e-5 * want.abs().max()
