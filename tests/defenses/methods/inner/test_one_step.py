"""FGSM, FGSM from a random start, N-FGSM: closed forms on a linear model, and where their examples may lie."""

from collections.abc import Callable

import pytest
import torch
from torch.nn.functional import softplus

from robustsuite.defenses import InnerSpec, ce
from robustsuite.defenses.fgsm_at import FGSMAT
from robustsuite.defenses.fgsm_rs import FGSMRS
from robustsuite.defenses.n_fgsm import NFGSM
from robustsuite.defenses.pgd_at import PGDAT
from robustsuite.errors import UsageError
from robustsuite.threat import ThreatModel

METHODS = [FGSMAT(), FGSMRS(), NFGSM()]


@pytest.mark.parametrize("method", [FGSMAT(), FGSMAT(alpha=3), FGSMRS(alpha=2)])
def test_one_step_drives_a_linear_model_to_its_worst_loss(method, make_step: Callable, linear):
    module, x, y, margins = linear
    step = make_step(module, x, y)
    step.views.update(method.views(step))
    weight = module[1].weight[1].detach()
    worst = softplus(-margins(x) + 0.1 * weight.abs().sum())
    assert torch.allclose(method.terms(step)["ce_adv"].values, worst, atol=1e-6)
    assert step.passes.forward == 2 * len(x)


def test_n_fgsm_adds_its_step_to_its_noise(make_step: Callable, linear):
    """On a linear model the loss is known: that of the noisy image, and eps |w|_1 on top."""
    module, x, y, margins = linear
    step = make_step(module, x, y)
    noisy = step.maximise(InnerSpec(steps=0, init_eps=2, project=False))
    adversarial = NFGSM().views(step)["adv"]
    weight = module[1].weight[1].detach()
    worst = softplus(-margins(noisy) + 0.1 * weight.abs().sum())
    assert torch.allclose(ce(module(adversarial), step.q), worst, atol=1e-6)


@pytest.mark.parametrize(("k", "alpha"), [(2.0, 1.0), (1.0, 0.5), (0.0, 1.0)])
def test_n_fgsm_leaves_the_ball_by_so_much(k: float, alpha: float, make_step: Callable, linear):
    module, x, y, _ = linear
    delta = NFGSM(k=k, alpha=alpha).views(make_step(module, x, y))["adv"] - x
    largest = float(delta.abs().max())
    assert (largest > 0.1 + 1e-6) == (k + alpha > 1)
    assert largest <= (k + alpha) * 0.1 + 1e-6
    if k:
        assert largest > 0.9 * (k + alpha) * 0.1
    bright = NFGSM(k=k).views(make_step(module, torch.ones_like(x), y))["adv"]
    assert float(bright.max()) <= 1


@pytest.mark.parametrize("threat", ["Linf:0.2", "L2:0.7"])
def test_examples_of_the_others_stay_in_ball_and_box(threat: str, make_step: Callable, linear):
    module, _, y, _ = linear
    x = torch.rand(16, 1, 3, 3, generator=torch.Generator().manual_seed(1)).round(decimals=1)
    for method in (FGSMAT(alpha=2), FGSMRS()):
        step = make_step(module, x, y, threat)
        assert bool(ThreatModel.parse(threat).contains(x, method.views(step)["adv"]).all())


def test_reductions(quick: Callable, same: Callable):
    plain = quick(FGSMAT())
    assert same(plain, quick(NFGSM(k=0)))
    assert not same(plain, quick(NFGSM()))
    assert same(quick(FGSMRS(alpha=0.5)), quick(PGDAT(steps=1, alpha=0.5)))
    assert same(quick(FGSMRS(alpha=0)), quick(PGDAT(steps=0)))  # uniform noise
    assert not same(quick(FGSMAT(bn_mode="train")), plain)


@pytest.mark.parametrize("method", METHODS)
def test_golden_loss(method, toy, doubled, loss: Callable):
    assert loss(method, toy) == pytest.approx(1.053201, abs=1e-5)
    assert loss(method, doubled) == pytest.approx(1.053201, abs=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_they_train_at_two_passes_a_step(method, quick: Callable):
    trained = quick(method, epochs=4)
    assert trained.history[-1].terms["ce_adv"] < trained.history[0].terms["ce_adv"]
    assert (trained.forward, trained.backward) == (2 * 4 * 48, 2 * 4 * 48)


@pytest.mark.parametrize(
    ("method", "bad", "said"),
    [(FGSMAT, {"alpha": -1}, "negative"), (FGSMRS, {"bn_mode": "training"}, "bn_mode"), (NFGSM, {"k": -1}, "negative")],
)
def test_bad_parameters(method: Callable, bad: dict, said: str):
    with pytest.raises(UsageError, match=said):
        method(**bad)
