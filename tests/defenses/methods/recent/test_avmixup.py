"""Adversarial vertex mixup: the sheet's example, the toy batch by hand, and what is left of it without vertices."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from robustsuite.defenses import Step
from robustsuite.defenses.avmixup import AVMixup, spread
from robustsuite.defenses.standard import Standard
from robustsuite.errors import UsageError


class Drawn:
    """Noise whose uniform numbers are known."""

    def __init__(self, value: float) -> None:
        self.value = value

    def child(self, name: str) -> "Drawn":
        return self

    def uniform(self, shape: tuple[int, ...]) -> Tensor:
        return torch.full((2,), self.value)


@pytest.mark.parametrize(("share", "pixel", "true"), [(0.25, 0.547059, 0.325), (1.0, 0.5, 1.0), (0.0, 0.562745, 0.1)])
def test_the_example(share: float, pixel: float, true: float, toy: Step):
    toy.x, toy.q = torch.full((2, 1, 2, 2), 0.5), nn.functional.one_hot(torch.tensor([3, 7]), 10).float()
    toy.noise = Drawn(share)  # type: ignore[assignment]
    toy.inner = lambda step, spec, x, q: x + 8 / 255
    mixed = AVMixup().views(toy)["mixed"]
    assert mixed.flatten().tolist() == pytest.approx([pixel] * 8, abs=1e-6)
    labels = toy.trace["avmixup"]
    assert labels[[0, 1], [3, 7]].tolist() == pytest.approx([true] * 2)
    assert labels.sum(1).tolist() == pytest.approx([1, 1])


def test_labels_of_a_vertex():
    q = nn.functional.one_hot(torch.tensor([0]), 10).double()
    assert torch.allclose(spread(q, 0.1), torch.full((1, 10), 0.1, dtype=torch.float64))
    assert torch.equal(spread(q, 1.0), q)
    soft = torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64)
    assert spread(soft, 0.4).sum().item() == pytest.approx(1)


def test_golden(toy: Step, loss: Callable):
    """-0.1 log p'_y - 0.45 (the two others), at the vertices themselves."""
    toy.views["mixed"], toy.trace["avmixup"] = toy.views["adv"], spread(toy.q, 0.1)
    assert loss(AVMixup(), toy) == pytest.approx(1.390701, abs=1e-5)


def test_vertices_leave_the_ball_but_not_the_box(toy: Step):
    toy.x, toy.q = torch.tensor([[0.05, 0.5], [0.95, 0.5]]), toy.q.float()
    toy.noise = Drawn(0.0)  # type: ignore[assignment]
    toy.inner = lambda step, spec, x, q: x + torch.tensor([[-0.04, 0.1], [0.04, 0.1]])
    mixed = AVMixup(gamma=2).views(toy)["mixed"]
    assert mixed.flatten().tolist() == pytest.approx([0, 0.7, 1, 0.7])


def test_without_vertices_it_is_standard_training(quick: Callable, same: Callable):
    plain = AVMixup(gamma=0, lam_clean=1, lam_adv=1, steps=2)
    assert same(quick(plain), quick(Standard()))
    assert not same(quick(AVMixup(steps=2)), quick(Standard()))


def test_it_trains(quick: Callable):
    trained = quick(AVMixup(steps=2, lam_adv=1 / 3), epochs=4)
    assert trained.history[-1].terms["ce_mixed"] < trained.history[0].terms["ce_mixed"]
    assert (trained.forward, trained.backward) == (3 * 4 * 48, 3 * 4 * 48)


@pytest.mark.parametrize("bad", [{"gamma": -1}, {"lam_clean": 1.5}, {"lam_adv": -0.1}])
def test_bad_parameters(bad: dict):
    with pytest.raises(UsageError, match="avmixup needs"):
        AVMixup(**bad)
