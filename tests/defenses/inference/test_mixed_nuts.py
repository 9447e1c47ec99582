"""MixedNUTS: published vectors, a calibration that brute force repeats, and its adaptive gradient."""

from dataclasses import asdict

import numpy as np
import pytest
import torch
from torch import nn

from robustsuite.attacks.pgd import PGD
from robustsuite.data.digits import digits
from robustsuite.defenses.mixed_nuts import MixedNUTS
from robustsuite.errors import UsageError
from robustsuite.models.classifier import Classifier, margins
from robustsuite.models.mixed import Mixture
from robustsuite.models.nonlinear import NonlinearMixture, calibrate, default_grid, normalised, sharpened
from robustsuite.noise import Noise
from robustsuite.threat import ThreatModel

ROBUST = torch.tensor([[4.0, 1.0, 0.0, -1.0]])
STANDARD = torch.tensor([[0.0, 5.0, 0.0, 0.0]])
PAPER = {"s": 5.0, "c": -1.1, "p": 4.0}
X = torch.zeros(1, 1, 2, 2)


class Fixed(nn.Module):
    def __init__(self, logits):
        super().__init__()
        self.values = logits

    def forward(self, x):
        return self.values.expand(len(x), -1)


def mixture(alpha, **changed):
    return NonlinearMixture(Fixed(STANDARD), Fixed(ROBUST), **(PAPER | {"alpha": alpha} | changed))


def close(got, want):
    torch.testing.assert_close(got, torch.tensor([want], dtype=got.dtype), atol=1e-5, rtol=0)


def test_the_published_vectors():
    z = ROBUST.double()
    close(normalised(z), [1.388730, 0, -0.462910, -0.925820])
    close(torch.nn.functional.gelu(normalised(z) - 1.1), [0.177167, -0.149233, -0.092269, -0.043336])
    close(sharpened(z, **PAPER), [0.004926, -0.002480, -0.000362, -0.000018])
    close(mixture(0.99875)(X).exp(), [0.250798, 0.250165, 0.249475, 0.249561])


def test_only_the_largest_logits_are_normalised_where_there_are_many():
    z = torch.tensor([[3.0, 1.0, 2.0, -100.0, -200.0]]).double()
    torch.testing.assert_close(normalised(z, 3), (z - 2) / np.sqrt(1 + 1e-8))
    assert torch.equal(normalised(z, 5), normalised(z, 250))


def test_the_ends_of_the_weight_are_the_two_networks():
    own = sharpened(ROBUST.double(), **PAPER).log_softmax(1).float()
    torch.testing.assert_close(mixture(1.0)(X), own)
    torch.testing.assert_close(mixture(0.0)(X), STANDARD.log_softmax(1))


def test_with_nothing_sharpened_it_is_the_mixture_of_adaptive_smoothing():
    """p = 1, and c so large that the GELU is a line: the robust logits normalised and scaled."""
    scale = float(ROBUST.double().var(1).add(1e-8).sqrt())
    got = mixture(0.9, s=scale, c=50.0, p=1.0)(X)
    torch.testing.assert_close(got, Mixture(Fixed(STANDARD), Fixed(ROBUST), 0.9)(X), atol=1e-6, rtol=0)


def test_hardmax_gives_the_accurate_networks_answer_all_the_rest():
    got = mixture(0.9, hard=True)(X).exp()
    own = 0.9 * sharpened(ROBUST.double(), **PAPER).softmax(1)
    own[0, 1] += 0.1
    torch.testing.assert_close(got, own.float())


def test_the_first_class_stays_first_where_its_own_value_is_positive_though_low_ones_change_places():
    z = 3 * torch.randn(2000, 10, generator=torch.Generator().manual_seed(0)).double()
    for c in (-1.1, -0.5, 0.0):
        positive = (normalised(z) + c).amax(1) > 0
        h = sharpened(z, 5.0, c, 4.0)
        assert bool((h.argmax(1) == z.argmax(1))[positive].all())
        assert not torch.equal(h.argsort(1), z.argsort(1))


def brute(held, wrong, beta, grid):
    best = None
    for s in grid[0]:
        for c in grid[1]:
            for p in grid[2]:
                sides = []
                for z in (held, wrong):
                    a = torch.nn.functional.gelu((z - z.mean(1, True)) / (z.var(1, keepdim=True) + 1e-8).sqrt() + c)
                    q = np.sort((s * a.sign() * a.abs() ** p).softmax(1).numpy(), 1)
                    sides.append(q[:, -1] - q[:, -2])
                cutoff = np.percentile(sides[0], 100 - beta)
                key = float((sides[1] >= cutoff).mean()), 1 / (1 + cutoff), s, c, p
                best = key if best is None or key[:2] < best[:2] else best
    return best


