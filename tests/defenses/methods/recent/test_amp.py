"""AMP: the sheet's example, the ascent by hand, and what a ball of no size leaves."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustsuite.data.dataset import Dataset
from robustsuite.defenses import Step
from robustsuite.defenses.amp import AMP, moved
from robustsuite.defenses.composed import compose
from robustsuite.defenses.pgd_at import PGDAT
from robustsuite.defenses.sam import SAM
from robustsuite.defenses.standard import Standard
from robustsuite.errors import UsageError
from robustsuite.threat import ThreatModel
from robustsuite.training.loop import initial_module, train


class Quadratic(nn.Module):
    """The loss ``sum w^2 d / 2`` of each tensor, whose gradient ``d w`` depends on where it is taken."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList([torch.tensor([1.0, 2.0]), torch.tensor([0.1])])

    def loss(self) -> Tensor:
        slopes = (torch.tensor([0.0, 1.0]), torch.tensor([1.0]))
        return torch.stack([(w.square() * d).sum() / 2 for w, d in zip(self.weights, slopes, strict=True)]).sum()


def test_the_example(toy: Step):
    """g = (0, 2) and a ball of 0.5 give (0, 0.5) where SAM gives (0, 0.05); a short g stays as it is."""
    toy.module = Quadratic()
    offsets = AMP(radius=0.5).perturb(toy, toy.module.loss)
    assert offsets is not None
    assert [o.tolist() for o in offsets] == [pytest.approx([0, 0.5]), pytest.approx([0.1])]
    alone = nn.ParameterList([torch.tensor([1.0, 2.0])])
    toy.module = alone
    sam = SAM(rho=0.05).perturb(toy, lambda: (alone[0] * torch.tensor([0.0, 2.0])).sum())
    assert sam is not None
    assert sam[0].tolist() == pytest.approx([0, 0.05])


def test_the_second_ascent_is_taken_at_the_moved_weights(toy: Step):
    """0.1 -> g 0.1 -> at 0.12 g 0.12: v = 0.2 (0.1 + 0.12); the weights are back, bit for bit."""
    toy.module = Quadratic()
    before = [w.detach().clone() for w in toy.module.parameters()]
    offsets = AMP(radius=10, zeta=0.2, ascents=2).perturb(toy, toy.module.loss)
    assert offsets is not None
    assert offsets[1].tolist() == pytest.approx([0.2 * 0.1 + 0.2 * 0.12])
    assert all(torch.equal(w, old) for w, old in zip(toy.module.parameters(), before, strict=True))
    far = AMP(radius=0.5, zeta=3, ascents=4).perturb(toy, toy.module.loss)
    assert far is not None
    assert float(far[0].norm()) == pytest.approx(0.5)


def test_weights_come_back_when_something_fails():
    weight = torch.tensor([1.0, 1e-8])
    with pytest.raises(KeyError), moved([weight], [torch.tensor([1e8, 1.0])]):
        raise KeyError
    assert torch.equal(weight, torch.tensor([1.0, 1e-8]))


def test_one_step_of_training_by_hand(digits: Dataset):
    plain: dict[str, Any] = {
        "lr": 0.5, "schedule": "constant", "momentum": 0.0, "weight_decay": 0.0, "batch_size": 48, "epochs": 1
    }  # fmt: skip
    threat, arch = ThreatModel.parse("Linf:0.1"), {"hidden": 4, "depth": 1}
    method = compose(("standard", Standard()), ("amp", AMP(radius=0.05)))
    trained = train(method, "mlp", arch, digits, threat, validation=0, **plain)
    module = initial_module("mlp", arch, digits, 0)
    weights = list(module.parameters())
    old = [w.detach().clone() for w in weights]

    def gradient() -> list[Tensor]:
        return list(torch.autograd.grad(nn.functional.cross_entropy(module(digits.x), digits.y), weights))

    first = gradient()
    with torch.no_grad():
        for weight, g in zip(weights, first, strict=True):
            weight += g * min(1, 0.05 / float(g.norm()))
    second = gradient()
    with torch.no_grad():
        for weight, start, down in zip(weights, old, second, strict=True):
            weight.copy_(start - 0.5 * down)
    for name, tensor in module.state_dict().items():
        assert torch.allclose(trained.last_state[name], tensor, atol=1e-6)


@pytest.mark.parametrize("base", [("standard", Standard()), ("pgd_at", PGDAT(steps=2))])
def test_a_ball_of_no_size_leaves_the_base(base: Any, quick: Callable, same: Callable):
    plain = quick(compose(base))
    assert same(quick(compose(base, ("amp", AMP(radius=0)))), plain)
    assert same(quick(compose(base, ("amp", AMP(zeta=0)))), plain)
    twice = quick(compose(base, ("amp", AMP(ascents=2))))
    assert not same(twice, plain)
    assert twice.forward - plain.forward == twice.backward - plain.backward == 2 * 2 * 48


@pytest.mark.parametrize("bad", [{"radius": -1}, {"zeta": -1}, {"ascents": 0}])
def test_bad_parameters(bad: dict):
    with pytest.raises(UsageError, match="amp needs"):
        AMP(**bad)
