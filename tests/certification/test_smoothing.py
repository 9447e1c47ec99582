"""Cohen's CERTIFY on classifiers whose smoothed radius is known."""

import math

import pytest
import torch
from scipy import stats
from torch import nn

from robustsuite.certification.smoothing import Smoothing
from robustsuite.errors import UsageError
from robustsuite.models.classifier import Classifier
from robustsuite.models.smoothed import SmoothedClassifier
from robustsuite.noise import Noise
from robustsuite.registry import CERTIFIERS
from robustsuite.threat import ThreatModel

SHAPE = (1, 3, 3)
L2 = ThreatModel.parse("L2:0.5")


def half_space(w, b):
    layer = nn.Linear(9, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.stack([-w, w]) / 2)
        layer.bias.copy_(torch.tensor([-b, b]) / 2)
    return Classifier(nn.Sequential(nn.Flatten(), layer), num_classes=2, input_shape=SHAPE)


def noise(n, seed=0):
    return Noise(seed, "certify").at(torch.arange(n))


def certify(certifier, model, x, seed=0):
    y = torch.zeros(len(x), dtype=torch.int64)
    return certifier.certify(model, x, y, L2, noise(len(x), seed))


@pytest.mark.parametrize("sigma", [0.25, 1.0])
def test_a_half_space_gets_almost_its_exact_radius(sigma):
    w = torch.tensor([1.0, -2.0, 0.5, 3.0, 0.0, 1.0, -1.0, 2.0, 0.3])
    # Points at known distances of both sides of the plane w.x = 2.
    distances = torch.tensor([0.3, -0.5, 1.2, -2.0]) * sigma
    start = torch.full((9,), 2.0) / w.sum()
    x = (start + distances.view(-1, 1) * w / w.norm()).view(-1, *SHAPE)
    got = certify(Smoothing(sigma, n=100_000), half_space(w, -2.0), x)
    assert got.predicted.tolist() == [1, 0, 1, 0]
    exact = distances.abs().double()
    assert bool((got.radius < exact).all())  # fails with probability 0.1 % a point
    torch.testing.assert_close(got.radius, exact, rtol=0.05, atol=0.0)
    assert got.guarantee == "confidence 0.999"


def test_radii_are_below_the_exact_one_in_all_but_alpha_of_the_cases():
    sigma, alpha, trials = 0.5, 0.05, 1000
    x = torch.zeros(trials, *SHAPE)
    x[:, 0, 0, 0] = 0.3  # the exact radius for the plane x_0 = 0
    w = torch.zeros(9)
    w[0] = 1.0
    got = certify(Smoothing(sigma, n=500, n0=50, failure_probability=alpha, batch=2000), half_space(w, 0.0), x)
    wrong = int((got.radius > 0.3 + 1e-6).sum())
    assert stats.binomtest(wrong, trials, alpha, alternative="greater").pvalue > 1e-3
    assert wrong > 0
    assert int((got.predicted == 1).sum()) > 990


@pytest.mark.parametrize(("n", "alpha"), [(1000, 0.001), (100, 0.05)])
def test_a_constant_classifier_gets_the_largest_radius_exactly(n, alpha):
    base = half_space(torch.zeros(9), 1.0)
    got = certify(Smoothing(0.25, n0=10, n=n, failure_probability=alpha), base, torch.rand(2, *SHAPE))
    assert got.radius.tolist() == pytest.approx([0.25 * stats.norm.ppf(alpha ** (1 / n))] * 2, rel=1e-9)
    assert got.radius[0] == 0.25 * stats.norm.isf(-math.expm1(math.log(alpha) / n))
    assert got.predicted.tolist() == [1, 1]
    assert got.guarantee == f"confidence {1 - alpha:g}"
    assert got.radius.dtype == torch.float64


def test_a_point_on_the_boundary_abstains():
    got = certify(Smoothing(0.25, n=1000), half_space(torch.ones(9), 0.0), torch.zeros(5, *SHAPE))
    assert got.predicted.tolist() == [-1] * 5
    assert got.radius.tolist() == [0.0] * 5


