"""APGD against the published schedule and, iterate by iterate, against the reference implementation."""

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from robustsuite.attacks.apgd import APGD, APGDCE, APGDDLR, APGDT, APGDMargin, APGDState
from robustsuite.attacks.apgd_momentum import MomentumState, checkpoints
from robustsuite.errors import UsageError
from robustsuite.models.classifier import Classifier
from robustsuite.noise import Noise
from robustsuite.threat import ThreatModel


def test_checkpoints_of_a_hundred_steps():
    assert list(checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert list(checkpoints(100).values()) == [22, 19, 16, 13, 10, 7, 6, 6]


@pytest.mark.parametrize("steps", [1, 2, 5, 10, 20, 33, 50, 100, 250, 1000])
def test_checkpoints_of_any_number_of_steps(steps):
    """The counting loop of the published code, run out."""
    period, since, expected = max(int(0.22 * steps), 1), 0, {}
    for i in range(steps):
        since += 1
        if since == period:
            expected[i + 1] = period
            period, since = max(period - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1)), 0
    assert checkpoints(steps) == expected


def test_targets_go_by_clean_logit_and_leave_out_the_label():
    logits = torch.tensor([[5.0, 1.0, 3.0, 4.0], [5.0, 1.0, 3.0, 4.0], [2.0, 2.0, 2.0, 1.0]])
    y = torch.tensor([0, 3, 1])
    attack = APGDT(n_targets=9)
    assert attack.lanes(4) == 3
    found = [attack.targets(logits, y, torch.full((3,), lane)).tolist() for lane in range(3)]
    assert found == [[3, 0, 0], [2, 2, 2], [1, 1, 3]]


@pytest.mark.parametrize(("classes", "lanes"), [(2, 1), (3, 2), (5, 4), (10, 9), (100, 9)])
def test_there_are_no_more_targets_than_other_classes(classes, lanes):
    assert APGDT().lanes(classes) == lanes
    logits = torch.randn(4, classes, generator=torch.Generator().manual_seed(0))
    y = logits.argmax(1)
    targets = torch.stack([APGDT().targets(logits, y, torch.full((4,), lane)) for lane in range(lanes)], 1)
    assert (targets != y.view(-1, 1)).all()
    assert all(len(set(row)) == lanes for row in targets.tolist())


def test_restarts_repeat_the_targets():
    attack = APGDT(n_targets=2, restarts=3)
    assert attack.lanes(10) == 6
    logits, y = torch.randn(1, 10, generator=torch.Generator().manual_seed(0)), torch.tensor([0])
    found = [int(attack.targets(logits, y, torch.tensor([lane]))) for lane in range(6)]
    assert found == found[:2] * 3


@pytest.mark.parametrize("make", [lambda: APGDCE(steps=0), lambda: APGDCE(restarts=0), lambda: APGDT(n_targets=0)])
def test_senseless_settings_are_usage_errors(make):
    with pytest.raises(UsageError, match="apgd"):
        make()


def trajectory(attack: APGD, model: Classifier, state: APGDState, threat: ThreatModel, noise: Noise) -> list[Tensor]:
    """Every evaluated point; muted beyond the end, so that no success stops the run."""
    state.muted.fill_(10**6)
    points = []
    for _ in range(attack.budget):
        points.append(state.x_adv.clone())
        state = attack.step(model, state, threat, noise.at(state.ids))
    return points


def reference(
    attack: APGD, module: torch.nn.Module, x: Tensor, y: Tensor, target: Tensor, threat: ThreatModel, start: Tensor
) -> list[Tensor]:
    """The points that pyautoattack's APGD evaluates from the same start."""
    package = pytest.importorskip("pyautoattack.autopgd_base")
    points = []

    def watched(z: Tensor) -> Tensor:
        points.append(z.detach().clone())
        return module(z)

    settings = {"n_iter": attack.steps, "norm": threat.norm, "eps": threat.radius, "device": "cpu"}
    if isinstance(attack, APGDT):
        other = package.APGDAttack_targeted(watched, **settings)
        other.y_target = target
    else:
        other = package.APGDAttack(watched, loss=attack.loss, **settings)
    other.init_hyperparam(x)
    other.attack_single_run(x, y, x_init=start)
    return points


