"""Training on bounds: schedules, losses by hand on a two-layer network, limits, what is refused."""

import math
import runpy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustsuite.bounds.crown import Crown
from robustsuite.bounds.ibp import ibp_margins, input_box
from robustsuite.bounds.region import region
from robustsuite.bounds.rows import Rows
from robustsuite.defenses import Step, StepMethod, Term, reduce_terms
from robustsuite.defenses.bound_training import smoothed
from robustsuite.defenses.cc_ibp import CCIBP
from robustsuite.defenses.crown_ibp import CrownIBPTraining
from robustsuite.defenses.exp_ibp import ExpIBP
from robustsuite.defenses.expressive import Expressive
from robustsuite.defenses.fast_ibp import FastIBP
from robustsuite.defenses.fast_ibp_penalties import interval_weights
from robustsuite.defenses.ibp import IBP
from robustsuite.defenses.mtl_ibp import MTLIBP
from robustsuite.defenses.sabr import SABR
from robustsuite.defenses.small_box import small_box
from robustsuite.errors import DivergedBounds, UsageError
from robustsuite.noise import Noise

_MADE = runpy.run_path(str(Path(__file__).with_name("two_layers.py")))
TwoLayers, example = _MADE["TwoLayers"], _MADE["example"]

NOW: dict[str, Any] = {"warmup": 0.0, "ramp": 0.0, "kappa_start": 0.0, "kappa_end": 0.0}
ALONE: dict[str, Any] = NOW | {"penalty": 0.0, "interval_init": False}


def terms(method: StepMethod, step: Step) -> Mapping[str, Term]:
    step.views.update(method.views(step))
    return method.terms(step)


def loss(method: StepMethod, step: Step) -> float:
    found = terms(method, step)
    return sum(s.item() for s in reduce_terms(found, method.weights(step, found), len(step.y)).values())


def softplus(margin: float) -> float:
    return math.log1p(math.exp(-margin))


# The box of example() is [1/4, 3/4] x [0, 1/2]: z1 = x1 + x2 in [1/4, 5/4], z2 = x1 - x2 in [-1/4, 3/4].
# The clean margin is 3/4 - 1/4; by intervals it is at least 1/4 - 3/4, backwards -1/8, x1 / 4 + 7 x2 / 4 - 3/16.
def test_ibp_by_hand():
    assert loss(IBP(**NOW), example()) == pytest.approx(softplus(-0.5), abs=1e-6)
    mixed = IBP(warmup=0.0, ramp=0.0, kappa_end=0.25)
    assert loss(mixed, example()) == pytest.approx(0.25 * softplus(0.5) + 0.75 * softplus(-0.5), abs=1e-6)


def test_crown_ibp_by_hand():
    whole = CrownIBPTraining(**NOW, beta_end=1.0, fusion=False)
    assert loss(whole, example()) == pytest.approx(softplus(-0.125), abs=1e-5)
    # Beta falls with the radius: at the end of the ramp it is beta_end
    half = CrownIBPTraining(**NOW, beta_end=0.5, fusion=False)
    assert loss(half, example()) == pytest.approx(softplus(-0.3125), abs=1e-5)
    fused = math.exp(0.5) + (math.exp(0.5) - math.exp(-1.25)) / 1.75 * (0.125 - 0.5)
    assert loss(replace(whole, fusion=True), example()) == pytest.approx(math.log1p(fused), abs=1e-5)


def test_sabr_by_hand():
    # Around (3/4, 0), moved to (5/8, 1/8): the box [1/2, 3/4] x [0, 1/4], z1 >= 1/2 and z2 <= 3/4.
    step = example(found=torch.tensor([[[[0.75, 0.0]]]]))
    assert loss(SABR(**ALONE, shrink=0.5), step) == pytest.approx(softplus(-0.25), abs=1e-6)


def test_a_small_box_lies_within_the_ball_and_is_the_whole_of_it_at_one():
    torch.manual_seed(0)
    lower, upper = (torch.rand(8, 5) / 3, 2 / 3 + torch.rand(8, 5) / 3)
    found = lower + torch.rand(8, 5).round() * (upper - lower)
    whole = small_box(found, lower, upper, 1.0)
    assert whole[0] is lower
    assert whole[1] is upper
    for shrink in (0.0, 0.1, 0.7):
        low, high = small_box(found, lower, upper, shrink)
        assert bool(((low >= lower - 1e-6) & (high <= upper + 1e-6)).all())
        torch.testing.assert_close(high - low, shrink * (upper - lower), atol=1e-6, rtol=1e-5)
        nearest = found.maximum(lower + (high - low) / 2).minimum(upper - (high - low) / 2)
        torch.testing.assert_close((low + high) / 2, nearest)


