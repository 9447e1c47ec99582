"""Training on bounds through the loop: limits bit for bit, monitors, resumption, what is named before it begins."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustsuite.data.dataset import Dataset
from robustsuite.defenses import StepMethod
from robustsuite.defenses.cc_ibp import CCIBP
from robustsuite.defenses.crown_ibp import CrownIBPTraining
from robustsuite.defenses.exp_ibp import ExpIBP
from robustsuite.defenses.fast_ibp import FastIBP
from robustsuite.defenses.ibp import IBP
from robustsuite.defenses.mtl_ibp import MTLIBP
from robustsuite.defenses.pgd_at import PGDAT
from robustsuite.defenses.sabr import SABR
from robustsuite.defenses.standard import Standard
from robustsuite.defenses.staps import STAPS
from robustsuite.defenses.taps import TAPS
from robustsuite.errors import InputError
from robustsuite.registry import ARCHITECTURES, DEFENSES
from robustsuite.testing import check_defense
from robustsuite.threat import ThreatModel
from robustsuite.training import make_composed
from robustsuite.training.history import table
from robustsuite.training.loop import train
from robustsuite.training.trained import DivergedError, Trained

LINF = ThreatModel.parse("Linf:0.05")
NOW: dict[str, Any] = {"warmup": 0.0, "ramp": 0.0}
ALONE = NOW | {"penalty": 0.0, "interval_init": False}
NAMES = ("ibp", "fast_ibp", "crown_ibp", "sabr", "mtl_ibp", "cc_ibp", "exp_ibp", "taps", "staps")

ARCHITECTURES.discover()


@ARCHITECTURES.register("tests_bn_mlp")
def bn_mlp(num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(input_shape[0], 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
        nn.Linear(4 * input_shape[1] * input_shape[2], 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, num_classes),
    )  # fmt: skip


def quick(method: StepMethod, data: Dataset, **changed: Any) -> Trained:
    settings: dict[str, Any] = {"epochs": 2, "batch_size": 16, "lr": 0.05, "validation": 0} | changed
    return train(method, "tests_bn_mlp", {}, data, LINF, **settings)


def same(a: Trained, b: Trained) -> bool:
    return all(torch.equal(a.last_state[name], b.last_state[name]) for name in a.last_state)


ONE: dict[str, Any] = NOW | {"kappa_start": 1.0, "kappa_end": 1.0}


@pytest.mark.parametrize(
    ("method", "limit"),
    [
        (IBP(**ONE), Standard()),
        (CrownIBPTraining(**ONE), Standard()),
        (SABR(**ONE, penalty=0.0, interval_init=False), Standard()),
        (TAPS(**ONE, penalty=0.0, interval_init=False), Standard()),
        (MTLIBP(**ALONE, coefficient=0.0, steps=2, alpha=0.3), PGDAT(steps=2, alpha=0.3)),
        (CCIBP(**ALONE, coefficient=0.0, steps=2, alpha=0.3), PGDAT(steps=2, alpha=0.3)),
        (ExpIBP(**ALONE, coefficient=0.0, steps=2, alpha=0.3), PGDAT(steps=2, alpha=0.3)),
        (MTLIBP(coefficient=1.0), FastIBP()),
        (CCIBP(coefficient=1.0), FastIBP()),
        (ExpIBP(coefficient=1.0), FastIBP()),
        (SABR(shrink=1.0), FastIBP()),
        (MTLIBP(**ALONE, coefficient=1.0), IBP(**NOW, kappa_start=0.0, kappa_end=0.0)),
        (SABR(**ALONE, shrink=1.0), IBP(**NOW, kappa_start=0.0, kappa_end=0.0)),
        (CrownIBPTraining(beta_start=0.0, kappa_end=0.5), IBP()),
        (STAPS(shrink=1.0, steps=2), TAPS(steps=2)),
    ],
    ids=lambda method: type(method).__name__,
)
def test_limits_are_the_plain_methods_bit_for_bit(method: StepMethod, limit: StepMethod, blobs: Dataset):
    assert same(quick(method, blobs), quick(limit, blobs))


@pytest.mark.parametrize("name", NAMES)
def test_the_contract_holds(name: str):
    entry = DEFENSES.get(name)
    assert entry.facts["paper"]
    assert entry.facts["cost"]
    assert [str(f) for f in check_defense(entry) if not f.ok] == []


@pytest.mark.parametrize("name", NAMES)
def test_published_parameters_can_be_taken(name: str):
    for data in DEFENSES.get(name).facts["defaults"]:
        make_composed(name, defaults=data)
    assert {"cifar10", "cifar10-2/255", "cifar10-8/255"} <= set(DEFENSES.get(name).facts["defaults"])


@pytest.mark.parametrize("name", NAMES)
def test_it_trains_a_network_with_batch_normalisation(name: str, blobs: Dataset):
    trained = quick(make_composed(name, params={"warmup": 0.1}), blobs, epochs=8, optimizer="adam", lr=0.01)
    assert all(value == value for epoch in trained.history for value in epoch.terms.values())
    assert trained.backward > 0
    with torch.no_grad():
        right = (trained.module(blobs.x).argmax(1) == blobs.y).double().mean()
    assert float(right) > 0.5


class Killed(Exception):
    pass


@pytest.mark.parametrize("name", ["crown_ibp", "mtl_ibp", "taps"])
def test_a_killed_run_ends_bit_identically(name: str, blobs: Dataset, tmp_path: Path):
    def kill(done: int, total: int, info: dict[str, Any]) -> None:
        if done == 5:
            raise Killed

    method = make_composed(name, params={"ramp": 0.8})
    whole = quick(method, blobs)
    with pytest.raises(Killed):
        quick(method, blobs, keep_at=tmp_path / "m", keep_every=0.0, progress=kill)
    again = quick(method, blobs, keep_at=tmp_path / "m", keep_every=0.0)
    assert same(whole, again)
    assert whole.history == again.history
    assert whole.passes == again.passes


def test_the_tightness_is_a_column_of_those_who_ask_for_it(blobs: Dataset):
    rows = table(quick(IBP(ramp=0.5), blobs))
    assert rows["ibp_tightness"].between(0, 1, inclusive="right").all()
    assert "ibp_tightness" not in table(quick(Standard(), blobs))


def test_passes_of_bounds_are_counted(blobs: Dataset):
    # 60 examples, 2 epochs: a clean pass, and two a bound; one row backwards with fusion, 3 without.
    assert quick(IBP(**NOW), blobs).forward == 120 * 3
    assert quick(IBP(**NOW, kappa_end=0.0, kappa_start=0.0), blobs).forward == 120 * 3  # batch norm wants a clean pass
    assert quick(CrownIBPTraining(**NOW, beta_end=1.0), blobs).forward == 120 * 4
    assert quick(CrownIBPTraining(**NOW, beta_end=1.0, fusion=False), blobs).forward == 120 * 6
    assert quick(MTLIBP(**NOW, steps=1), blobs).forward == 120 * 4


class Sorted(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sort(1).values


@ARCHITECTURES.register("tests_sorted")
def sorted_network(num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), Sorted(), nn.Linear(input_shape[0] * input_shape[1] * input_shape[2], num_classes)
    )


@pytest.mark.parametrize("name", NAMES)
def test_an_operator_without_bounds_is_named_before_the_first_step(name: str, blobs: Dataset):
    seen: list[int] = []
    with pytest.raises(InputError, match="no bounds for sort"):
        train(
            make_composed(name), "tests_sorted", {}, blobs, LINF, epochs=1, progress=lambda *told: seen.append(told[0])
        )
    assert seen == []


@ARCHITECTURES.register("tests_cancelling")
def cancelling(num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    """Eight units of 1e38 that cancel for every image, but not for intervals."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Linear(8, 1), nn.Linear(1, num_classes))
    with torch.no_grad():
        net[1].weight.zero_()[:, 0] = 1e19
        net[1].bias.zero_()
        net[2].weight.copy_(1e19 * torch.tensor([[1.0, -1.0] * 4]))
    return net


def test_bounds_that_overflow_end_the_training_with_the_best_so_far(blobs: Dataset):
    method = IBP(warmup=0.5, ramp=0.5, eps=20.0, kappa_start=0.0, kappa_end=0.0)
    with pytest.raises(
        DivergedError, match=r"overflow float32 in Linear at '2'.*Let eps grow later.*epoch 1"
    ) as caught:
        train(method, "tests_cancelling", {}, blobs, LINF, epochs=2, batch_size=16, lr=0.0, validation=0)
    assert caught.value.trained is not None
