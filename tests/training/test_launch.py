"""Several processes give what one gives; half precision; what cannot be launched."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from robustsuite.data.dataset import Dataset
from robustsuite.defenses import StepMethod
from robustsuite.defenses.pgd_at import PGDAT
from robustsuite.errors import UsageError
from robustsuite.threat import ThreatModel
from robustsuite.training.launch import Launch
from robustsuite.training.loop import train

LINF = ThreatModel.parse("Linf:0.1")
TRADES = ("train", "trades", "--with", "awp,ema", "-D", "steps=2", "--data", "digits", "--subset", "first:150",
          "--epochs", "2", "--batch-size", "32", "--device", "cpu", "-S", "validation=20", "--keep-last")  # fmt: skip


def launch(folder: Path, *extra: str) -> dict:
    folder.mkdir()
    command = [sys.executable, "-m", "robustsuite", *TRADES, "-o", "m", *extra]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Checkpoint: m.safetensors") == 1  # one process speaks
    return load_file(folder / "m.last.safetensors")


def test_two_processes_give_what_one_gives(tmp_path: Path):
    one, two = launch(tmp_path / "one"), launch(tmp_path / "two", "--devices", "2")
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-5
    defenses = [yaml.safe_load((tmp_path / name / "m.last.yaml").read_text())["defense"] for name in ("one", "two")]
    assert defenses[1]["settings"].pop("devices") == 2
    assert defenses[0]["settings"] == defenses[1]["settings"]
    assert defenses[0]["held_out"] == defenses[1]["held_out"]
    assert defenses[0]["passes"] == defenses[1]["passes"]  # of both processes together


def test_a_share_of_every_batch():
    rows = torch.arange(7)
    launched = Launch()
    launched.world, launched.rank = 2, 1
    assert launched.share(rows).tolist() == [1, 3, 5]
    assert not launched.first


def test_bf16_trains_in_float32_weights(blobs: Dataset):
    trained = train(PGDAT(steps=2), "tests_linear", {}, blobs, LINF, epochs=3, batch_size=16, validation=0, lr=0.2,
                    precision="bf16")  # fmt: skip
    plain = train(PGDAT(steps=2), "tests_linear", {}, blobs, LINF, epochs=3, batch_size=16, validation=0, lr=0.2)
    assert trained.last_state["1.weight"].dtype == torch.float32
    assert torch.allclose(trained.last_state["1.weight"], plain.last_state["1.weight"], atol=0.02)
    assert not torch.equal(trained.last_state["1.weight"], plain.last_state["1.weight"])


def test_compiled_and_channels_last_give_the_same_within_rounding(blobs: Dataset, monkeypatch: pytest.MonkeyPatch):
    compiled: list[bool] = []

    def eager(module: torch.nn.Module) -> torch.nn.Module:
        compiled.append(True)
        return torch._dynamo.optimize("eager")(module)

    monkeypatch.setattr(torch, "compile", eager)
    settings = {"epochs": 2, "batch_size": 16, "validation": 0, "lr": 0.2}
    plain = train(PGDAT(steps=2), "small_cnn", {}, blobs, LINF, **settings)
    other = train(PGDAT(steps=2), "small_cnn", {}, blobs, LINF, **settings, compile=True, channels_last=True)
    assert compiled
    assert plain.last_state.keys() == other.last_state.keys()
    for name, tensor in plain.last_state.items():
        assert torch.allclose(tensor, other.last_state[name], atol=1e-4)


@dataclasses.dataclass(frozen=True)
class Coupled(PGDAT):
    batch_coupled = True


@dataclasses.dataclass(frozen=True)
class Second(PGDAT):
    second_order = True


@pytest.mark.parametrize(
    ("method", "settings", "reason"),
    [
        (Coupled(), {"devices": 2}, "couples the examples"),
        (Second(), {"precision": "bf16"}, "bf16 does not survive"),
        (Second(), {"compile": True}, "leave --compile out"),
        (PGDAT(), {"precision": "fp8"}, "choose fp32 or bf16"),
        (PGDAT(), {"devices": 2, "batch_size": 3}, "batches of at least 4"),
        (PGDAT(), {"devices": 0}, "at least 1"),
    ],
)
def test_what_cannot_be_launched(blobs: Dataset, method: StepMethod, settings: dict, reason: str):
    with pytest.raises(UsageError, match=reason):
        train(method, "tests_linear", {}, blobs, LINF, epochs=1, **settings)
