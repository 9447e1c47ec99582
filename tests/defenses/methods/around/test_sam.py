"""SAM: its example, both formulas by hand, and what rho 0 leaves."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustsuite.data.dataset import Dataset
from robustsuite.defenses import Step
from robustsuite.defenses.composed import compose
from robustsuite.defenses.pgd_at import PGDAT
from robustsuite.defenses.sam import SAM
from robustsuite.defenses.standard import Standard
from robustsuite.errors import UsageError
from robustsuite.threat import ThreatModel
from robustsuite.training.loop import initial_module, train


class Parameters(nn.Module):
    """Two parameters, and a loss whose gradient is the same everywhere."""

    def __init__(self, *weights: list[float]) -> None:
        super().__init__()
        self.weights = nn.ParameterList([torch.tensor(weight) for weight in weights])

    def loss(self, *slopes: list[float]) -> Callable[[], Tensor]:
        return lambda: torch.stack(
            [(w * torch.tensor(slope)).sum() for w, slope in zip(self.weights, slopes, strict=True)]
        ).sum()


def test_the_example(toy: Step):
    toy.module = Parameters([3.0, 4.0])
    offsets = SAM(rho=0.05).perturb(toy, toy.module.loss([0.0, 2.0]))
    assert offsets is not None
    assert offsets[0].tolist() == pytest.approx([0, 0.05])


def test_one_norm_over_all_parameters(toy: Step):
    toy.module = Parameters([1.0, 1.0], [2.0])
    offsets = SAM(rho=1.0).perturb(toy, toy.module.loss([0.0, 3.0], [4.0]))
    assert offsets is not None
    assert [o.tolist() for o in offsets] == [pytest.approx([0, 0.6]), pytest.approx([0.8])]


def test_adaptive_scales_by_the_weights(toy: Step):
    """w = (2, -1), g = (3, 8): |w g| = 10, so the offset is rho w^2 g / 10."""
    toy.module = Parameters([2.0, -1.0])
    offsets = SAM(rho=1.0, adaptive=True).perturb(toy, toy.module.loss([3.0, 8.0]))
    assert offsets is not None
    assert offsets[0].tolist() == pytest.approx([1.2, 0.8])
    toy.module = Parameters([20.0, -10.0])  # the same sharpness where weights are rescaled and slopes with them
    rescaled = SAM(rho=1.0, adaptive=True).perturb(toy, toy.module.loss([0.3, 0.8]))
    assert rescaled is not None
    assert rescaled[0].tolist() == pytest.approx([12, 8])


def test_no_gradient_no_offset(toy: Step):
    toy.module = Parameters([1.0, 2.0])
    offsets = SAM().perturb(toy, toy.module.loss([0.0, 0.0]))
    assert offsets is not None
    assert offsets[0].tolist() == [0, 0]


def test_one_step_of_training_by_hand(digits: Dataset):
    plain: dict[str, Any] = {
        "lr": 0.5, "schedule": "constant", "momentum": 0.0, "weight_decay": 0.0, "batch_size": 48, "epochs": 1
    }  # fmt: skip
    threat, arch = ThreatModel.parse("Linf:0.1"), {"hidden": 4, "depth": 1}
    method = compose(("standard", Standard()), ("sam", SAM(rho=0.3)))
    trained = train(method, "mlp", arch, digits, threat, validation=0, **plain)
    module = initial_module("mlp", arch, digits, 0)
    weights = list(module.parameters())

    def gradient() -> list[Tensor]:
        return list(torch.autograd.grad(nn.functional.cross_entropy(module(digits.x), digits.y), weights))

    first = gradient()
    length = torch.cat([g.flatten() for g in first]).norm()
    with torch.no_grad():
        for weight, g in zip(weights, first, strict=True):
            weight += 0.3 * g / length
    second = gradient()
    with torch.no_grad():
        for weight, up, down in zip(weights, first, second, strict=True):
            weight -= 0.3 * up / length + 0.5 * down
    for name, tensor in module.state_dict().items():
        assert torch.allclose(trained.last_state[name], tensor, atol=1e-6)


@pytest.mark.parametrize("base", [("standard", Standard()), ("pgd_at", PGDAT(steps=2))])
def test_with_rho_zero_it_is_the_base(base: Any, quick: Callable, same: Callable):
    plain = quick(compose(base))
    assert same(quick(compose(base, ("sam", SAM(rho=0)))), plain)
    for sharp in (SAM(), SAM(rho=2, adaptive=True)):
        moved = quick(compose(base, ("sam", sharp)))
        assert not same(moved, plain)
        # one more pass, the attack once
        assert moved.forward - plain.forward == moved.backward - plain.backward == 2 * 48


def test_statistics_move_once_a_step(quick: Callable):
    trained = quick(compose(("standard", Standard()), ("sam", SAM())))
    assert trained.last_state["1.num_batches_tracked"] == 2 * 3


def test_a_killed_run_goes_on(survives: Callable):
    assert survives(compose(("pgd_at", PGDAT(steps=1)), ("sam", SAM())))


def test_bad_parameters():
    with pytest.raises(UsageError, match="rho >= 0"):
        SAM(rho=-1)
