"""GloRo: constants against closed forms and the certifier's, the loss by hand, training that certifies."""

import math
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from robustsuite.bounds.graph import trace
from robustsuite.bounds.lipschitz import lipschitz_radii
from robustsuite.bounds.power import Power
from robustsuite.data.dataset import Dataset
from robustsuite.defenses.gloro import GloRo, rivals
from robustsuite.errors import InputError, UsageError
from robustsuite.models.normalize import Normalize
from robustsuite.noise import Noise
from robustsuite.registry import ARCHITECTURES, DEFENSES
from robustsuite.testing import check_defense
from robustsuite.threat import ThreatModel
from robustsuite.training.loop import train

_MADE = runpy.run_path(str(Path(__file__).with_name("two_layers.py")))
TwoLayers, example = _MADE["TwoLayers"], _MADE["example"]
NOW: dict[str, Any] = {"warmup": 0.0, "ramp": 0.0}

ARCHITECTURES.discover()


def converged(net: nn.Module, shape: tuple[int, ...]) -> tuple[Power, dict[str, torch.Tensor]]:
    power = Power(trace(net, shape), torch.zeros(1, *shape))
    return power, power.iterate(power.start(Noise(0, "test")), 200)


def test_the_constant_of_two_layers_by_hand():
    # W is sqrt(2) times a rotation; rows of the identity are sqrt(2) apart.
    power, vectors = converged(TwoLayers(), (1, 1, 2))
    assert power.constant(vectors).item() == pytest.approx(math.sqrt(2), rel=1e-6)
    assert power.gaps(vectors, 2)[0, 1].item() == pytest.approx(2.0, rel=1e-6)
    assert power.gaps({}, 2, known=1.0)[0, 1].item() == pytest.approx(math.sqrt(2), rel=1e-6)


def test_the_loss_by_hand():
    # Logits 3/4 and 1/4, eps 1/4: the rival of class 0 comes to 1/4 + 2/4.
    step = example()
    step.memory["vectors"] = converged(step.module, (1, 1, 2))[1]
    (term,) = GloRo(**NOW).terms(step).values()
    total = 2 * math.exp(0.75) + math.exp(0.25)
    assert term.values.item() == pytest.approx(math.log(total) - 0.75, rel=1e-5)
    found = GloRo(**NOW, loss="trades", beta=2.0).terms(step)
    assert found["ce"].values.item() == pytest.approx(math.log1p(math.exp(-0.5)), rel=1e-5)
    rest = (math.exp(0.75) + math.exp(0.25)) / total
    assert found["kl"].values.item() == pytest.approx(-math.log(rest), rel=1e-5)
    assert found["kl"].weight == 2


def test_the_rival_is_of_the_predicted_class():
    logits = torch.tensor([[3.0, 1.0, 2.0]])
    gaps = torch.tensor([[0.0, 9.0, 1.0], [9.0, 0.0, 5.0], [1.0, 5.0, 0.0]])
    assert rivals(logits, gaps, 0.5).tolist() == [5.5]


@pytest.mark.parametrize("batch_norm", [False, True])
def test_constants_are_the_certifiers(batch_norm: bool):
    torch.manual_seed(0)
    norm: list[nn.Module] = [nn.BatchNorm2d(4)] if batch_norm else []
    net = nn.Sequential(
        Normalize([0.5], [0.25]), nn.Conv2d(1, 4, 3, stride=2, padding=1), *norm, nn.ReLU(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(16, 6), nn.LeakyReLU(0.1), nn.Linear(6, 3),
    )  # fmt: skip
    net.train()(torch.rand(20, 1, 8, 8))
    net.eval()
    x = torch.rand(5, 1, 8, 8)
    logits = net(x).detach()
    y = logits.argmax(1)
    power, vectors = converged(net, (1, 8, 8))
    gaps = power.gaps(vectors, 3).detach()[y]
    ratios = (logits.gather(1, y.view(-1, 1)) - logits) / gaps
    ratios = ratios.scatter(1, y.view(-1, 1), math.inf).amin(1).double()
    certified = lipschitz_radii(power.graph, x, y)
    assert bool((certified <= ratios * (1 + 1e-6)).all())
    torch.testing.assert_close(certified, ratios, rtol=0.03, atol=1e-4)


def test_the_contract_holds():
    assert [str(f) for f in check_defense(DEFENSES.get("gloro")) if not f.ok] == []


def run(data: Dataset, method: GloRo | None = None, arch: str = "mlp", **more: Any) -> Any:
    method = method or GloRo(warmup=0.0, ramp=0.5)
    params = {"hidden": 16, "depth": 1} if arch == "mlp" else {}
    return train(
        method, arch, params, data, ThreatModel.parse("L2:0.2"), epochs=6, batch_size=16, lr=0.2, validation=0,
        weight_decay=0.0, **more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def bands() -> Dataset:
    y = torch.arange(60) % 3
    x = 0.3 + 0.2 * Noise(0, "bands").at(torch.arange(60)).uniform((1, 4, 4))
    for k in range(3):
        x[y == k, :, k] += 0.4
    return Dataset("bands", x, y, torch.arange(60) * 7 + 3, 3)


@pytest.mark.parametrize("arch", ["mlp", "aol_mlp"])
def test_it_certifies_more_than_standard_training(arch: str, bands: Dataset):
    found = []
    for eps in (0.0, 1.0):
        trained = run(bands, GloRo(warmup=0.0, ramp=0.5, eps=eps, constant=float(arch == "aol_mlp")), arch)
        radii = lipschitz_radii(trace(trained.module, (1, 4, 4)), bands.x, bands.y)
        found.append(float((radii >= 0.2).double().mean()))
    assert found[1] >= found[0]
    assert found[1] > 0.5


def test_a_killed_run_ends_bit_identically(bands: Dataset, tmp_path: Path):
    def kill(done: int, total: int, info: dict[str, Any]) -> None:
        if done == 9:
            raise KeyboardInterrupt

    whole = run(bands)
    with pytest.raises(KeyboardInterrupt):
        run(bands, keep_at=tmp_path / "m", keep_every=0.0, progress=kill)
    again = run(bands, keep_at=tmp_path / "m", keep_every=0.0)
    assert all(torch.equal(whole.last_state[k], again.last_state[k]) for k in whole.last_state)


def test_what_cannot_be_is_refused(bands: Dataset):
    with pytest.raises(UsageError, match="made for L2"):
        train(GloRo(), "mlp", {}, bands, ThreatModel.parse("Linf:0.1"), epochs=1)
    with pytest.raises(UsageError, match="choose ce or trades"):
        GloRo(loss="hinge")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no intervals"):
        GloRo(penalty=0.5)

    @ARCHITECTURES.register("tests_gelu")
    def gelu(num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.GELU(), nn.Linear(4, num_classes))

    with pytest.raises(InputError, match="no Lipschitz constant for GELU"):
        run(bands, arch="tests_gelu")
