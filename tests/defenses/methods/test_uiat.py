"""UIAT: easier examples, each its own or one perturbation a class."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from robustsuite.defenses import InnerSpec, Step, ce, kl
from robustsuite.defenses.pgd_at import PGDAT
from robustsuite.defenses.uiat import UIAT
from robustsuite.errors import UsageError
from robustsuite.registry import DEFENSES
from robustsuite.threat import ThreatModel
from robustsuite.training.inner import maximise


@pytest.fixture
def linear(toy: Step) -> Step:
    """Three classes on six pixels, in the middle of the box."""
    weight = torch.tensor([[1.0, 2, -1, 0, 0, 1], [0, -2, 1, 1, 0, 0], [-1, 0, 0, -1, 2, 1]])
    layer = nn.Linear(6, 3, bias=False)
    layer.weight = nn.Parameter(weight)
    toy.module = nn.Sequential(nn.Flatten(), layer)
    x = 0.5 + 0.1 * torch.eye(6)[:4].view(4, 1, 2, 3)
    y = torch.tensor([0, 1, 0, 1])
    toy.rebatch(x=x, y=y, q=nn.functional.one_hot(y, 3).float(), ids=torch.arange(4))
    toy.inner, toy.threat = maximise, ThreatModel.parse("Linf:0.1")
    toy.memory.update(delta=torch.zeros(3, 1, 2, 3), speed=torch.zeros(3, 1, 2, 3))
    return toy


def test_golden_loss(toy: Step, loss: Callable[..., float]):
    toy.views["inverse"] = toy.views["clean"]
    assert loss(UIAT(), toy) == pytest.approx(1.053201 + 3.5 * 0.267992, abs=1e-5)


def test_an_inverse_example_is_easier_and_in_its_ball(linear: Step):
    inverse = UIAT().views(linear)["inverse"]
    before, after = (ce(linear.module(view), linear.q) for view in (linear.x, inverse))
    assert bool((after < before).all())
    assert bool(ThreatModel.parse("Linf:0.05").contains(linear.x, inverse).all())
    # against brute force: no corner of the ball is easier
    corners = torch.cartesian_prod(*[torch.tensor([-0.05, 0.05])] * 6).view(-1, 1, 1, 2, 3)
    losses = torch.stack([ce(linear.module(linear.x + c), linear.q) for c in corners])
    assert torch.allclose(after, losses.min(0).values, atol=1e-5)


@pytest.mark.parametrize("universal", [False, True])
def test_without_a_ball_it_aligns_to_the_clean_example(universal: bool, linear: Step):
    method = UIAT(inverse_eps=0, universal=universal)
    linear.views.update(method.views(linear))
    assert torch.equal(linear.views["inverse"], linear.x)
    clean, adversarial = linear.logits("clean"), linear.logits("adv")
    assert torch.allclose(method.terms(linear)["kl"].values, kl(clean, adversarial))


def test_a_class_has_one_perturbation_that_grows_in_its_ball(linear: Step):
    """On a linear network every example of a class steps along one sign vector, and so does the class."""
    method = UIAT(universal=True, inverse_alpha=0.2)
    sizes, inverse = [], linear.x
    for _ in range(4):
        inverse = method.views(linear)["inverse"]
        assert torch.allclose(inverse - linear.x, linear.memory["delta"][linear.y], atol=1e-6)
        sizes.append(float(linear.memory["delta"].abs().max()))
    assert sizes == pytest.approx([0.02, 0.04, 0.05, 0.05])
    assert not linear.memory["delta"][2].any()  # no example of this class came by
    own = UIAT().views(linear)["inverse"]
    moved = own != linear.x
    assert torch.allclose(inverse[moved], own[moved], atol=1e-6)


def test_the_speed_decays_by_momentum(linear: Step):
    step_size = 0.02
    for momentum in (0.0, 0.5):
        linear.memory.update(delta=torch.zeros(3, 1, 2, 3), speed=torch.zeros(3, 1, 2, 3))
        method = UIAT(universal=True, inverse_alpha=0.2, momentum=momentum)
        method.views(linear)
        method.views(linear)
        assert float(linear.memory["speed"].abs().max()) == pytest.approx((1 + momentum) * step_size, rel=1e-4)


def test_without_alignment_it_is_adversarial_training(quick: Callable, same: Callable):
    assert same(quick(UIAT(align=0, steps=2)), quick(PGDAT(steps=2)))


@pytest.mark.parametrize("universal", [False, True])
def test_it_trains_and_survives_a_kill(universal: bool, quick: Callable, survives: Callable):
    method = UIAT(steps=2, inverse_steps=2, universal=universal)
    trained = quick(method, epochs=4)
    assert trained.history[-1].terms["ce_adv"] < trained.history[0].terms["ce_adv"]
    assert survives(method)


def test_passes_are_counted(quick: Callable):
    steps = 48 * 2
    own, shared = quick(UIAT(steps=3, inverse_steps=5)), quick(UIAT(steps=3, universal=True))
    assert own.backward == steps * (3 + 5 + 2)
    assert shared.backward == steps * (3 + 1 + 2)


def test_the_inner_problems(toy: Step):
    asked: list[InnerSpec] = []
    toy.inner = lambda step, spec, x, q: asked.append(spec) or x
    UIAT(steps=3).views(toy)
    assert asked == [InnerSpec("ce", 3, 0.25), InnerSpec("ce", 10, 0.25, eps=0.5, init="zero", descend=True)]


def test_it_says_that_it_is_reconstructed_and_refuses_nonsense():
    assert DEFENSES.get("uiat").facts["fidelity"] == "reconstructed"
    wrong: list[dict[str, Any]] = [{"align": -1}, {"momentum": 1.0}, {"inverse_eps": -1}]
    for bad in wrong:
        with pytest.raises(UsageError, match="uiat needs"):
            UIAT(**bad)