@pytest.mark.parametrize(
    ("kind", "expected"), [(MTLIBP, (0.5, 0.65, 1.25, 2.0)), (ExpIBP, (0.5, 0.574349, 1.0, 2.0)), (CCIBP, None)]
)
def test_expressive_losses_where_ibps_is_2_and_the_adversarial_one_a_half(
    kind: type[Expressive], expected: tuple[float, ...] | None
):
    adversarial, certified = (-math.log(math.expm1(value)) for value in (0.5, 2.0))  # the margins of these losses
    logits, bounds = torch.tensor([[adversarial, 0.0]]), torch.tensor([[0.0, certified]])
    for place, coefficient in enumerate((0.0, 0.1, 0.5, 1.0)):
        step = example()
        step.views["adv"] = step.x
        step._cache["adv"] = logits
        step.bounds = lambda lower, upper, y: bounds
        found = kind(**ALONE, coefficient=coefficient).robust(step, 1.0)
        value = expected[place] if expected else softplus(coefficient * certified + (1 - coefficient) * adversarial)
        assert sum(t.weight * t.values.item() for t in found.values()) == pytest.approx(value, abs=1e-5)


def test_an_adversarial_loss_of_zero_gives_finite_gradients():
    logits = torch.tensor([[200.0, 0.0]], requires_grad=True)
    step = example()
    (term,) = ExpIBP(coefficient=0.1).between(step, logits, torch.tensor([[0.0, -1.0]])).values()
    term.values.sum().backward()
    assert bool(logits.grad.isfinite().all())


def test_the_penalties_of_fast_ibp_by_hand():
    # Half widths 1/4 in, 3/4 and 1/2 before the ReLUs: 0.25 / 0.625 falls 0.1 short of 0.5, a fifth of it. Centers 5/4
    # and 1/4: no unit is inactive, so that both ratios are 0. With the second at -3/4: 0.6, and 1, nothing is short.
    net = TwoLayers(torch.tensor([[2.0, 1.0], [1.0, -1.0]]))
    step = example(net, progress=0.5)
    method = FastIBP(warmup=0.0, ramp=1.0, schedule="linear", eps=2.0)
    found = terms(method, step)
    assert {k: (round(t.values.item(), 5), t.weight) for k, t in found.items() if k != "ce_worst"} == {
        "tightness": (0.2, 0.25), "stability": (2.0, 0.25)
    }  # fmt: skip
    with torch.no_grad():
        net.first.bias[1] = -1.0
    assert terms(method, example(net, progress=0.5))["stability"].values.item() == pytest.approx(0, abs=1e-6)
    assert set(terms(method, example(net, progress=1.0))) == {"ce_worst"}


def test_interval_weights_keep_half_widths_from_layer_to_layer():
    layers: list[nn.Module] = [nn.BatchNorm1d(600)]
    for _ in range(4):
        layers += [nn.Linear(600, 600), nn.ReLU()]
    net = nn.Sequential(*layers, nn.Linear(600, 2))
    last = net[-1].weight.clone()
    interval_weights(net, Noise(0, "test"))
    assert torch.equal(net[-1].weight, last)
    first = net[1].weight.clone()
    assert first.std().item() == pytest.approx(math.sqrt(2 * math.pi) / 600, rel=0.01)
    radius = torch.full((600,), 0.1)
    for layer in net[1:-1:2]:
        # Of a unit around 0 the ReLU keeps half of the width.
        radius = layer.weight.abs() @ radius / 2
    assert radius.mean().item() == pytest.approx(0.1, rel=0.05)
    interval_weights(net, Noise(0, "test"))
    assert torch.equal(net[1].weight, first)
    plain = nn.Sequential(nn.Linear(3, 3))
    before = plain[0].weight.clone()
    interval_weights(plain, Noise(0, "test"))
    assert torch.equal(plain[0].weight, before)


def test_the_smoothed_schedule_is_that_of_the_literature():
    # auto_LiRPA's: a fourth power to the middle at a quarter, then a line with the slope that the power has there.
    assert [smoothed(s) for s in (0.0, 1.0)] == [0, pytest.approx(1)]
    scale = 1 / (0.75 * 4 * 0.25**3 + 0.25**4)
    assert smoothed(0.125) == pytest.approx(scale * 0.125**4)
    assert smoothed(0.25) == pytest.approx(1 / 13)
    assert (smoothed(0.25) - smoothed(0.2499)) / 0.0001 == pytest.approx(
        (smoothed(0.9) - smoothed(0.3)) / 0.6, rel=1e-3
    )
    method = IBP(warmup=0.2, ramp=0.6, schedule="smoothed")
    assert [method.grown(p) for p in (0.1, 0.2, 0.3, 0.6, 0.9)] == [0, 0, pytest.approx(1 / 13), 1, 1]


def test_l1_counts_the_weights_of_layers_alone():
    found = terms(IBP(**NOW, l1=0.5), example())
    assert found["l1"].values.tolist() == [6.0]
    assert found["l1"].weight == 0.5


