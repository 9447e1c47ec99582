"""DHAT: inverse examples without their background, and the maps of Grad-CAM."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustsuite.defenses import InnerSpec, Step, ce, kl
from robustsuite.defenses.dhat import DHAT, batch_residual, residual
from robustsuite.defenses.grad_cam import grad_cam, last_map
from robustsuite.defenses.pgd_at import PGDAT
from robustsuite.defenses.standard import Standard
from robustsuite.errors import UsageError
from robustsuite.registry import ARCHITECTURES, DEFENSES
from robustsuite.testing import check_defense
from robustsuite.threat import ThreatModel
from robustsuite.training.inner import maximise


def with_logits(step: Step, easy: Tensor, background: Tensor) -> Step:
    step.views.update(inverse=easy, background=background)
    return step


def test_golden_loss(toy: Step, loss: Callable[..., float]):
    """On the identity with nothing in the background the refined logits are those of the inverse example."""
    with_logits(toy, toy.x, torch.zeros_like(toy.x))
    expected = ce(toy.views["adv"], toy.q) + kl(toy.views["adv"], toy.x)
    assert loss(DHAT(floe="off"), toy) == pytest.approx(float(expected.mean()), abs=1e-6)
    norm = float(toy.x.norm(dim=1).mean())
    assert loss(DHAT(floe="paper"), toy) == pytest.approx(float(expected.mean()) - norm, abs=1e-6)
    assert loss(DHAT(), toy) == pytest.approx(float(expected.mean()) + float(toy.x.norm()) / 2, abs=1e-6)
    same = with_logits(toy, toy.views["adv"], torch.zeros_like(toy.x))
    same.forget_logits()
    assert DHAT().terms(same)["kl"].values.abs().max() < 1e-12


def test_residuals():
    z, background = torch.tensor([[1.0, 1], [0, 2]]), torch.tensor([[1.0, 0], [0, 5]])
    assert residual(z, background).tolist() == pytest.approx([1, 0])
    # the code: P = [[1,5],[0,10]] / |diag(1,25)|, P z_B = [[1,25],[0,50]] / 25.02
    scale = (1 + 25**2) ** 0.5
    left = z - torch.tensor([[1.0, 25], [0, 50]]) / scale
    assert batch_residual(z, background).tolist() == pytest.approx([float(left.norm()) / 2] * 2)
    assert residual(z, torch.zeros_like(z)).tolist() == pytest.approx(z.norm(dim=1).tolist())


@pytest.fixture
def linear(toy: Step, says: Callable) -> Step:
    """Three classes on 2x2 pixels of one channel."""
    layer = nn.Linear(4, 3, bias=False)
    layer.weight = nn.Parameter(torch.tensor([[3.0, -1, 0, 0], [0, 2, 1, 0], [0, 0, -2, 1]]))
    toy.module = nn.Sequential(nn.Flatten(), layer)
    toy.rebatch(x=torch.tensor([[0.5, 0.6, 0.4, 0.5], [0.2, 0.5, 0.6, 0.1]]).view(2, 1, 2, 2), q=toy.q.float())
    toy.inner, toy.threat, toy.aux = maximise, ThreatModel.parse("Linf:0.1"), {"helper": toy.module}
    toy.memory["layer"] = ""
    return toy


def test_the_views(linear: Step):
    views = DHAT().views(linear)
    inverse, background = views["inverse"], views["background"]
    assert bool(ThreatModel.parse("Linf:0.05").contains(linear.x, inverse).all())
    assert bool((ce(linear.module(inverse), linear.q) < ce(linear.module(linear.x), linear.q)).all())
    heat = grad_cam(linear, linear.module, "", linear.x, linear.y)
    assert torch.equal(background == 0, heat > 0.1)
    assert torch.equal(background[heat <= 0.1], inverse[heat <= 0.1])


def test_what_the_inverse_example_descends(linear: Step):
    asked: list[InnerSpec] = []
    away = linear.x + 0.1

    def inner(step: Step, spec: InnerSpec, x: Tensor, q: Tensor) -> Tensor:
        asked.append(spec)
        return away

    linear.inner = inner
    DHAT(inverse_steps=7, inverse_eps=0.25).views(linear)
    logits = torch.tensor([[1.0, 0, 2], [0, 3, 1]])
    clean, attacked = linear.module(linear.x), linear.module(away)
    objective = asked[1].loss
    assert callable(objective)
    expected = ce(logits, linear.q) + kl(clean, logits) - kl(attacked, logits)
    assert torch.allclose(objective(logits), expected)
    assert (asked[1].steps, asked[1].eps, asked[1].descend, asked[0]) == (7, 0.25, True, InnerSpec("ce", 10, 0.25))


def test_grad_cam_by_hand(toy: Step):
    """A convolution of two channels, its mean gradients by finite differences."""
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(32, 3)).double()
    x = torch.linspace(0.1, 0.9, 32).double().view(2, 1, 4, 4)
    maps = network[0](x).detach()
    heat = torch.zeros(2, 4, 4).double()
    for channel in range(2):
        slope = torch.zeros(2).double()
        for place in range(16):
            nudged = maps.clone()
            nudged[:, channel].view(2, 16)[:, place] += 1e-6
            change = network[1:](nudged.clone()) - network[1:](maps.clone())
            slope += change.gather(1, toy.y.view(2, 1))[:, 0].detach() / 1e-6 / 16
        heat += slope.view(2, 1, 1) * maps[:, channel]
    heat = heat.relu()
    low, high = heat.amin((1, 2), keepdim=True), heat.amax((1, 2), keepdim=True)
    found = grad_cam(toy, network.requires_grad_(False), "0", x, toy.y)
    assert torch.allclose(found[:, 0], (heat - low) / (high - low).clamp(min=1e-7), atol=1e-4)


@pytest.mark.parametrize(("arch", "expected"), [("small_cnn", "5"), ("mlp", "")])
def test_the_last_map_is_found(arch: str, expected: str, digits):
    ARCHITECTURES.discover()
    network = ARCHITECTURES.get(arch).target(num_classes=3, input_shape=(1, 8, 8))
    data = SimpleNamespace(x=torch.zeros(1, 1, 8, 8))
    context = SimpleNamespace(data=data, forward=lambda x, module: module(x))
    assert last_map(context, network) == expected  # type: ignore[arg-type]


def test_without_its_terms_it_is_adversarial_training(quick: Callable, same: Callable):
    plain = quick(PGDAT(steps=2))
    assert same(quick(DHAT(kl_weight=0, floe="off", steps=2)), plain)
    assert same(quick(DHAT(kl_weight=0, floe_weight=0, steps=2)), plain)


@pytest.mark.parametrize("floe", ["code", "off"])
def test_it_trains_with_a_helper_of_its_own_or_a_given_one(floe: str, quick: Callable, checkpoint: Callable, same):
    reference = checkpoint(Standard(), epochs=2)
    method = {"floe": floe, "steps": 2, "inverse_steps": 2}
    given, own = quick(DHAT(helper=reference, layer="2", **method)), quick(DHAT(**method))
    assert not same(given, own)
    assert set(own.history[0].terms) == {"ce_adv", "kl"} | ({"floe"} if floe == "code" else set())


def test_it_survives_a_kill(survives: Callable):
    assert survives(DHAT(steps=1, inverse_steps=1))


@pytest.mark.parametrize(("floe", "weight"), [("paper", 0.01), ("code", 1.0), ("off", 1.0)])
def test_the_contract_holds(floe: str, weight: float):
    params = {"floe": floe, "floe_weight": weight}
    assert [str(f) for f in check_defense(DEFENSES.get("dhat"), params) if not f.ok] == []


def test_what_cannot_be_is_refused(quick: Callable):
    bads: list[dict[str, Any]] = [{"kl_weight": -1}, {"floe": "both"}, {"inverse_eps": -1}]
    for bad in bads:
        with pytest.raises(UsageError, match="dhat needs"):
            DHAT(**bad)
    with pytest.raises(UsageError, match="no layer 'stage9'"):
        quick(DHAT(layer="stage9", steps=1))
