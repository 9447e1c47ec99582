"""Consistency between two augmented and attacked views."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from robustsuite.defenses import Step
from robustsuite.defenses.consistency_at import TWIN, ConsistencyAT, jensen_shannon
from robustsuite.defenses.pgd_at import PGDAT
from robustsuite.errors import UsageError
from robustsuite.noise import Noise
from robustsuite.threat import ThreatModel

PLAIN: dict[str, Any] = {"pad": 0.0, "flip": False, "cut": 0.0}


def pairs(toy: Step, first: torch.Tensor, second: torch.Tensor) -> Step:
    both = torch.cat([first, second])
    toy.rebatch(x=both, y=toy.y.repeat(2), q=toy.q.repeat(2, 1), ids=torch.arange(4))
    toy.views["adv"] = both
    return toy


def test_golden_losses(toy: Step, loss: Callable[..., float]):
    step = pairs(toy, toy.x, toy.views["adv"])
    mean = (0.360645 + 1.053201) / 2
    assert loss(ConsistencyAT(agree=0), step) == pytest.approx(mean, abs=1e-5)
    assert loss(ConsistencyAT(), step) == pytest.approx(mean + 0.184770, abs=1e-5)
    assert loss(ConsistencyAT(agree=2), step) == pytest.approx(mean + 2 * 0.184770, abs=1e-5)


def test_equal_views_agree(toy: Step):
    step = pairs(toy, toy.x, toy.x)
    assert ConsistencyAT().terms(step)["js"].values.abs().max() < 1e-12


def test_the_divergence_against_its_definition():
    first, second = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p, q = first.softmax(1), second.softmax(1)
    m = (p + q) / 2
    expected = 0.5 * (p * (p / m).log()).sum(1) + 0.5 * (q * (q / m).log()).sum(1)
    assert torch.allclose(jensen_shannon(first, second), expected)
    far = jensen_shannon(torch.tensor([[90.0, 0]]), torch.tensor([[0.0, 90]]))
    assert far.item() == pytest.approx(torch.log(torch.tensor(2.0)).item())  # its largest value


def test_two_views_of_every_example(toy: Step):
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    toy.rebatch(x=x, q=toy.q.float())
    toy.noise = Noise(0, "train/step0").at(torch.tensor([5, 9]))
    toy.memory["mean"] = torch.zeros(3, 1, 1)
    ConsistencyAT(**PLAIN).data(toy)
    assert torch.equal(toy.x, torch.cat([x, x]))
    assert toy.noise.ids.tolist() == [5, 9, 5 + TWIN, 9 + TWIN]
    assert toy.y.tolist() == [0, 1, 0, 1]
    first, second = toy.x.chunk(2)
    toy.rebatch(x=x, y=toy.y[:2], q=toy.q[:2], ids=torch.tensor([5, 9]))
    ConsistencyAT().data(toy)
    first, second = toy.x.chunk(2)
    assert not torch.equal(first, second)
    assert int((first == 0).sum()) >= 3 * 4  # an edge or a square is masked


def test_views_of_the_loss_are_attacked_apart(quick: Callable, same: Callable, survives: Callable):
    trained = quick(ConsistencyAT(steps=2), epochs=4)
    assert trained.history[-1].terms["ce_adv"] < trained.history[0].terms["ce_adv"]
    assert trained.history[0].terms["js"] > 0
    assert trained.backward == 4 * 48 * 2 * 3
    assert survives(ConsistencyAT(steps=1))
    assert not same(quick(ConsistencyAT(steps=2, **PLAIN)), quick(PGDAT(steps=2)))


def test_without_attack_and_augmentation_both_views_are_the_example(quick: Callable, same: Callable):
    """Then the divergence is zero, and its weight without effect."""
    zero, fixed = ThreatModel.parse("Linf:0"), {"arch": "tests_methods_no_dropout"}
    one, other = (quick(ConsistencyAT(agree=a, steps=1, **PLAIN), zero, **fixed) for a in (0, 1))
    assert other.history[-1].terms["js"] == pytest.approx(0, abs=1e-7)
    for name, tensor in one.last_state.items():
        assert torch.allclose(tensor, other.last_state[name], atol=1e-5)


def test_bad_parameters():
    wrong: list[dict[str, Any]] = [{"agree": -1}, {"temperature": 0}, {"cut": -0.5}]
    for bad in wrong:
        with pytest.raises(UsageError, match="consistency_at needs"):
            ConsistencyAT(**bad)
