"""DONE: weights of the sheet, the moving average, and the implicit gradient against automatic differentiation."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from robustsuite.defenses import Step, Term, ce
from robustsuite.defenses.composed import compose
from robustsuite.defenses.done import DONE
from robustsuite.defenses.eps_ramp import EpsRamp
from robustsuite.defenses.pgd_at import PGDAT
from robustsuite.errors import UsageError
from robustsuite.noise import Noise
from robustsuite.registry import DEFENSES
from robustsuite.testing import check_defense
from robustsuite.threat import ThreatModel
from robustsuite.training.inner import maximise

INF = math.inf


def shares(method: DONE, step: Step, losses: Tensor) -> Tensor:
    weights = method.weights(step, {"ce_adv": Term(losses)})["ce_adv"]
    return weights / len(losses)


@pytest.mark.parametrize(("r", "expected"), [(1.0, (0.269632, 0.730368)), (0.5, (0.119942, 0.880058))])
def test_golden_weights(r: float, expected: tuple[float, float], toy: Step):
    terms = DONE(lam=INF).terms(toy)
    assert shares(DONE(r), toy, terms["ce_adv"].values).tolist() == pytest.approx(expected, abs=1e-5)


def test_weights_of_four_losses(toy: Step):
    losses = torch.tensor([0.1, 0.5, 1, 2], dtype=torch.float64)
    found = shares(DONE(1.0), toy, losses)
    assert found.tolist() == pytest.approx([0.085930, 0.128193, 0.211355, 0.574522], abs=1e-5)
    for r, objective in ((1.0, 1.167923), (10.0, 0.925552), (1e-3, 2.0), (1e6, 0.9)):
        assert float(shares(DONE(r), toy, losses).sum()) == pytest.approx(1)
        assert r * float(toy.trace["log_u"]) == pytest.approx(objective, abs=2e-3 if r == 1e-3 else 1e-5)
    assert shares(DONE(0.1), toy, losses)[-1].item() == pytest.approx(0.999954, abs=1e-5)
    assert shares(DONE(1e-3), toy, losses).tolist() == pytest.approx([0, 0, 0, 1])  # exp(2000) is no number
    assert DONE(INF).weights(toy, {"ce_adv": Term(losses)}) == {}


def test_they_are_the_worst_weights(toy: Step):
    """Of 20,000 points of the simplex none has a larger penalised loss, and the objective is the value."""
    losses = torch.tensor([0.3, 1.1, 0.7], dtype=torch.float64)

    def penalised(w: Tensor) -> Tensor:
        return w @ losses - 0.5 * (w * (3 * w).log()).sum(1)

    found = shares(DONE(0.5), toy, losses)
    drawn = -torch.rand(20000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).log()
    best = float(penalised(found[None]))
    assert best >= float(penalised(drawn / drawn.sum(1, keepdim=True)).max())
    assert best == pytest.approx(0.5 * float(toy.trace["log_u"]))


def test_the_average_moves_once_a_step(toy: Step):
    method, u = DONE(0.7, average=0.3), 0.0
    for number in range(4):
        losses = torch.tensor([0.2, 1.5], dtype=torch.float64) * (number + 1)
        batch = (losses / 0.7).exp()
        u = float(batch.mean()) if number == 0 else 0.7 * u + 0.3 * float(batch.mean())
        for _ in range(2):  # the closure may be evaluated again
            assert shares(method, toy, losses).tolist() == pytest.approx((batch / u / 2).tolist())
        method.post_step(toy)
    assert float(toy.memory["log_u"].exp()) == pytest.approx(u)
    alone = shares(DONE(0.7, average=1.0), toy, torch.tensor([0.2, 1.5], dtype=torch.float64))
    assert float(alone.sum()) == pytest.approx(1)


@pytest.fixture
def smooth() -> Step:
    """A smooth network, and images some of whose perturbations stay inside."""
    generator = torch.Generator().manual_seed(3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(9, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    x, y = torch.rand(6, 1, 3, 3, generator=generator, dtype=torch.float64), torch.arange(6) % 3
    return Step(
        module=net, x=x, y=y, q=nn.functional.one_hot(y, 3).double(), threat=ThreatModel.parse("Linf:0.1"),
        progress=0.0, num_classes=3, noise=Noise(0, "test").at(torch.arange(6)), inner=maximise,
    )  # fmt: skip


def play(method: DONE, step: Step) -> list[Tensor]:
    """The gradient that the optimiser gets."""
    step.views.update({name: view.detach() for name, view in method.views(step).items()})
    step.forget_logits()
    step.module.zero_grad()
    terms = method.terms(step)
    weighted = terms["ce_adv"].values * method.weights(step, terms).get("ce_adv", torch.ones(len(step.y)).double())
    method.gradient(step, {"ce_adv": weighted.mean()})
    return [p.grad.clone() for p in step.module.parameters() if p.grad is not None]


@pytest.mark.parametrize("attack", ["sign", "adam"])
@pytest.mark.parametrize("lam", [0.5, 10.0])
def test_the_implicit_part_is_that_of_a_perturbation_that_follows(attack, lam: float, smooth: Step):
    """d(w) = d* + 1/lam h (g(w) - g(w*)), and the whole differentiated by autograd; one step leaves much inside."""
    method = DONE(0.5, lam=lam, attack=attack, steps=1, alpha=0.2)
    found = play(method, smooth)
    net, star = smooth.module, smooth.views["adv"].detach()
    inside = ((star - smooth.x).abs() < 0.1 - 1e-9) & (star > 0) & (star < 1)
    assert 0.2 < float(inside.double().mean()) < 1
    leaf = star.clone().requires_grad_(True)
    (ascent,) = torch.autograd.grad(ce(net(leaf), smooth.q).sum(), leaf, create_graph=True)
    moving = star + inside * (ascent - ascent.detach()) / lam
    losses = ce(net(moving), smooth.q)
    weights = (losses.detach() / 0.5).softmax(0)
    expected = torch.autograd.grad((weights * losses).sum(), list(net.parameters()))
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-10)
    direct = play(DONE(0.5, lam=INF, attack=attack, steps=1, alpha=0.2), smooth)
    assert max(float((a - b).abs().max()) for a, b in zip(found, direct, strict=True)) > 1e-6


@pytest.mark.parametrize("attack", ["sign", "adam"])
def test_where_every_coordinate_is_held_there_is_no_implicit_part(attack, smooth: Step):
    for mine, direct in zip(
        play(DONE(lam=0.1, attack=attack, alpha=1.0), smooth),
        play(DONE(lam=INF, attack=attack, alpha=1.0), smooth),
        strict=True,
    ):
        assert torch.allclose(mine, direct, atol=1e-12)


def test_the_adam_attack_is_as_good_as_sign_steps(smooth: Step):
    losses = {}
    for attack in ("sign", "adam"):
        adversarial = DONE(attack=attack, steps=20).views(smooth)["adv"]
        assert bool(smooth.threat.contains(smooth.x, adversarial).all())
        losses[attack] = ce(smooth.module(adversarial), smooth.q).detach()
    assert torch.allclose(losses["sign"], losses["adam"], rtol=0.02)


def test_a_ramp_reaches_the_ball_of_the_adam_attack(smooth: Step):
    smooth.progress, smooth.adjust = 0.5, EpsRamp().inner
    adversarial = DONE(attack="adam", alpha=1.0).views(smooth)["adv"]
    assert float((adversarial - smooth.x).abs().max()) == pytest.approx(0.05, abs=1e-6)


def test_without_weights_and_implicit_part_it_is_adversarial_training(quick: Callable, same: Callable):
    base = quick(PGDAT(steps=2))
    assert same(quick(DONE(INF, lam=INF, steps=2)), base)
    for other in (DONE(INF, steps=2), DONE(1.0, lam=INF, steps=2), DONE(INF, lam=INF, attack="adam", steps=2)):
        assert not same(quick(other), base)


@pytest.mark.parametrize("method", [DONE(steps=2), DONE(0.1, average=0.9, attack="adam", steps=2)])
def test_it_trains_and_survives_a_kill(method: DONE, quick: Callable, survives: Callable):
    trained = quick(method, epochs=4)
    assert all(math.isfinite(entry.terms["ce_adv"]) for entry in trained.history)
    assert trained.backward == 4 * 48 * (2 + 1 + 2)
    assert survives(method)


@pytest.mark.parametrize("attack", ["sign", "adam"])
def test_contract(attack: str):
    assert [str(f) for f in check_defense(DEFENSES.get("done"), {"attack": attack}) if not f.ok] == []


def test_it_composes_with_a_ramp_and_refuses_other_norms_and_halves(quick: Callable):
    quick(compose(("done", DONE(steps=1)), ("eps_ramp", EpsRamp())))
    with pytest.raises(UsageError, match="done is made for Linf, not for L2:1"):
        quick(DONE(), threat=ThreatModel.parse("L2:1"))
    with pytest.raises(UsageError, match="bf16"):
        quick(DONE(), precision="bf16")


@pytest.mark.parametrize("bad", [{"temperature": 0}, {"lam": 0}, {"average": 0}, {"average": 1.1}, {"attack": "gd"}])
def test_bad_parameters(bad: dict):
    with pytest.raises(UsageError, match=r"done (needs|attacks)"):
        DONE(**bad)
