import pytest
import torch
import torch.nn.functional as F

from robustsuite.attacks.pgd import PGD
from robustsuite.errors import UsageError
from robustsuite.models.classifier import fooled
from robustsuite.noise import Noise
from robustsuite.threat import ThreatModel

NOISE = Noise(0, "pgd").at(torch.arange(10))


@pytest.fixture
def setting(cnn, images):
    model, x = cnn(), (images(10) * 1.4 - 0.2).clamp(0, 1)
    return model, x, model.logits(x).argmax(1)


def plain(module, x, y, eps: float, alpha: float, steps: int, x_adv):
    """Textbook Linf PGD on the cross-entropy."""
    for _ in range(steps):
        leaf = x_adv.clone().requires_grad_()
        F.cross_entropy(module(leaf), y, reduction="sum").backward()
        x_adv = (x_adv + alpha * leaf.grad.sign()).clamp(x - eps, x + eps).clamp(0, 1)
    return x_adv


@pytest.mark.parametrize(
    ("settings", "alpha"), [({"alpha": 0.01}, 0.01), ({}, 2.5 * 0.03 / 7), ({"rel_alpha": 1}, 0.03 / 7)]
)
def test_training_iterates_are_the_textbook_s(setting, settings, alpha):
    """Without stopping: exactly `steps` gradients, and the final iterate comes back."""
    model, x, y = setting
    attack = PGD(steps=7, random_start=False, stop_when_fooled=False, **settings)
    model.passes.backward = 0
    x_adv = attack.run(model, x, y, ThreatModel.parse("Linf:0.03"), NOISE)
    assert model.passes.backward == 7 * 10
    assert torch.allclose(x_adv, plain(model.module, x, y, 0.03, alpha, 7, x), atol=1e-6)


def test_training_goes_on_beyond_success(setting):
    model, x, y = setting
    threat = ThreatModel.parse("Linf:0.3")
    stopped = PGD(steps=20, random_start=False).run(model, x, y, threat, NOISE)
    ran_on = PGD(steps=20, random_start=False, stop_when_fooled=False).run(model, x, y, threat, NOISE)
    assert fooled(model.logits(stopped), y).any()
    loss = [F.cross_entropy(model.logits(v), y) for v in (x, stopped, ran_on)]
    assert loss[0] < loss[1] < loss[2]


def test_restarts_find_more(setting):
    model, x, y = setting
    found = []
    for restarts in (1, 12):
        attack = PGD(steps=1, alpha=0.02, restarts=restarts)
        assert attack.lanes(10) == restarts
        x_adv = attack.run(model, x, y, ThreatModel.parse("Linf:0.3"), NOISE)
        found.append(fooled(model.logits(x_adv), y))
    assert (found[1] | ~found[0]).all()
    assert found[1].sum() > found[0].sum()


def test_starts_differ_between_examples_and_restarts_and_repeat(setting):
    _, x, y = setting
    threat, attack = ThreatModel.parse("Linf:0.1"), PGD()
    middle = torch.full_like(x, 0.5)
    zero = torch.zeros_like(y)
    a, b, again = (attack.init(middle, y, x, zero + lane, threat, NOISE).x_adv for lane in (0, 1, 0))
    assert torch.equal(a, again)
    assert (a != b).flatten(1).float().mean() > 0.99
    assert (a[0] != a[1]).float().mean() > 0.99


@pytest.mark.parametrize(
    "settings", [{"steps": 0}, {"restarts": 0}, {"restarts": 2, "random_start": False}, {"loss": "hinge"}]
)
def test_senseless_settings_are_usage_errors(settings):
    with pytest.raises(UsageError):
        PGD(**settings)
