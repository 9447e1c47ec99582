"""ELLE and ELLE-A: the error on linear and quadratic losses, the controller, and what no coefficient leaves."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from robustsuite.defenses import Step
from robustsuite.defenses.composed import compose
from robustsuite.defenses.elle import ELLE, VIEWS
from robustsuite.defenses.elle_a import ELLEA
from robustsuite.defenses.fgsm_at import FGSMAT
from robustsuite.defenses.n_fgsm import NFGSM
from robustsuite.errors import UsageError

FGSM = ("fgsm_at", FGSMAT())
STILL = "tests_methods_no_dropout"  # masks that differ along a segment bend the loss


class Known(nn.Module):
    """Two logits whose cross-entropy to class 0 is ``loss(x)``, which must be positive."""

    def __init__(self, loss: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, x: Tensor) -> Tensor:
        values = self.loss(x.flatten(1))
        return torch.stack([torch.zeros_like(values), torch.log(torch.expm1(values))], 1)


@pytest.fixture
def segments(toy: Step) -> Callable[..., Step]:
    """Three images, and a uniform draw for each that an inner maximisation is asked for."""

    def make(method: ELLE | ELLEA, loss: Callable[[Tensor], Tensor]) -> Step:
        toy.module, toy.joint = Known(loss), method.joint
        toy.x = 0.3 + 0.4 * torch.rand(3, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        toy.y, toy.num_classes = torch.zeros(3, dtype=torch.int64), 2
        toy.q = nn.functional.one_hot(toy.y, 2).double()
        toy.noise = type(toy.noise)(toy.noise.noise, torch.arange(3))
        toy.inner = lambda step, spec, x, q: x + 0.1 * (2 * step.noise.child("inner").uniform((1, 2, 2), spec.draw) - 1)
        toy.views.update(method.views(toy))
        return toy

    return make


def test_nothing_on_a_linear_loss(segments: Callable):
    weight = torch.tensor([1.0, 2, 0.5, 3], dtype=torch.float64)
    step = segments(ELLE(), lambda x: x @ weight)
    assert float(ELLE().terms(step)["elle"].values.max()) < 1e-24


def test_a_quadratic_loss_in_closed_form(segments: Callable):
    """(1-a)|s|^2 + a|e|^2 - |(1-a)s + a e|^2 = a (1-a) |s - e|^2."""
    step = segments(ELLE(lam=7.0), lambda x: x.square().sum(1))
    term = ELLE(lam=7.0).terms(step)["elle"]
    start, end, between = (step.views[name].flatten(1) for name in VIEWS)
    share = step.trace["elle_share"]
    assert torch.allclose(between, start + share[:, None] * (end - start))
    expected = (share * (1 - share) * (start - end).square().sum(1)).square()
    assert torch.allclose(term.values, expected, rtol=1e-6)
    assert term.weight == 7.0
    assert step.passes.forward == 9  # one joint pass


def test_the_controller_jumps_and_decays():
    method = ELLEA(lam_max=100)
    lam, seen = 0.0, []
    for error in [1.0, 1.0, 1.0, 5.0, 1.0, 1.0]:
        lam = method.next(lam, error, seen)
        seen.append(error)
    assert lam == pytest.approx(100 * 0.99**2)
    assert method.next(3.0, 9.0, [1.0, 1.0]) == pytest.approx(2.97)  # two are no history
    assert method.next(3.0, 1.0, [1.0, 1.0, 1.0]) == pytest.approx(2.97)
    # mean 2, population deviation sqrt(2/3): 3.63 is the edge
    assert method.next(3.0, 3.64, [1.0, 2.0, 3.0]) == 100
    assert method.next(3.0, 3.62, [1.0, 2.0, 3.0]) == pytest.approx(2.97)


def test_the_memory_of_the_controller(toy: Step):
    method = ELLEA(lam_max=10, window=3)
    for error in [1.0, 1.0, 1.0, 50.0, 2.0]:
        toy.trace["elle"] = torch.tensor(error)
        method.post_step(toy)
    assert toy.memory == {"lam": pytest.approx(9.9), "seen": [1.0, 50.0, 2.0]}
    assert method.coefficient(toy) == pytest.approx(9.9)


def test_without_a_coefficient_it_is_fgsm(quick: Callable, same: Callable):
    plain = quick(compose(FGSM), arch=STILL)
    assert same(quick(compose(FGSM, ("elle", ELLE(lam=0))), arch=STILL), plain)
    assert same(quick(compose(FGSM, ("elle_a", ELLEA(lam_max=0))), arch=STILL), plain)
    assert not same(quick(compose(FGSM, ("elle", ELLE(lam=10))), arch=STILL), plain)


@pytest.mark.parametrize("base", [FGSM, ("n_fgsm", NFGSM())])
def test_they_train_and_go_on(base: tuple, quick: Callable, survives: Callable):
    for part in (("elle", ELLE(lam=10)), ("elle_a", ELLEA(lam_max=10))):
        trained = quick(compose(base, part), epochs=3, arch=STILL)
        assert trained.history[-1].terms["ce_adv"] < trained.history[0].terms["ce_adv"]
        assert (trained.forward, trained.backward) == (5 * 3 * 48, 5 * 3 * 48)
    assert survives(compose(base, ("elle_a", ELLEA(lam_max=10, sensitivity=0))), arch=STILL)


def test_bad_parameters():
    with pytest.raises(UsageError, match="lam >= 0"):
        ELLE(lam=-1)
    for bad in ({"lam_max": -1}, {"sensitivity": -1}, {"decay": 1.5}, {"window": -1}):
        with pytest.raises(UsageError, match="elle_a needs"):
            ELLEA(**bad)
