"""RSS: a penalised worst case on labels, and on the network's own answers."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustsuite.data.dataset import Dataset
from robustsuite.defenses import Step
from robustsuite.defenses.rss import RSS
from robustsuite.defenses.standard import Standard
from robustsuite.errors import UsageError
from robustsuite.noise import Noise
from robustsuite.registry import ARCHITECTURES, DEFENSES
from robustsuite.testing import check_defense
from robustsuite.threat import ThreatModel
from robustsuite.training.loop import train


@pytest.fixture
def linear(toy: Step) -> Step:
    """Logits in which the cross-entropy of class 0 is the linear function w.x, far in its linear part."""
    layer = nn.Linear(4, 2, bias=False).double()
    layer.weight = nn.Parameter(torch.tensor([[-30.0, -20, -10, -20], [30, 20, 10, 20]]).double())
    toy.module = nn.Sequential(nn.Flatten(), layer)
    y = torch.tensor([0, 0])
    x = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.4, 0.6, 0.5, 0.3]]).double().view(2, 1, 2, 2)
    toy.rebatch(x=x, y=y, q=nn.functional.one_hot(y, 2).double(), ids=torch.arange(2))
    toy.num_classes = 2
    return toy


def test_the_supremum_of_a_linear_loss(linear: Step):
    """``l + |grad|^2 / 2 gamma``, in one whole step: grad is (60, 40, 20, 40)."""
    method = RSS(gamma=300, share=0, steps=1, rate=1)
    linear.views.update(method.views(linear))
    moved = linear.views["worst"] - linear.x
    assert moved[0].flatten().tolist() == pytest.approx([0.2, 0.4 / 3, 0.2 / 3, 0.4 / 3])
    loss = Standard().terms(linear)["ce"].values + (60**2 + 40**2 + 20**2 + 40**2) / 600
    assert torch.allclose(method.terms(linear)["ce"].values, loss)
    slow = RSS(gamma=300, share=0, steps=40, rate=0.5).views(linear)["worst"]
    assert torch.allclose(slow, linear.views["worst"], atol=1e-9)


def test_the_supremum_of_a_curved_loss_by_search(linear: Step):
    linear.module[1].weight.data /= 20  # type: ignore[index]
    linear.module[1].weight.requires_grad_(True)  # type: ignore[index]
    method = RSS(gamma=8, share=0, steps=30, rate=0.5)
    linear.views.update(method.views(linear))
    found = method.terms(linear)["ce"].values.detach()
    best = torch.full((2,), -math.inf).double()
    direction = torch.tensor([3.0, 2, 1, 2]).double() / 18**0.5  # of every gradient
    for length in torch.linspace(0, 0.6, 6001).tolist():
        z = linear.x + length * direction.view(1, 1, 2, 2)
        best = best.maximum(Standard().terms(_at(linear, z))["ce"].values.detach() - 4 * length**2)
    assert torch.allclose(found, best, atol=1e-6)


def _at(step: Step, x: Tensor) -> Step:
    step.forget_logits()
    step.views["clean"] = x
    return step


def test_unlabelled_images_have_their_own_price_and_the_networks_answers(linear: Step):
    linear.memory["hidden"] = torch.tensor([1])
    method = RSS(gamma=300, gamma_unlabelled=600, share=0.5, steps=1, rate=1, weight=3, warmup=0.5)
    method.data(linear)
    linear.q = method.labels(linear)
    assert linear.q.argmax(1).tolist() == [0, 1]  # what it answers, not what is true
    linear.q = nn.functional.one_hot(torch.tensor([0, 0]), 2).double()
    linear.views.update(method.views(linear))
    clean = Standard().terms(linear)["ce"].values
    assert set(method.terms(linear)) == {"ce"}
    linear.progress = 0.5
    terms = method.terms(linear)
    assert terms["ce"].values.tolist() == pytest.approx([2 * float(clean[0].detach() + 12), 0])
    assert terms["ce_unlabelled"].values.tolist() == pytest.approx([0, 2 * float(clean[1].detach() + 6)])
    assert terms["ce_unlabelled"].weight == 3


def test_what_costs_too_much_does_not_move(quick: Callable, same: Callable):
    infinite: dict[str, Any] = {"gamma": math.inf, "gamma_unlabelled": math.inf}
    plain = quick(Standard())
    assert same(quick(RSS(**infinite, share=0)), plain)
    assert not same(quick(RSS(**infinite, share=0.5)), plain)
    assert quick(RSS(share=0)).history[0].terms["ce"] != plain.history[0].terms["ce"]


def test_it_survives_a_kill(survives: Callable):
    assert survives(RSS(steps=2))


def mixture(n: int, first: int) -> Dataset:
    """Two Gaussians in 50 dimensions, as images around the middle of the box; the best accuracy is 92%."""
    y = torch.arange(n) % 2
    noise = Noise(5, "mixture").at(torch.arange(first, first + n)).normal((1, 5, 10))
    signs = torch.where(Noise(5, "centre").at(torch.arange(50)).uniform(()) < 0.5, -1.0, 1.0).view(1, 5, 10)
    x = 0.5 + 0.1 * noise + 0.02 * (2 * y - 1).view(-1, 1, 1, 1) * signs
    return Dataset("mixture", x.clamp(0, 1), y, torch.arange(first, first + n), 2)


class Centred(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 10 * (x - 0.5).flatten(1)


@ARCHITECTURES.register("tests_centred")
def centred(num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    return nn.Sequential(Centred(), nn.Linear(math.prod(input_shape), num_classes, bias=False))


def test_unlabelled_examples_help(tmp_path: Path):
    """Ten labels of a mixture of two Gaussians: the more images without a label, the better."""
    test, right = mixture(2000, 100_000), []
    for n in (0, 100, 1000):
        extra = mixture(max(n, 1), 1000)
        np.savez(tmp_path / f"{n}.npz", x=extra.x.numpy(), y=1 - extra.y.numpy())
        beside = {"share": n / (n + 10), "unlabelled": str(tmp_path / f"{n}.npz")} if n else {"share": 0.0}
        trained = train(
            RSS(gamma=50, gamma_unlabelled=50, **beside), "tests_centred", {}, mixture(10, 0),  # type: ignore[arg-type]
            ThreatModel.parse("L2:0.1"), epochs=60, batch_size=10, lr=0.1, validation=0, weight_decay=0.0,
        )  # fmt: skip
        right.append(float((trained.module(test.x).argmax(1) == test.y).float().mean()))
    assert right[0] + 0.03 < right[1]
    assert right[1] + 0.03 < right[2]


@pytest.mark.parametrize("params", [{}, {"gamma": math.inf, "gamma_unlabelled": math.inf, "warmup": 0.0}])
def test_the_contract_holds(params: dict):
    assert [str(f) for f in check_defense(DEFENSES.get("rss"), params) if not f.ok] == []


@pytest.mark.parametrize(
    "bad", [{"gamma": 0}, {"gamma_unlabelled": -1}, {"share": 1}, {"rate": 0}, {"weight": -1}, {"warmup": 2}]
)
def test_bad_parameters_are_refused(bad: dict):
    with pytest.raises(UsageError, match="rss needs"):
        RSS(**bad)
