"""MART and ALP: golden numbers, and what becomes of the divergence of a sure example."""

from collections.abc import Callable

import pytest
import torch

from robustsuite.defenses import InnerSpec, Step
from robustsuite.defenses.alp import ALP
from robustsuite.defenses.mart import MART
from robustsuite.defenses.pgd_at import PGDAT
from robustsuite.errors import UsageError
from robustsuite.registry import DEFENSES


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (MART(beta=5), 2.149182),
        (MART(beta=6), 2.239785),
        (MART(beta=0), (0.982832 + 2.409506) / 2),
        (ALP(), 1.053201 + 0.5 * (1.25 + 2) / 2),
        (ALP(pairing=0), 1.053201),
    ],
)
def test_golden_losses(method, expected: float, toy: Step, doubled: Step, loss: Callable[..., float]):
    assert loss(method, toy) == pytest.approx(expected, abs=1e-5)
    assert loss(method, doubled) == pytest.approx(expected, abs=1e-5)


def test_golden_bce(toy: Step):
    assert MART().terms(toy)["bce"].values.tolist() == pytest.approx([0.982832, 2.409506], abs=1e-5)


def test_a_sure_example_has_no_divergence(toy: Step):
    toy.views["clean"] = torch.tensor([[60.0, 0, 0], [0, 60, 0]], dtype=torch.float64)
    assert MART().terms(toy)["kl"].values.abs().max() < 1e-4
    toy.views["clean"] = -toy.views["clean"]
    toy.forget_logits()
    assert MART().terms(toy)["kl"].values.min() > 0.1


def test_the_inner_problem(toy: Step):
    asked: list[InnerSpec] = []
    toy.inner = lambda step, spec, x, q: asked.append(spec) or x
    MART(steps=3).views(toy)
    ALP(steps=4).views(toy)
    assert asked == [InnerSpec("ce", 3, 0.25, init="gauss"), InnerSpec("ce", 4, 0.25)]


def test_alp_without_pairing_is_adversarial_training(quick, same):
    assert same(quick(ALP(pairing=0, steps=2)), quick(PGDAT(steps=2)))
    assert not same(quick(ALP(steps=2)), quick(PGDAT(steps=2)))


def test_mart_trains(quick):
    trained = quick(MART(steps=2), epochs=4)
    assert trained.history[-1].terms["bce"] < trained.history[0].terms["bce"]


def test_alp_says_that_it_is_broken():
    assert "1807.10272" in DEFENSES.get("alp").facts["broken"]
    assert "broken" in DEFENSES.get("alp").summary


def test_negative_weights_are_refused():
    with pytest.raises(UsageError, match="beta >= 0"):
        MART(beta=-1)
    with pytest.raises(UsageError, match="pairing >= 0"):
        ALP(pairing=-1)
