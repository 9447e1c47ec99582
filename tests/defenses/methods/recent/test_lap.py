"""LAP: factors of the layers, offsets by hand, the base's own example, and what is released."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustsuite.data.dataset import Dataset
from robustsuite.defenses import Step, ce
from robustsuite.defenses.composed import compose
from robustsuite.defenses.fgsm_at import FGSMAT
from robustsuite.defenses.fgsm_rs import FGSMRS
from robustsuite.defenses.lap import LAP, layer_factors
from robustsuite.defenses.n_fgsm import NFGSM
from robustsuite.defenses.pgd_at import PGDAT
from robustsuite.errors import UsageError
from robustsuite.noise import Noise
from robustsuite.threat import ThreatModel
from robustsuite.training.inner import maximise
from robustsuite.training.loop import initial_module, train
from robustsuite.training.method import make_composed

RS = ("fgsm_rs", FGSMRS())
STILL = "tests_methods_no_dropout"


def step_on(data: Dataset, module: nn.Module) -> Step:
    q = nn.functional.one_hot(data.y, data.num_classes).float()
    noise = Noise(0, "train/step0").at(data.ids)
    threat = ThreatModel.parse("Linf:0.1")
    return Step(module, data.x, data.y, q, threat, 0.0, data.num_classes, noise, maximise)


def test_factors_of_the_sheet():
    factors = layer_factors(21, 0.3)
    assert [factors[k - 1] for k in (1, 2, 3, 5, 10, 20, 21)] == pytest.approx(
        [1, 0.3585, 0.2635, 0.1741, 0.0804, 0.0048, 0], abs=1e-4
    )
    assert layer_factors(1, 0.3) == [1]


@pytest.mark.parametrize("base", [FGSMRS(), FGSMAT(), NFGSM()])
def test_the_bases_example_and_the_gradient_at_its_start(base: FGSMAT, digits: Dataset):
    module = initial_module("mlp", {"hidden": 8, "depth": 2}, digits, 0)
    plain, step = step_on(digits, module), step_on(digits, module)
    method = LAP(beta=0.5)
    method.data(step)
    found = base.views(step)["adv"]
    assert torch.allclose(found, base.views(plain)["adv"], atol=1e-6)
    assert (step.passes.forward, step.passes.backward) == (plain.passes.forward, plain.passes.backward)
    start = plain.maximise(replace(base.spec(), steps=0))
    weights = list(module.parameters())
    grads = torch.autograd.grad(ce(module(start), step.q).mean(), weights)
    offsets = method.perturb(step, lambda: torch.zeros(()))
    assert offsets is not None
    tensors = [i for i, w in enumerate(weights) if w.ndim > 1]
    factors = dict(zip(tensors, layer_factors(len(tensors), 0.3), strict=True))
    for i, (w, g, offset) in enumerate(zip(weights, grads, offsets, strict=True)):
        expected = 0.5 * factors.get(i, 0) * w.norm() * g / g.norm()
        assert torch.allclose(offset, expected, atol=1e-6)


@pytest.mark.parametrize("restored", [True, False])
def test_one_step_of_training_by_hand(restored: bool, digits: Dataset):
    plain: dict[str, Any] = {
        "lr": 0.5, "schedule": "constant", "momentum": 0.0, "weight_decay": 0.0, "batch_size": 48, "epochs": 1
    }  # fmt: skip
    arch, sign = {"hidden": 8, "depth": 2}, 1.0 if restored else -1.0
    direction = "ascent" if restored else "descent"
    method = compose(("fgsm_at", FGSMAT()), ("lap", LAP(beta=0.2, direction=direction, restored=restored)))
    trained = train(method, "mlp", arch, digits, ThreatModel.parse("Linf:0.1"), validation=0, **plain)
    module = initial_module("mlp", arch, digits, 0)
    weights = list(module.parameters())

    def gradients(x: Tensor, *more: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(nn.functional.cross_entropy(module(x), digits.y), [*weights, *more]))

    x = digits.x.clone().requires_grad_(True)
    *first, up = gradients(x, x)
    x = (x + 0.1 * up.sign()).clamp(0, 1).detach()
    factors = iter(layer_factors(sum(w.ndim > 1 for w in weights), 0.3))
    offsets = [sign * 0.2 * next(factors) * w.norm() * g / g.norm() if w.ndim > 1 else torch.zeros_like(w)
               for w, g in zip(weights, first, strict=True)]  # fmt: skip
    with torch.no_grad():
        for weight, offset in zip(weights, offsets, strict=True):
            weight += offset
    second = gradients(x)
    with torch.no_grad():
        for weight, offset, down in zip(weights, offsets, second, strict=True):
            weight -= 0.5 * down + (offset if restored else 0)
    for name, tensor in module.state_dict().items():
        assert torch.allclose(trained.last_state[name], tensor, atol=1e-5)


def test_without_beta_it_is_the_base(quick: Callable, same: Callable):
    plain = quick(compose(RS))
    assert same(quick(compose(RS, ("lap", LAP(beta=0)))), plain)
    moved = quick(compose(RS, ("lap", LAP(beta=0.05))))
    assert not same(moved, plain)
    assert (moved.forward, moved.backward) == (plain.forward, plain.backward)


def test_the_preset():
    part = dict(make_composed("fgsm_rs", ["lap"], {}, "as_released").parts)["lap"]
    assert part == LAP(0.002, direction="descent", restored=False)


def test_it_trains_and_goes_on(quick: Callable, survives: Callable):
    method = compose(("n_fgsm", NFGSM()), ("lap", LAP(beta=0.01)))
    trained = quick(method, epochs=4, arch=STILL)
    assert trained.history[-1].terms["ce_adv"] < trained.history[0].terms["ce_adv"]
    assert survives(method)


def test_bad_parameters(quick: Callable):
    for bad in ({"beta": -1}, {"power": 0}, {"direction": "up"}):
        with pytest.raises(UsageError, match="lap needs"):
            LAP(**bad)
    with pytest.raises(UsageError, match="one-step attack"):
        quick(compose(("pgd_at", PGDAT(steps=2)), ("lap", LAP())))
