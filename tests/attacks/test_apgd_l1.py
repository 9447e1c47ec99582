"""APGD for L1: its schedule, its iterates against the reference implementation, its strength on a real model."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from robustsuite.attacks.apgd import APGD, APGDCE, APGDDLR, APGDT, APGDState
from robustsuite.attacks.apgd_l1 import phases
from robustsuite.attacks.starts import within
from robustsuite.errors import UsageError
from robustsuite.models.classifier import Classifier, fooled
from robustsuite.noise import Noise, fork_global
from robustsuite.threat import Eps, ThreatModel

# What the reference warns of is not what is compared here.
pytestmark = pytest.mark.filterwarnings("ignore:there are .* points with zero gradient")


def test_phases_share_the_moves():
    assert phases(100, largereps=False) == [(1, 100)]
    assert phases(100, largereps=True) == [(3, 30), (2, 30), (1, 40)]
    assert phases(7, largereps=True) == [(3, 3), (2, 3), (1, 1)]
    assert phases(2, largereps=True) == [(3, 1), (2, 1), (1, 0)]


def test_senseless_settings_are_usage_errors():
    with pytest.raises(UsageError, match="largereps"):
        APGDCE(steps=1, largereps=True)


def trajectory(attack: APGD, model: Classifier, state: APGDState, threat: ThreatModel, noise: Noise) -> list[Tensor]:
    """Every evaluated point; muted beyond the end, so that no success stops the run."""
    state.muted.fill_(10**6)
    points = []
    for _ in range(attack.budget):
        points.append(state.x_adv.clone())
        state = attack.step(model, state, threat, noise.at(state.ids))
    return points


def reference(
    attack: APGD, model: Classifier, x: Tensor, y: Tensor, target: Tensor, eps: float, start: Tensor, patch: Any
) -> list[Tensor]:
    """The points that pyautoattack's APGD evaluates from the same start.

    Two differences are taken out: its count of moved pixels leaves out what rounding moved, and it does not see the
    gradient of pixels that the box holds.
    """
    package = pytest.importorskip("pyautoattack.autopgd_base")
    points: list[Tensor] = []

    def watched(z: Tensor) -> Tensor:
        points.append(z.detach().clone())
        seen = z * 1
        seen.register_hook(lambda g: g * torch.where(g > 0, z < 1 - 1e-6, z > 1e-6))
        return model.module(seen)

    patch.setattr(package, "L0_norm", lambda delta: (delta.abs() > 1e-6).flatten(1).sum(1))
    for draw in ("randn", "randn_like"):
        patch.setattr(torch, draw, lambda *_, **__: start - x)
    settings = {"n_iter": attack.steps, "norm": "L1", "eps": eps, "device": "cpu"}
    if isinstance(attack, APGDT):
        other = package.APGDAttack_targeted(watched, **settings)
        other.y_target = target
    else:
        other = package.APGDAttack(watched, loss=attack.loss, **settings)
    other.init_hyperparam(x)
    if attack.largereps:
        radii, moves = zip(*phases(attack.steps, largereps=True), strict=True)
        other.decr_eps_pgd(x, y, [radius * eps for radius in radii], moves)
    else:
        other.attack_single_run(x, y)
    return points


@pytest.mark.reference
@pytest.mark.parametrize("largereps", [False, True])
@pytest.mark.parametrize("steps", [100, 40])
@pytest.mark.parametrize("attack", [APGDCE, APGDDLR, APGDT], ids=lambda a: a.__name__)
@pytest.mark.parametrize("text", ["L1:1", "L1:5"])
def test_every_iterate_is_that_of_the_reference(attack, text, steps, largereps, cnn, images, monkeypatch):
    """Rows may part where a comparison hangs on the last bit (losses that stand still, pixels with one gradient)."""
    attack, threat, noise = attack(steps=steps, largereps=largereps), ThreatModel.parse(text), Noise(0, "compare")
    model, x = cnn(), images(12)
    monkeypatch.setattr(model, "_faster", nullcontext())  # as in test_apgd
    x = (x * 1.4 - 0.2).clamp(0, 1)  # some pixels on the box
    logits = model.logits(x)
    y = logits.argmax(1)
    state = attack.init(x, y, logits, torch.full_like(y, 2), threat, noise.at(torch.arange(12)))
    radius = within(threat, x[0].numel()).radius
    expected = reference(attack, model, x, y, state.target, radius, state.x_adv.clone(), monkeypatch)
    found = trajectory(attack, model, state, threat, noise)
    assert len(found) == len(expected) == attack.budget == steps + (3 if largereps else 1)
    apart = (torch.stack(found) - torch.stack(expected)).abs().flatten(2).amax(2)  # [budget, 12]
    assert (apart.amax(0) < 1e-5).sum() >= 9
    assert (apart[:3] < 1e-5).all()
    assert (found[0] - found[-1]).abs().max() > 0.1


def test_pixels_that_the_box_holds_are_passed_over(linear):
    """The heaviest fifth of the pixels is stuck; the attack goes on with the next ones."""
    weight = torch.arange(1.0, 26.0)
    model = linear(torch.stack([-weight, weight]), torch.tensor([400.0, 0.0]), (1, 5, 5))
    x = torch.full((1, 1, 5, 5), 0.5)
    x.flatten()[-10:] = 1.0
    y, at = torch.zeros(1, dtype=torch.long), Noise(0, "stuck").at(torch.arange(1))
    best = x.clone()
    best.flatten()[13:15] = 1.0  # the two heaviest that can move, by 0.5 each
    reachable = (model.logits(best) - model.logits(x))[0, 1].item()
    state = APGDCE(steps=50).init(x, y, model.logits(x), y, ThreatModel.parse("L1:1"), at)
    state.muted.fill_(10**6)
    for _ in range(51):
        state = APGDCE(steps=50).step(model, state, ThreatModel.parse("L1:1"), at)
    gained = (model.logits(state.x_best) - model.logits(x))[0, 1].item()
    assert gained >= 0.97 * reachable


def test_the_wide_balls_are_searched_but_nothing_counts_there(cnn, images):
    """With labels that are wrong from the start every point fools; the first that counts lies in the ball itself."""
    model, x = cnn(), images(6)
    y = (model.logits(x).argmax(1) + 1) % 10
    attack, threat, at = (
        APGDCE(steps=20, largereps=True),
        ThreatModel.parse("L1:2"),
        Noise(0, "wide").at(torch.arange(6)),
    )
    state = attack.init(x, y, model.logits(x), y, threat, at)
    for number in range(15):
        radius = 3 if number < 7 else 2 if number < 14 else 1  # six moves and the start of each phase
        assert torch.allclose(threat.distance(x, state.x_adv), torch.full((6,), 2.0 * radius).double(), rtol=1e-3)
        assert ThreatModel("L1", Eps(radius * threat.eps.fraction)).contains(x, state.x_adv).all()
        assert not state.fooled.any()
        state = attack.step(model, state, threat, at)
    assert state.fooled.all()
    assert (state.it == 15).all()


def test_the_step_is_shortened_where_nothing_changes(linear):
    """Without a gradient: the first review finds the start sparse, the others shorten the step, down to a tenth."""
    model = linear(torch.zeros(2, 25), torch.tensor([1.0, 0.0]), (1, 5, 5))
    x, y, threat = torch.full((3, 1, 5, 5), 0.5), torch.zeros(3, dtype=torch.long), ThreatModel.parse("L1:0.5")
    at = Noise(0, "still").at(torch.arange(3))
    state = APGDCE().init(x, y, model.logits(x), y, threat, at)
    seen = []
    for _ in range(100):
        state = APGDCE().step(model, state, threat, at)
        seen.append(float(state.eta[0]))
    assert [i for i in range(1, 100) if seen[i] != seen[i - 1]] == [8, 12, 16, 20, 24, 28]
    assert seen[7] == pytest.approx(0.5, rel=1e-4)
    assert seen[8] == pytest.approx(0.5 / 1.5, rel=1e-4)
    assert seen[-1] == pytest.approx(0.05, rel=1e-4)


@pytest.mark.reference
@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_it_is_as_strong_as_the_reference_on_a_real_model(loss, mnist_cnn_a):
    """Two runs each; their counts differ by chance, from seed to seed by 2 of 60."""
    package = pytest.importorskip("pyautoattack.autopgd_base")
    model, x, y = mnist_cnn_a[0], mnist_cnn_a[1][:60], mnist_cnn_a[2][:60]
    threat, ours, theirs = ThreatModel.parse("L1:8"), 0, 0
    attack = {"ce": APGDCE, "dlr": APGDDLR}[loss](steps=40, largereps=True)
    settings = {"n_iter": 40, "norm": "L1", "eps": 8.0, "loss": loss, "device": "cpu", "use_largereps": True}
    for seed in range(2):
        x_adv = attack.run(model, x, y, threat, Noise(seed, "real").at(torch.arange(60)))
        assert threat.contains(x, x_adv).all()
        ours += int(fooled(model.logits(x_adv), y).sum())
        with fork_global(seed, "real"):
            x_adv = package.APGDAttack(model.module, seed=seed, **settings).perturb(x, y)
        theirs += int(fooled(model.logits(x_adv), y).sum())
    assert 30 <= ours <= 90  # about half of them
    assert ours >= theirs - 4