@pytest.mark.reference
@pytest.mark.parametrize("steps", [100, 40])
@pytest.mark.parametrize("attack", [APGDCE, APGDDLR, APGDT], ids=lambda a: a.__name__)
@pytest.mark.parametrize("text", ["Linf:8/255", "Linf:0.3", "L2:0.5"])
def test_every_iterate_is_that_of_the_reference(attack, text, steps, cnn, images, monkeypatch):
    """Linf: equal to the bit almost everywhere. L2 divides in another order, which its steps carry along."""
    attack, threat, noise = attack(steps=steps), ThreatModel.parse(text), Noise(0, "compare")
    model, x = cnn(), images(12)
    monkeypatch.setattr(model, "_faster", nullcontext())  # the reference has autograd's gradients, last bits included
    x = (x * 1.4 - 0.2).clamp(0, 1)  # some pixels on the box
    logits = model.logits(x)
    y = logits.argmax(1)
    state = attack.init(x, y, logits, torch.full_like(y, 2), threat, noise.at(torch.arange(12)))
    expected = reference(attack, model.module, x, y, state.target, threat, state.x_adv)
    found = trajectory(attack, model, state, threat, noise)
    assert len(found) == len(expected) == steps + 1
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        apart = (a - b).abs()
        if threat.norm == "Linf":
            assert (apart == 0).float().mean() > 0.999, i
        assert apart.max() < (1e-6 if threat.norm == "Linf" else 2e-3), i
    assert (found[0] - found[-1]).abs().max() > 0.01


def test_the_quirk_changes_the_first_review_only_where_the_loss_is_negative():
    """With it the first rise counts if the loss is above 0, without it if it is above the start's."""

    class Scripted(torch.nn.Module):
        """Logits whose margin loss is -10, -9, -8, ... from call to call, rising each time."""

        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            gap = 10.0 - self.calls + 0 * x.flatten(1).sum(1)
            Scripted.calls += 1
            return torch.stack([gap, torch.zeros_like(gap)], 1)

    x, y = torch.full((1, 1, 2, 2), 0.5), torch.zeros(1, dtype=torch.long)
    threat = ThreatModel.parse("Linf:0.1")
    counted = {}
    for quirk in (True, False):
        Scripted.calls = 0
        attack = APGDMargin(steps=30, first_checkpoint_quirk=quirk)
        model = Classifier(Scripted(), num_classes=2, input_shape=(1, 2, 2))
        noise = Noise(0, "quirk").at(torch.zeros(1, dtype=torch.long))
        state = attack.init(x, y, torch.tensor([[10.0, 0.0]]), y, threat, noise)
        for _ in range(4):
            state = attack.step(model, state, threat, noise)
        assert isinstance(state, MomentumState)
        counted[quirk] = int(state.rises)
    assert counted == {True: 2, False: 3}


def test_the_step_is_halved_where_the_loss_stands_still(linear):
    """A constant loss never rises: the step is halved at every review and the slot goes back to its best point."""
    model = linear(torch.zeros(2, 4), torch.tensor([1.0, 0.0]), (1, 2, 2))
    x, y, threat = torch.full((3, 1, 2, 2), 0.5), torch.zeros(3, dtype=torch.long), ThreatModel.parse("Linf:0.1")
    noise = Noise(0, "still").at(torch.arange(3))
    state = APGDCE().init(x, y, model.logits(x), y, threat, noise)
    seen = []
    for _ in range(100):
        state = APGDCE().step(model, state, threat, noise)
        seen.append(float(state.eta[0]))
    changes = [i for i in range(1, 100) if seen[i] != seen[i - 1]]
    assert changes == list(checkpoints(100))
    assert seen[-1] == pytest.approx(0.2 / 2**8)


def test_published_strength_on_a_real_model(mnist_cnn_a):
    """The reference APGD-CE leaves 78.0 % of these 200 images; 76.0 % are proven to be safe."""
    model, x, y = mnist_cnn_a
    threat = ThreatModel.parse("Linf:0.3")
    x_adv = APGDCE().run(model, x, y, threat, Noise(0, "real").at(torch.arange(200)))
    assert threat.contains(x, x_adv).all()
    accuracy = (model.logits(x_adv).argmax(1) == y).float().mean().item()
    assert 0.76 <= accuracy <= 0.79


@pytest.mark.slow
def test_targets_add_to_the_cross_entropy(mnist_cnn_a):
    """Published: 77.0 % after APGD-CE and APGD-T together."""
    model, x, y = mnist_cnn_a
    threat, at = ThreatModel.parse("Linf:0.3"), Noise(0, "real").at(torch.arange(200))
    safe = torch.ones(200, dtype=torch.bool)
    for attack in (APGDCE(), APGDT()):
        safe &= model.logits(attack.run(model, x, y, threat, at)).argmax(1) == y
    assert 0.76 <= safe.float().mean().item() <= 0.775
