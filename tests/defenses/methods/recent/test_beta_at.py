"""BETA-AT and SBETA-AT: exact on linear networks, one class at a time, and the ascent that they share with DONE."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from robustsuite.defenses import InnerSpec, Step, ce
from robustsuite.defenses.ascent import ascend
from robustsuite.defenses.beta_at import BETAAT
from robustsuite.defenses.composed import compose
from robustsuite.defenses.mail import MAIL
from robustsuite.errors import UsageError
from robustsuite.registry import DEFENSES
from robustsuite.testing import check_defense
from robustsuite.testing.toys import toy_data
from robustsuite.threat import ThreatModel
from robustsuite.training.inner import maximise


@pytest.fixture
def linear(toy: Step) -> Step:
    """Four classes on six pixels, far from the edges of the box."""
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(6, 4)
    layer.weight = nn.Parameter(torch.randn(4, 6, generator=generator))
    layer.bias = nn.Parameter(0.1 * torch.randn(4, generator=generator))
    toy.module = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), layer).train()
    toy.num_classes, toy.inner = 4, maximise
    x, y = 0.4 + 0.2 * torch.rand(9, 1, 2, 3, generator=generator), torch.arange(9) % 4
    toy.rebatch(x=x, y=y, q=nn.functional.one_hot(y, 4).float(), ids=torch.arange(9) * 5)
    return toy


def optima(step: Step) -> Tensor:
    """``z_j - z_y + eps ||w_j - w_y||_1``, ``[B,K]``: the largest margins in the ball."""
    layer = step.module[2]
    z = layer(step.x.flatten(1))
    gaps = layer.weight[None] - layer.weight[step.y][:, None]
    return (z - z.gather(1, step.y[:, None]) + step.threat.radius * gaps.abs().sum(2)).detach()


def margins(step: Step, view: Tensor) -> Tensor:
    z = step.module[2](view.flatten(1)).detach()
    return z - z.gather(1, step.y[:, None])


@pytest.mark.parametrize("rule", ["sign", "rmsprop", "adam"])
def test_a_linear_network_is_solved_exactly(rule, linear: Step):
    found = BETAAT(mu=1.0, rule=rule, steps=3, alpha=1.0).views(linear)
    best = optima(linear)
    others = [[k for k in range(4) if k != int(label)] for label in linear.y]
    for place in range(3):
        target = torch.tensor([row[place] for row in others])
        reached = margins(linear, found["rivals"][:, place]).gather(1, target[:, None])
        assert torch.allclose(reached, best.gather(1, target[:, None]), atol=1e-5)
    reached, best = (m.scatter(1, linear.y[:, None], -math.inf) for m in (margins(linear, found["adv"]), best))
    assert torch.allclose(reached.amax(1), best.amax(1), atol=1e-5)
    assert bool(linear.threat.contains(linear.x, found["adv"]).all())
    assert linear.module[1].training


def test_only_the_chosen_point_is_in_the_loss(linear: Step):
    method = BETAAT(steps=3, alpha=1.0)
    views = method.views(linear)
    assert set(views) == {"adv"}
    linear.module.eval()
    linear.views.update(views)
    assert torch.equal(method.terms(linear)["ce_adv"].values, ce(linear.module(views["adv"]), linear.q))


def test_the_smooth_loss_weighs_all_points_by_their_margins(linear: Step):
    linear.module.eval()
    best = optima(linear)
    other = best[torch.arange(4) != linear.y[:, None]].view(9, 3)
    values = {}
    for mu in (0.0, 2.0, 1e4, math.inf):
        method = BETAAT(mu=mu, steps=3, alpha=1.0)
        linear.views.update(method.views(linear))
        linear.forget_logits()
        values[mu] = method.terms(linear)["ce_adv"].values.detach()
    points = linear.views["rivals"]
    each = torch.stack([ce(linear.module(points[:, j]), linear.q) for j in range(3)], 1)
    for mu in (0.0, 2.0):
        assert torch.allclose(values[mu], ((mu * other).softmax(1) * each).sum(1), atol=1e-4)
    assert torch.allclose(values[1e4], values[math.inf], atol=1e-4)
    assert float((values[0.0] - values[math.inf]).abs().max()) > 1e-3


def test_fewer_rivals_are_the_likeliest(linear: Step):
    found = BETAAT(mu=1.0, rivals=1, steps=3, alpha=1.0).views(linear)
    linear.module.eval()
    right = nn.functional.one_hot(linear.y, 4).bool()
    target = linear.module(linear.x).masked_fill(right, -math.inf).argmax(1)
    assert found["rivals"].shape == (9, 1, 1, 2, 3)
    assert torch.allclose(
        margins(linear, found["adv"]).gather(1, target[:, None]), optima(linear).gather(1, target[:, None]), atol=1e-5
    )


def test_a_point_does_not_depend_on_the_company(linear: Step):
    linear.module.eval()
    whole = BETAAT(steps=2).views(linear)["adv"]
    some = torch.tensor([7, 2])
    linear.rebatch(x=linear.x[some], y=linear.y[some], q=linear.q[some], ids=linear.noise.ids[some])
    assert torch.allclose(BETAAT(steps=2).views(linear)["adv"], whole[some], atol=1e-7)


def test_two_classes_have_one_rival(quick: Callable, same: Callable):
    binary = toy_data(48, classes=2)
    hard, soft = (quick(BETAAT(mu=mu, steps=2), data=binary) for mu in (math.inf, 1.0))
    assert same(hard, soft)
    assert not same(*(quick(BETAAT(mu=mu, steps=2)) for mu in (math.inf, 1.0)))
    assert same(quick(BETAAT(steps=2, rivals=2)), quick(BETAAT(steps=2)))
    assert not same(quick(BETAAT(steps=2, rivals=1)), quick(BETAAT(steps=2)))


@pytest.mark.parametrize("method", [BETAAT(steps=2), BETAAT(mu=5.0, steps=2, rule="sign")])
def test_it_trains_at_its_cost(method: BETAAT, quick: Callable):
    trained = quick(method, epochs=4)
    assert trained.history[-1].terms["ce_adv"] < trained.history[0].terms["ce_adv"]
    last = 1 if math.isinf(method.mu) else 2
    assert (trained.forward, trained.backward) == (4 * 48 * (2 * 2 + 2 + last), 4 * 48 * (2 * 2 + last))
    quick(compose(("beta_at", method), ("mail", MAIL(start=0))))


@pytest.mark.parametrize("mu", [math.inf, 3.0])
def test_contract(mu: float):
    assert [str(f) for f in check_defense(DEFENSES.get("beta_at"), {"mu": mu}) if not f.ok] == []


@pytest.mark.parametrize("rule", ["rmsprop", "adam"])
def test_the_ascent_is_that_of_the_optimiser(rule, linear: Step):
    """Adam as torch has it, with the same constants, far from every constraint; of RMSprop the version without bias."""
    linear.module.eval()
    target = torch.zeros(9, dtype=torch.int64)
    weight = torch.rand(4, generator=torch.Generator().manual_seed(1))

    def objective(logits: Tensor) -> Tensor:
        return (logits.sigmoid() * weight).sum(1) - logits[torch.arange(9), target].square()

    linear.threat = ThreatModel.parse("Linf:0.3")
    spec = InnerSpec(objective, steps=5, alpha=0.02)
    found = ascend(linear, spec, rule, objective, linear.x, torch.zeros_like(linear.x))
    point = linear.x.clone().requires_grad_(True)
    betas = (0.9 if rule == "adam" else 0.0, 0.99)
    optimizer = torch.optim.Adam([point], lr=0.02 * 0.3, betas=betas, eps=1e-12, maximize=True)
    for _ in range(5):
        optimizer.zero_grad()
        objective(linear.module(point)).sum().backward()
        optimizer.step()
    assert torch.allclose(found, point.detach(), atol=1e-6)


@pytest.mark.parametrize("rule", ["sign", "rmsprop", "adam"])
def test_the_ascent_stays_in_the_l2_ball(rule, linear: Step):
    """Of a linear objective the best point is the end of the radius along its gradient."""
    linear.module.eval()
    linear.threat = ThreatModel.parse("L2:0.1")
    spec = InnerSpec(steps=30, alpha=0.5)
    start = torch.full_like(linear.x, 0.2)
    found = ascend(linear, spec, rule, lambda z: z[:, 0] - z[:, 1], linear.x, start)
    assert bool(linear.threat.contains(linear.x, found).all())
    if rule == "sign":
        direction = linear.module[2].weight[0] - linear.module[2].weight[1]
        best = linear.x + 0.1 * (direction / direction.norm()).view(1, 1, 2, 3)
        assert torch.allclose(found, best.expand_as(found), atol=1e-4)


@pytest.mark.parametrize("bad", [{"mu": -1}, {"mu": math.nan}, {"rivals": -1}, {"steps": -1}, {"rule": "lbfgs"}])
def test_bad_parameters(bad: dict):
    with pytest.raises(UsageError, match="beta_at needs"):
        BETAAT(**bad)


def test_it_says_that_it_is_reconstructed():
    assert DEFENSES.get("beta_at").facts["fidelity"] == "reconstructed"
