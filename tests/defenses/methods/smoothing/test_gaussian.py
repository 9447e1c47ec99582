"""Gaussian augmentation with several draws, and what all trainers for smoothing share."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from robustsuite.defenses import Step
from robustsuite.defenses.gaussian import Gaussian, draw_noise, view_names
from robustsuite.errors import UsageError
from robustsuite.registry import DEFENSES
from robustsuite.testing import check_defense
from robustsuite.threat import ThreatModel
from robustsuite.training.method import make_composed, make_method

TRAINERS = ("gaussian", "stability", "consistency", "macer", "smoothadv", "smoothadv_ddn", "smoothmix")
L2 = ThreatModel.parse("L2:0.5")


@pytest.mark.parametrize("name", TRAINERS)
def test_the_contract_is_kept(name: str):
    entry = DEFENSES.get(name)
    findings = check_defense(entry)
    assert not [str(f) for f in findings if not f.ok]
    assert entry.facts["paper"]
    assert "pass" in entry.facts["cost"]


@pytest.mark.parametrize("name", TRAINERS)
@pytest.mark.parametrize("sigma", [0.0, -0.25, float("nan"), float("inf")])
def test_a_sigma_that_smooths_nothing_is_refused(name: str, sigma: float):
    with pytest.raises(UsageError, match=f"{name.removesuffix('_ddn')} needs sigma > 0, got .*certified"):
        make_method(name, {"sigma": sigma})


@pytest.mark.parametrize("name", TRAINERS[2:])
def test_at_least_one_draw(name: str):
    with pytest.raises(UsageError, match="at least one draw"):
        make_method(name, {"m": 0})


@pytest.mark.parametrize("name", TRAINERS)
def test_published_values_by_data_set_and_sigma(name: str):
    listed = DEFENSES.get(name).facts.get("defaults", {})
    for key in listed:
        make_composed(name, defaults=key)  # accepts them
        assert listed[key]["sigma"] == float(key.partition("-")[2] or 0.25)
    if name != "smoothadv_ddn":
        assert {"cifar10", "cifar10-0.5", "mnist", "mnist-0.25", "mnist-0.5", "mnist-1"} <= set(listed)


def test_published_values_of_the_papers():
    def of(name: str, key: str, *fields: str) -> list[Any]:
        return [DEFENSES.get(name).facts["defaults"][key][field] for field in fields]

    assert of("consistency", "cifar10-0.25", "lam") == [20]
    assert of("consistency", "mnist-0.5", "lam") == [5]
    assert of("macer", "mnist-1", "lam", "defer") == [6, 1 / 3]
    assert of("smoothmix", "mnist-0.5", "m", "steps", "length") == [4, 4, 1.0]
    assert of("smoothadv", "mnist-0.25", "m", "steps") == [4, 10]


def test_two_draws_cost_their_mean(noisy: Callable[..., Step], loss: Callable[..., float]):
    assert loss(Gaussian(m=2), noisy()) == pytest.approx((0.362401470 + 0.831755764) / 2, abs=1e-8)
    assert loss(Gaussian(m=2), noisy(times=2)) == pytest.approx(loss(Gaussian(m=2), noisy()), abs=1e-12)


def test_draws_are_keyed_and_the_first_is_that_of_one_draw(make_step: Callable[..., Step], small: tuple):
    step = make_step(*small)
    one, three = Gaussian(0.5).views(step), Gaussian(0.5, m=3).views(step)
    assert tuple(three) == view_names(3) == ("noisy", "noisy1", "noisy2")
    assert torch.equal(one["noisy"], three["noisy"])
    assert not torch.equal(three["noisy"], three["noisy1"])
    assert not torch.equal(three["noisy1"], three["noisy2"])
    later = draw_noise(step, 0.5, 2, first=1)
    assert torch.equal(step.x + later[0], three["noisy1"])
    step.x = torch.full((5, 1, 80, 80), 0.5)
    for noise in draw_noise(step, 0.25, 2):
        assert float(noise.std()) == pytest.approx(0.25, rel=0.02)


def test_several_draws_share_one_batch(make_step: Callable[..., Step], small: tuple):
    network, x, y = small
    seen: list[int] = []

    def watched(images: Tensor) -> Tensor:
        seen.append(len(images))
        return network(images)

    method = Gaussian(m=3)
    step = make_step(network, x, y, compiled=watched, joint=method.joint)
    step.views.update(method.views(step))
    method.terms(step)
    assert seen == [15]
    assert Gaussian().joint == ()


def test_it_trains(quick: Callable, same: Callable, trains: Callable):
    trains(Gaussian(m=2), 2 * 96, 2 * 96)
    assert not same(quick(Gaussian(m=2), L2), quick(Gaussian(m=1), L2))


def test_modifiers_go_around_them(quick: Callable, same: Callable):
    small = {"m": 2, "steps": 1, "warmup": 0.0}
    plain, around = (
        quick(make_composed("smoothadv", parts, {f"smoothadv.{k}": v for k, v in small.items()}), L2)
        for parts in ((), ("awp", "ema"))
    )
    assert not same(plain, around)
    assert set(around.history[-1].terms) == {"ce_noisy"}