@pytest.mark.parametrize("batch_norm", [False, True])
def test_bounds_in_eval_mode_are_the_certifiers(batch_norm: bool):
    torch.manual_seed(0)
    norm: list[nn.Module] = [nn.BatchNorm2d(4)] if batch_norm else []
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), *norm, nn.ReLU(), nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 3)
    )
    net.train()(torch.rand(30, 1, 6, 6))  # moves the running statistics
    x, y = torch.rand(5, 1, 6, 6), torch.tensor([0, 1, 2, 0, 1])
    step = example(net.eval(), x=x, y=y, classes=3)
    lower, upper = (end.float() for end in input_box(x, 0.05))
    graph = step.graph
    assert graph is not None
    found = step.margins(lower, upper).detach().double()
    torch.testing.assert_close(found, ibp_margins(graph, *input_box(x, 0.05), y).detach(), atol=1e-5, rtol=0)
    # The certificate charges the rounding of float32 on top.
    certified = ibp_margins(graph, *input_box(x, 0.05), y, guard=True)
    assert bool((certified <= found + 1e-6).all())
    torch.testing.assert_close(found, certified, atol=1e-4, rtol=0)
    one = torch.eye(3)
    rows = Rows(torch.arange(5).repeat_interleave(3), (one[y].unsqueeze(1) - one).flatten(0, 1), each=3)
    crown = Crown(graph, region(x, 0.05, "Linf"), refine=False).lowest(graph.output.name, rows).view(5, 3)
    torch.testing.assert_close(step.crown_ibp(lower, upper).detach().double(), crown, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: IBP(ramp=1.2), "not be longer"),
        (lambda: IBP(warmup=0.7, ramp=0.5), "warmup <= ramp"),
        (lambda: CrownIBPTraining(kappa_start=1.1), "kappa must lie"),
        (lambda: MTLIBP(kappa_end=-0.1), "kappa must lie"),
        (lambda: CrownIBPTraining(beta_end=2), "beta must lie"),
        (lambda: SABR(shrink=1.5), "shrink in"),
        (lambda: CCIBP(coefficient=-0.5), "coefficient in"),
        (lambda: FastIBP(schedule="cubic"), "choose linear or smoothed"),  # type: ignore[arg-type]
        (lambda: FastIBP(penalty=-1), "penalty >= 0"),
    ],
)
def test_what_cannot_be_is_refused(wrong: Any, said: str):
    with pytest.raises(UsageError, match=said):
        wrong()


def test_bounds_that_overflow_say_where():
    net = TwoLayers(torch.full((2, 2), 3e38))
    with pytest.raises(DivergedBounds, match=r"overflow float32 in Linear at 'first'.*50% of the training.*smoothed"):
        loss(IBP(**NOW), example(net, progress=0.5))


def doubled(step: Step) -> Step:
    def twice(t: Tensor) -> Tensor:
        return torch.cat([t, t])

    return example(step.module, x=twice(step.x), y=twice(step.y), found=twice(step.x + 0.05))


@pytest.mark.parametrize(
    "method", [IBP(**NOW), CrownIBPTraining(**NOW, beta_end=0.5), FastIBP(ramp=1.0), SABR(ramp=1.0)]
)
def test_a_batch_twice_over_has_the_same_loss(method: StepMethod):
    one = example(x=torch.rand(3, 1, 1, 2), y=torch.tensor([0, 1, 0]), progress=0.7)
    one.inner = lambda step, spec, x, q: x + 0.05
    two = doubled(one)
    two.progress = 0.7
    assert loss(method, two) == pytest.approx(loss(method, one), abs=1e-6)


def test_the_views_statistics_are_the_bounds():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(2, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2)).train()
    x, y = torch.rand(4, 1, 1, 2), torch.tensor([0, 1, 0, 1])
    step = example(net, x=x, y=y)
    step.views["adv"] = 1 - x
    for view in ("clean", "adv"):
        point = step.views[view]
        margins = step.margins(point, point, view)
        logits = step.logits(view)
        torch.testing.assert_close(margins, logits.gather(1, y.view(-1, 1)) - logits, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(step.margins(x, x, "clean"), step.margins(x, x, "adv"), atol=1e-3)
    assert int(net[2].num_batches_tracked) == 2  # one pass a view, however often bounds are asked for


def test_the_label_is_what_the_margins_are_of():
    # f1 - f0 >= 0 - 5/4
    assert loss(IBP(**NOW), example(y=torch.tensor([1]))) == pytest.approx(softplus(-1.25), abs=1e-6)


def test_kappa_follows_the_radius():
    method = IBP(warmup=0.2, ramp=0.6, kappa_start=0.8, kappa_end=0.2)
    assert [method.kappa(method.grown(p)) for p in (0.1, 0.4, 0.9)] == [1, pytest.approx(0.5), pytest.approx(0.2)]
