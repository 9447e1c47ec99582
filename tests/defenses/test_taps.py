"""TAPS and STAPS: the attacked margins and the product by hand, the connector, where a network cannot be split."""

import math
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

from robustsuite.bounds.rounding import Box
from robustsuite.defenses import reduce_terms
from robustsuite.defenses.staps import STAPS
from robustsuite.defenses.taps import TAPS, connected
from robustsuite.errors import UsageError

_MADE = runpy.run_path(str(Path(__file__).with_name("two_layers.py")))
TwoLayers, example = _MADE["TwoLayers"], _MADE["example"]

ALONE: dict[str, Any] = {"warmup": 0.0, "ramp": 0.0, "penalty": 0.0, "interval_init": False}


def softplus(margin: float) -> float:
    return math.log1p(math.exp(-margin))


# Of the operators flatten, first, relu, last. Intervals alone give the margin -1/2; its least value on the box of the
# image, [1/4, 3/4] x [0, 1/2], is 0, where x2 is 0.
@pytest.mark.parametrize(("last", "attacked"), [(1, -0.5), (2, -0.5), (3, 0.0)])
def test_the_product_by_hand(last: int, attacked: float):
    step = example()
    (term,) = TAPS(**ALONE, last=last).terms(step).values()
    assert term.values.item() == pytest.approx(softplus(attacked) * softplus(-0.5), abs=1e-4)


def test_staps_attacks_within_the_small_box():
    # [1/2, 3/4] x [0, 1/4]: the margin is 2 x2 >= 0 there, 1/2 - 3/4 by intervals.
    step = example(found=torch.tensor([[[[0.75, 0.0]]]]))
    method = STAPS(**ALONE, last=3, shrink=0.5)
    step.views.update(method.views(step))
    (term,) = method.terms(step).values()
    assert term.values.item() == pytest.approx(softplus(0.0) * softplus(-0.25), abs=1e-4)
    assert STAPS(**ALONE, shrink=1.0).views(step) == {}


def test_the_connector_by_hand():
    lower, upper = torch.zeros(1, 5, requires_grad=True), torch.full((1, 5), 1.0, requires_grad=True)
    point = torch.tensor([[0.0, 0.2, 0.5, 0.9, 1.0]])
    found = connected(point, Box(lower, upper), 0.5)
    assert torch.equal(found, point)
    found.sum().backward()
    torch.testing.assert_close(lower.grad, torch.tensor([[1.0, 0.6, 0.0, 0.0, 0.0]]))
    torch.testing.assert_close(upper.grad, torch.tensor([[0.0, 0.0, 0.0, 0.8, 1.0]]))
    flat = torch.ones(1, 1, requires_grad=True)
    connected(torch.ones(1, 1), Box(flat, flat), 0.5).sum().backward()
    assert flat.grad.item() == 1


def gradient(weight: float) -> torch.Tensor:
    step = example()
    (term,) = TAPS(**ALONE, last=1, weight=weight).terms(step).values()
    term.values.sum().backward()
    return step.module.first.weight.grad


def test_the_weight_scales_the_gradient_of_the_attacked_part_and_leaves_the_value():
    # At last=1 both losses are the same function of the box, so that the shares 2 w / (1 + w) and the rest add up.
    torch.testing.assert_close(gradient(1.0), gradient(4.0))
    step = example()
    ibp = step.margins(*TAPS(**ALONE).box(step, 1.0))
    (torch.nn.functional.softplus(-ibp[0, 1]) ** 2).backward()
    torch.testing.assert_close(gradient(4.0), step.module.first.weight.grad, atol=1e-5, rtol=1e-4)


def test_all_classes_are_attacked_and_the_margins_are_attained():
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(9, 8), torch.nn.ReLU(), torch.nn.Linear(8, 6), torch.nn.ReLU(),
        torch.nn.Linear(6, 4),
    )  # fmt: skip
    x, y = torch.rand(3, 1, 3, 3), torch.tensor([2, 0, 3])
    step = example(net, x=x, y=y, classes=4)
    method = TAPS(**ALONE, last=3, restarts=10)
    lower, upper = (x - 0.1).clamp(min=0), (x + 0.1).clamp(max=1)
    certified = step.margins(lower, upper)
    boxes = step.boxes
    attacked = method.margins(step, boxes)
    assert attacked.gather(1, y.view(-1, 1)).count_nonzero() == 0
    assert bool((attacked >= certified - 1e-5).all())  # attained somewhere in the box of the middle
    box = boxes.values["_0_2"]
    for seed in range(30):
        noise = torch.rand(box.lower.shape, generator=torch.Generator().manual_seed(seed))
        logits = net[3:](box.lower + noise * (box.upper - box.lower))
        assert bool((logits.gather(1, y.view(-1, 1)) - logits >= attacked - 1e-4).all())


def test_a_batch_twice_over_has_the_same_loss_but_for_the_starts():
    one = example(x=torch.rand(2, 1, 1, 2), y=torch.tensor([0, 1]))
    two = example(x=one.x.repeat(2, 1, 1, 1), y=one.y.repeat(2))
    two.noise = type(one.noise)(one.noise.noise, one.noise.ids.repeat(2))
    first, second = (reduce_terms(TAPS(**ALONE, last=3).terms(s), {}, len(s.y))["taps"].item() for s in (one, two))
    assert first == pytest.approx(second, abs=1e-6)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: TAPS(restarts=0), "restarts >= 1"),
        (lambda: TAPS(connector=0.8), "connector in"),
        (lambda: STAPS(shrink=-1), "shrink in"),
    ],
)
def test_what_cannot_be_is_refused(wrong: Any, said: str):
    with pytest.raises(UsageError, match=said):
        wrong()