def test_estimation_uses_fresh_noise_and_certificates_do_not_depend_on_the_batch():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(9, 16), nn.ReLU(), nn.Linear(16, 3))
    base = Classifier(module, num_classes=3, input_shape=SHAPE)
    x, certifier = torch.rand(6, *SHAPE), Smoothing(0.5, n0=50, n=400, batch=128)
    whole = certify(certifier, base, x)
    assert base.passes.forward == math.ceil(6 * 50 / 128) * 128 + math.ceil(6 * 400 / 128) * 128
    y = torch.zeros(1, dtype=torch.int64)
    for i in range(6):
        alone = certifier.certify(base, x[i : i + 1], y, L2, Noise(0, "certify").at(torch.tensor([i])))
        assert alone.radius == whole.radius[i]
        assert alone.predicted == whole.predicted[i]
    assert not torch.equal(certify(certifier, base, x, seed=1).radius, whole.radius)
    # With n0 = n the selection must not be the estimation: equal counts would mean that noise was used twice.
    seen = []
    module.register_forward_pre_hook(lambda m, args: seen.append(args[0].clone()))
    certify(Smoothing(0.5, n0=128, n=128, batch=128), base, x[:1])
    assert not torch.equal(seen[0], seen[1])


def test_the_subject_is_the_smoothed_classifier():
    base, certifier = half_space(torch.ones(9), 0.0), Smoothing(0.25, n=2000)
    subject = certifier.subject(base)
    assert isinstance(subject, SmoothedClassifier)
    assert (subject.base, subject.sigma) == (base, 0.25)
    assert certifier.subject(subject) is subject
    x = torch.rand(3, *SHAPE)
    assert torch.equal(certify(certifier, base, x).radius, certify(certifier, subject, x).radius)
    with pytest.raises(UsageError, match="sigma"):
        certify(Smoothing(0.5), subject, x)
    with pytest.raises(UsageError, match="sigma"):
        Smoothing(0.5).subject(subject)


def test_no_attack_inside_a_certified_ball_succeeds_against_the_smoothed_half_space():
    w = torch.ones(9) / 3
    base, certifier = half_space(w, -1.5), Smoothing(0.5, n=5000)
    x = torch.full((4, *SHAPE), 0.5) + torch.tensor([0.05, 0.1, 0.2, 0.3]).view(4, 1, 1, 1)
    got = certify(certifier, base, x)
    subject = certifier.subject(base)
    direction = w.view(1, *SHAPE) * got.radius.float().view(-1, 1, 1, 1)
    predicted, _ = subject.decide(x - direction, noise(4, 9))
    assert bool((predicted != 0).all())  # the class is 1, or too close to say; never the other
    predicted, _ = subject.decide(x - 1.5 * direction - 0.1 * w.view(1, *SHAPE), noise(4, 9))
    assert bool((predicted == 0).all())


@pytest.mark.parametrize(
    "bad",
    [
        {"sigma": 0.0},
        {"sigma": -1.0},
        {"sigma": float("inf")},
        {"n0": 0},
        {"n": 50},
        {"failure_probability": 0.0},
        {"failure_probability": 1.0},
        {"batch": 0},
    ],
)
def test_bad_parameters_are_refused(bad):
    with pytest.raises(UsageError):
        Smoothing(**{"sigma": 0.25, **bad})


def test_only_l2_and_the_declared_facts():
    base, certifier = half_space(torch.ones(9), 0.0), Smoothing(0.25)
    assert certifier.unsupported(base, L2) is None
    assert "Linf" in (certifier.unsupported(base, ThreatModel.parse("Linf:0.1")) or "")
    entry = CERTIFIERS.get("smoothing")
    assert entry.target is Smoothing
    assert entry.facts["kind"] == "probabilistic"
    assert certifier.cost == (10_100, 0)
