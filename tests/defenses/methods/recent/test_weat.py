"""WEAT: golden numbers, and weights that are those of the energy alone."""

from collections.abc import Callable

import pytest
import torch

from robustsuite.defenses import InnerSpec, Step
from robustsuite.defenses.weat import WEAT
from robustsuite.errors import UsageError
from robustsuite.registry import DEFENSES
from robustsuite.testing import check_defense


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (WEAT(), 1.048239),
        (WEAT("adv", beta=7), 1.561659),
        (WEAT("adv", beta=7, energy="adv"), 1.679037),
        (WEAT(beta=0), (0.438986 * 0.169846 + 0.573504 * 0.551445) / 2),
    ],
)
def test_golden_losses(method: WEAT, expected: float, toy: Step, doubled: Step, loss: Callable[..., float]):
    for step in (toy, doubled):
        assert loss(method, step) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("energy", "expected"), [("clean", (0.438986, 0.573504)), ("adv", (0.572552, 0.573504))])
def test_golden_weights(energy, expected: tuple[float, float], toy: Step):
    method = WEAT(energy=energy)
    weights = method.weights(toy, method.terms(toy))
    assert set(weights) == {"ce", "kl"}
    for weight in weights.values():
        assert weight.tolist() == pytest.approx(expected, abs=1e-5)
        assert not weight.requires_grad


def test_a_large_energy_weighs_by_its_inverse(toy: Step):
    toy.views["clean"] = torch.tensor([[500.0, 0, 0], [-500, -500, -500]], dtype=torch.float64)
    method = WEAT(beta=0)
    weight = method.weights(toy, method.terms(toy))["ce"]
    assert weight.tolist() == pytest.approx([1 / 500, 1 / (500 - torch.tensor(3.0).log().item())], rel=1e-6)


def test_the_inner_problem_is_not_asked_where_it_is_not_needed(toy: Step):
    asked: list[InnerSpec] = []
    toy.inner = lambda step, spec, x, q: asked.append(spec) or x
    assert WEAT(beta=0).views(toy) == {}
    WEAT(steps=3).views(toy)
    WEAT("adv", beta=0, steps=3).views(toy)
    assert asked == [InnerSpec("kl", 3, 0.25, init="gauss")] * 2


@pytest.mark.parametrize("form", ["nat", "adv"])
def test_it_trains(form, quick: Callable):
    trained = quick(WEAT(form, steps=2), epochs=4)
    first, last = (sum(entry.terms.values()) for entry in (trained.history[0], trained.history[-1]))
    assert last < first


@pytest.mark.parametrize("form", ["nat", "adv"])
def test_contract(form: str):
    assert [str(f) for f in check_defense(DEFENSES.get("weat"), {"form": form}) if not f.ok] == []


@pytest.mark.parametrize("bad", [{"beta": -1}, {"form": "both"}, {"energy": "none"}])
def test_bad_parameters(bad: dict):
    with pytest.raises(UsageError, match="weat needs"):
        WEAT(**bad)
