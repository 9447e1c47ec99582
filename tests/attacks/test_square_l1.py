"""Square for L1: its patterns, its proposals, and its strength beside the reference implementation."""

import pytest
import torch

from robustsuite.attacks.square import Square
from robustsuite.attacks.square_windows import bumps
from robustsuite.models.classifier import fooled
from robustsuite.noise import Noise, fork_global
from robustsuite.threat import ThreatModel


@pytest.mark.reference
@pytest.mark.parametrize("side", [1, 2, 3, 4, 5, 8, 13, 20, 29])
def test_bumps_are_those_of_the_reference(side):
    package = pytest.importorskip("pyautoattack.square")
    other = package.SquareAttack(None, norm="L1", eps=0.1, device="cpu")
    with fork_global(0, "bumps"):
        theirs = [other.eta(side) for _ in range(20)]  # turned at random
    for turned in (bumps(side, "L1"), bumps(side, "L1").T):
        assert any(torch.allclose(turned, pattern, atol=1e-6) for pattern in theirs)


@pytest.mark.parametrize("side", [2, 3, 5, 10, 29])
def test_bumps_have_norm_one_and_two_signs(side):
    pattern = bumps(side, "L1")
    assert pattern.abs().sum().item() == pytest.approx(1, abs=1e-5)
    assert (pattern[: side // 2] > 0).all()
    assert (pattern[side // 2 :] < 0).all()


def test_proposals_spend_the_budget_and_move_few_pixels(cnn):
    threat, ids = ThreatModel.parse("L1:3"), torch.arange(20)
    model, x = cnn(shape=(3, 16, 16)), torch.full((20, 3, 16, 16), 0.5)
    y, noise, attack = model.logits(x).argmax(1), Noise(0, "s").at(ids), Square(n_queries=60)
    state = attack.init(x, y, model.logits(x), ids * 0, threat, noise)
    state.muted.fill_(10**6)
    for _ in range(60):
        assert threat.contains(x, state.x_adv).all()
        assert (threat.distance(x, state.x_adv) > 2.9).float().mean() >= 0.8
        assert (state.x_adv != x).float().mean() < 0.5
        state = attack.step(model, state, threat, noise)


@pytest.mark.reference
def test_it_is_as_strong_as_the_reference_on_a_real_model(mnist_cnn_a):
    """About two in five images each; two such shares of 60 differ by 0.09 from chance alone (one deviation)."""
    package = pytest.importorskip("pyautoattack.square")
    model, x, y = mnist_cnn_a[0], mnist_cnn_a[1][:60], mnist_cnn_a[2][:60]
    threat = ThreatModel.parse("L1:10")
    x_adv = Square(n_queries=300).run(model, x, y, threat, Noise(0, "real").at(torch.arange(60)))
    assert threat.contains(x, x_adv).all()
    ours = fooled(model.logits(x_adv), y).float().mean()
    settings = {"norm": "L1", "n_queries": 300, "eps": 10.0, "device": "cpu", "seed": 0, "resc_schedule": False}
    with fork_global(0, "real"):
        x_adv = package.SquareAttack(model.module, **settings).perturb(x, y)
    theirs = fooled(model.logits(x_adv), y).float().mean()
    assert 0.2 < theirs < 0.6
    assert abs(ours - theirs) < 0.18
