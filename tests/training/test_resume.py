"""A training killed at any step ends as if it had not been."""

from pathlib import Path

import pytest
import torch

from robustsuite.data.dataset import Dataset
from robustsuite.defenses.composed import Composed
from robustsuite.errors import InputError
from robustsuite.threat import ThreatModel
from robustsuite.training import make_composed
from robustsuite.training.loop import train
from robustsuite.training.store import Store
from robustsuite.training.trained import Trained

LINF = ThreatModel.parse("Linf:0.1")


class Killed(Exception):
    pass


def run(method: Composed, data: Dataset, keep_at: Path | None, kill: int | None = None, **changed) -> Trained:
    def progress(done: int, total: int, info: dict) -> None:
        if done == kill:
            raise Killed

    settings = {"epochs": 2, "batch_size": 16, "lr": 0.1, "validation": 12} | changed
    return train(
        method, "tests_bn_dropout", {}, data, LINF, keep_at=keep_at, keep_every=0, progress=progress, **settings
    )


@pytest.fixture(scope="module")
def method() -> Composed:
    return make_composed("trades", ["awp", "ema", "label_smoothing"], {"steps": 2})


@pytest.mark.parametrize("kill", [1, 2, 3, 4, 6])
def test_a_killed_run_ends_bit_identically(method: Composed, blobs: Dataset, tmp_path: Path, kill: int):
    whole = run(method, blobs, None)
    with pytest.raises(Killed):
        run(method, blobs, tmp_path / "m.safetensors", kill)
    resumed = run(method, blobs, tmp_path / "m.safetensors")
    for name in ("best_state", "last_state"):
        one, other = getattr(whole, name), getattr(resumed, name)
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert resumed.history == whole.history
    assert (resumed.best, resumed.forward, resumed.backward) == (whole.best, whole.forward, whole.backward)


def test_the_state_of_another_training_is_not_taken_up(method: Composed, blobs: Dataset, tmp_path: Path):
    path = tmp_path / "m"
    with pytest.raises(Killed):
        run(method, blobs, path, 2)
    with pytest.raises(InputError, match=r"another training \(settings.*choose another -o"):
        run(method, blobs, path, lr=0.2)
    state = tmp_path / "m.training.pt"
    state.write_bytes(b"junk")
    with pytest.raises(InputError, match="is not a training state"):
        run(method, blobs, path)
    Store(path, {}).clear()
    assert not state.exists()


def test_states_are_written_when_they_are_due(tmp_path: Path):
    assert Store(tmp_path / "m", {}, every=0).due()
    assert not Store(tmp_path / "m", {}, every=1000).due()