def test_the_calibration_is_the_best_point_of_the_grid():
    generator = torch.Generator().manual_seed(0)
    held = torch.randn(200, 10, generator=generator).double()
    held[:, 3] += 4
    wrong = torch.randn(80, 10, generator=generator).double()
    wrong[:, 5] += 2
    grid = (0.5, 5.0), (-1.5, -1.0, 0.0), (1.0, 2.0, 4.0)
    found = calibrate(held, wrong, 95.0, grid)
    errors, alpha, s, c, p = brute(held, wrong, 95.0, grid)
    assert (found.s, found.c, found.p) == (s, c, p)
    assert (found.confident_errors, found.alpha) == pytest.approx((errors, alpha))
    own = sharpened(held, s, c, p).softmax(1).topk(2, 1).values
    assert float((own[:, 0] - own[:, 1] >= (1 - alpha) / alpha - 1e-12).double().mean()) >= 0.95
    raw = np.sort(held.softmax(1).numpy(), 1)
    assert found.surrogate_alpha == pytest.approx(1 / (1 + np.percentile(raw[:, -1] - raw[:, -2], 5)))
    assert [len(axis) for axis in default_grid()] == [8, 8, 8]


def test_a_calibration_needs_examples_of_both_kinds():
    some, none = torch.randn(3, 4), torch.empty(0, 4)
    for held, wrong, beta in ((none, some, 98.0), (some, none, 98.0), (some, some, 100.0)):
        with pytest.raises(UsageError):
            calibrate(held, wrong, beta)


def test_the_soft_gradient_is_that_of_the_papers_surrogate():
    standard, robust = nn.Sequential(nn.Flatten(), nn.Linear(4, 4)), nn.Sequential(nn.Flatten(), nn.Linear(4, 4))
    x = torch.rand(3, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    model = NonlinearMixture(standard, robust, **PAPER, alpha=0.99, surrogate_alpha=0.6)
    leaf = x.clone().requires_grad_(True)
    out = model(leaf)
    assert torch.equal(out.detach(), model(x).detach())
    with torch.no_grad():
        assert torch.equal(out.detach(), model(x))
    (got,) = torch.autograd.grad(out[:, 1].sum(), leaf)
    z = robust(leaf).double()
    blend = 0.9 * z.softmax(1) + 0.1 * sharpened(z, **PAPER).softmax(1)
    want = (0.4 * standard(leaf).double().softmax(1) + 0.6 * blend).log()
    torch.testing.assert_close(got, torch.autograd.grad(want[:, 1].sum(), leaf)[0])


def test_on_digits_it_is_more_accurate_than_the_robust_network_and_keeps_most_of_its_robustness(trained, tmp_path):
    """Calibrated on one half of the test digits, measured on the other."""
    robust, standard = trained("pgd_at"), trained("standard")
    model, threat = robust.classifier(), ThreatModel.parse("Linf:0.15")
    test = digits("test")
    fit, held = test.take(torch.arange(0, 400), "fit"), test.take(torch.arange(400, 500), "held out")

    def strike(target, data):
        attack = PGD(steps=20, stop_when_fooled=False)
        return attack.run(target, data.x, data.y, threat, Noise(0, "test").at(data.ids))

    def right(target, x, data):
        return float((target.logits(x).argmax(1) == data.y).float().mean())

    defense = MixedNUTS(str(standard.checkpoint)).calibrated(model, fit.x, fit.y, strike(model, fit), beta=95.0)
    assert asdict(defense) == asdict(MixedNUTS(**asdict(defense)))
    mixed = defense.wrap(model)
    assert mixed.facts.differentiable == "surrogate"
    exact = MixedNUTS(**{**asdict(defense), "surrogate": "exact"}).wrap(model)
    assert exact.facts.differentiable == "full"
    clean = right(mixed, held.x, held), right(model, held.x, held)
    attacked = [right(mixed, strike(m, held), held) for m in (mixed, exact)]
    bare = right(model, strike(model, held), held)
    assert clean[0] >= clean[1] - 0.01
    weak = standard.classifier()
    assert right(weak, strike(weak, held), held) + 0.2 < min(attacked) <= bare
    assert min(attacked) > 0.7 * bare
    _, grad = mixed.gradient(held.x, lambda z: margins(z, held.y))
    assert bool(grad.flatten(1).any(1).all())


@pytest.mark.parametrize(
    "bad",
    [{"alpha": 1.1}, {"surrogate_alpha": -0.1}, {"s": 0.0}, {"p": 0.0}, {"k": 1}, {"standard_map": "max"}]
    + [{"surrogate": s} for s in ("identity", "none")],
)
def test_bad_parameters_are_refused(bad):
    with pytest.raises(UsageError):
        MixedNUTS(**bad)


def test_a_network_mixed_with_itself_has_its_answers():
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 4))
    model = Classifier(module, num_classes=4, input_shape=(1, 2, 2))
    x = torch.rand(20, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    got = MixedNUTS(c=1.0).wrap(model)
    assert torch.equal(got.logits(x).argmax(1), model.logits(x).argmax(1))
