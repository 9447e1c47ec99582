"""Noise on internal layers: identities, laws of the noise, calibration, hooks that leave nothing behind."""

import pytest
import torch
from torch import nn

from robustsuite.defenses.rand_feature import RandFeature
from robustsuite.errors import ContractError, UsageError
from robustsuite.models.classifier import Classifier
from robustsuite.models.noisy_features import NoisyFeatureClassifier, largest_sigma
from robustsuite.noise import Noise

SHAPE = (1, 2, 2)
STREAM = Noise(3, "stage/test")


def linear() -> Classifier:
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 4, bias=False), nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        net[1].weight.copy_(torch.eye(4))
        net[2].weight.copy_(torch.tensor([[1.0, 2.0, 0.0, 0.0], [0.0, 0.0, 2.0, 1.0]]))
    return Classifier(net, num_classes=2, input_shape=SHAPE)


def hooks(module: nn.Module) -> int:
    return sum(len(m._forward_hooks) for m in module.modules())


def test_without_noise_the_logits_are_the_same_bits(net, images):
    base = net.classifier()
    model = RandFeature(sigma=0.0, eot=1, draws=1).wrap(base)
    assert torch.equal(model.logits(images.x), base.logits(images.x))


def test_noise_goes_through_the_rest_of_the_network():
    """One linear layer later: N(W h, sigma^2 W W^T)."""
    base, sigma, n = linear(), 0.3, 4000
    model = RandFeature(sigma, ("1",), relative=False, eot=1, draws=1).wrap(base)
    x = torch.rand(1, *SHAPE, generator=torch.Generator().manual_seed(0)).expand(n, *SHAPE)
    model.restart(STREAM)
    z = model.logits(x)
    torch.testing.assert_close(z.mean(0), base.logits(x[:1])[0], atol=0.03, rtol=0)
    weight = base.module[2].weight
    torch.testing.assert_close(torch.cov(z.T), sigma**2 * weight @ weight.T, atol=0.03, rtol=0)


def test_relative_noise_is_in_units_of_the_rows_own_spread():
    base, n = linear(), 4000
    model = RandFeature(0.5, ("1",), eot=1, draws=1).wrap(base)
    one = torch.tensor([0.0, 0.2, 0.8, 1.0]).view(1, *SHAPE)
    x = torch.cat([one.expand(n, *SHAPE), 0.1 * one.expand(n, *SHAPE)])
    model.restart(STREAM)
    spread = (model.logits(x) - base.logits(x)).view(2, n, 2).std(1)
    want = 0.5 * float(one.std(correction=0)) * 5**0.5
    torch.testing.assert_close(spread[0], torch.full((2,), want), rtol=0.05, atol=0)
    torch.testing.assert_close(spread[1], torch.full((2,), 0.1 * want), rtol=0.05, atol=0)


def test_a_layer_that_is_called_twice_draws_twice():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.same = nn.Identity()

        def forward(self, x):
            flat = x.flatten(1)
            return torch.stack([self.same(flat).sum(1), self.same(flat).sum(1)], 1)

    model = RandFeature(1.0, ("same",), relative=False, eot=1, draws=1).wrap(
        Classifier(Twice(), num_classes=2, input_shape=SHAPE)
    )
    z = model.logits(torch.zeros(3000, *SHAPE))
    assert abs(float(torch.corrcoef(z.T)[0, 1])) < 0.06


def test_the_mean_over_draws_converges_to_the_expectation():
    base = linear()
    x = torch.rand(5, *SHAPE, generator=torch.Generator().manual_seed(0))
    errors = []
    for eot in (1, 25):
        model = RandFeature(0.5, ("1",), relative=False, eot=eot, draws=1).wrap(base)
        gaps = []
        for seed in range(30):
            model.restart(Noise(seed, "test"))
            gaps.append((model.logits(x) - base.logits(x)).square().mean())
        errors.append(float(torch.stack(gaps).mean()) ** 0.5)
    assert errors[0] / errors[1] == pytest.approx(5, rel=0.25)


def test_no_hook_outlives_a_pass_not_even_after_an_error_and_unwrap_gives_the_model_back(net, images):
    base = net.classifier()
    before = base.logits(images.x)
    model = RandFeature(0.2, eot=2, draws=2).wrap(base)
    assert isinstance(model, NoisyFeatureClassifier)
    assert hooks(base.module) == 0
    assert not torch.equal(model.logits(images.x), before)
    assert hooks(base.module) == 0
    with pytest.raises(RuntimeError):
        model.logits(images.x[:, :, :4])
    assert hooks(base.module) == 0
    assert torch.equal(base.logits(images.x), before)
    assert model.unwrap() is base


def test_draws_are_keyed_by_pass_and_place_and_do_not_depend_on_the_batch(net, images):
    model = RandFeature(0.2, eot=2, draws=3).wrap(net.classifier())
    runs = []
    for rows in (images.x, images.x, images.x[:20]):
        model.restart(STREAM)
        runs.append(model.logits(rows))
    assert torch.equal(runs[0], runs[1])
    torch.testing.assert_close(runs[0][:20], runs[2])
    assert not torch.equal(runs[0], model.logits(images.x))


def test_the_default_layers_are_all_with_weights_but_the_last(net):
    assert RandFeature().wrap(net.classifier()).layers == ("0", "2", "4")
    one = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), num_classes=2, input_shape=SHAPE)
    assert RandFeature().wrap(one).layers == ("1",)


def test_the_calibrated_sigma_costs_what_was_asked_and_grows_with_it(net, images):
    base = net.classifier()
    defense = RandFeature(draws=4)
    found = [defense.calibrated(base, images.x, images.y, drop=drop) for drop in (0.0, 0.02, 0.1)]
    sigmas = [d.sigma for d in found]
    assert sigmas == sorted(sigmas)
    assert 0 < sigmas[1] < sigmas[2]
    wanted = float((base.logits(images.x).argmax(1) == images.y).float().mean()) - 0.02
    assert found[1].wrap(base).accuracy(images.x, images.y, Noise(0, "calibrate")) >= wanted
    above = RandFeature(found[1].sigma * 10**0.1, draws=4).wrap(base)
    assert above.accuracy(images.x, images.y, Noise(0, "calibrate")) < wanted
    layers = found[1].wrap(base).layers
    again = largest_sigma(base, layers, images.x, images.y, relative=True, drop=0.02, draws=4, seed=0)
    assert again == sigmas[1]


def test_a_white_box_attack_in_expectation_is_hardly_held_up(net, images, clean, attacked):
    base = net.classifier()
    model = RandFeature(0.1, eot=5, draws=20).wrap(base)
    assert clean(model, images) > clean(base, images) - 0.1
    assert attacked(model, images) <= attacked(base, images) + 0.15


def test_bad_parameters_are_refused(net):
    for bad in ({"sigma": -1.0}, {"sigma": float("inf")}, {"layers": "0"}):
        with pytest.raises(UsageError):
            RandFeature(**bad)
    with pytest.raises(UsageError, match="no layer 'nowhere'"):
        RandFeature(layers=("nowhere",)).wrap(net.classifier())
    bare = Classifier(nn.Flatten(), num_classes=4, input_shape=SHAPE)
    with pytest.raises(UsageError, match="name layers"):
        RandFeature().wrap(bare)
    model = RandFeature(0.1).wrap(net.classifier())
    with pytest.raises(ContractError, match="by itself"):
        model.module(torch.zeros(1, 1, 8, 8))
