"""The checkpoint and its YAML: written whole, read strictly, checked against each other."""

from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from robustsuite.errors import InputError, PrerequisiteError
from robustsuite.models.checkpoint import read_state, weights_sha256
from robustsuite.models.sidecar import (
    Normalization,
    Sidecar,
    beside,
    check_weights,
    find_sidecar,
    placed,
    save_checkpoint,
)

NET = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
SIDECAR = Sidecar(
    arch="mlp",
    arch_params={"hidden": 5},
    num_classes=10,
    input_shape=(1, 8, 8),
    normalization=Normalization(mean=(0.5,), std=(0.25,)),
    wrap={"name": "smoothing", "sigma": 0.25, "n": 1000},
    defense={"name": "trades", "beta": 6.0},
)


def test_round_trip(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "new" / "model_0.5", NET.state_dict(), SIDECAR)
    assert path == tmp_path / "new" / "model_0.5.safetensors"
    assert sorted(p.name for p in path.parent.iterdir()) == ["model_0.5.safetensors", "model_0.5.yaml"]
    again = find_sidecar(path)
    assert again is not None
    assert again == SIDECAR.model_copy(update={"weights_sha256": weights_sha256(NET.state_dict())})
    check_weights(again, read_state(path).state, path)


def test_shared_tensors_can_be_saved(tmp_path: Path) -> None:
    shared = torch.arange(3.0)
    path = save_checkpoint(tmp_path / "a.safetensors", {"a": shared, "b": shared}, SIDECAR)
    assert torch.equal(read_state(path).state["b"], shared)


def test_there_may_be_none(tmp_path: Path) -> None:
    assert find_sidecar(tmp_path / "a.pt") is None


def test_other_weights_than_the_sidecars(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "a", NET.state_dict(), SIDECAR)
    sidecar = find_sidecar(path)
    assert sidecar is not None
    with pytest.raises(InputError, match="was replaced"):
        check_weights(sidecar, {"other": torch.zeros(1)}, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normalisation": {"mean": [0.5]}}, "unknown key 'normalisation'"),
        ({"normalization": {"mean": [0.5], "sdt": [0.5]}}, "unknown key 'normalization.sdt'"),
        ({"num_classes": None}, "'num_classes'"),
        ({"num_classes": 1}, "'num_classes'"),
        ({"version": 2}, "'version'"),
    ],
)
def test_a_typo_is_named(tmp_path: Path, change: dict, message: str) -> None:
    path = save_checkpoint(tmp_path / "a", NET.state_dict(), SIDECAR)
    file = path.with_suffix(".yaml")
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **change}))
    with pytest.raises(InputError, match=message):
        find_sidecar(path)


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("num_classes: 10\ninput_shape: [1, 8, 8]\n")
    with pytest.raises(InputError, match="the key 'arch' is missing"):
        find_sidecar(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("text", "message"), [("a: [1", "not readable YAML"), ("- 1\n- 2\n", "not a sidecar"), ("", "not a sidecar")]
)
def test_files_that_are_no_sidecar(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        find_sidecar(tmp_path / "a.pt")


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_checkpoint(tmp_path / "a", NET.state_dict(), SIDECAR)
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(PrerequisiteError, match="No space left"):
        save_checkpoint(path, {"x": torch.zeros(1)}, SIDECAR)
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.safetensors", "a.yaml"]


def test_paths_that_are_relative_to_the_sidecar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrap = {"name": "w", "near": "./a.pt", "up": ["../b/c.pt", "py:f.py:g"], "typed": "b/c.pt", "steps": 3, "dots": "."}
    assert placed(wrap, Path("out")) == {
        "name": "w", "near": "out/a.pt", "up": ["b/c.pt", "py:f.py:g"], "typed": "b/c.pt", "steps": 3, "dots": ".",
    }  # fmt: skip
    assert placed(None, Path("out")) is None
    monkeypatch.chdir(tmp_path)
    for place in ("out", "b"):
        (tmp_path / place).mkdir()
    (tmp_path / "b" / "c.pt").touch()
    told = {name: beside("b/c.pt", Path(name)) for name in ("out", "b", ".")}
    assert told == {"out": "../b/c.pt", "b": "./c.pt", ".": "./b/c.pt"}
    assert all(placed(path, Path(name)) == "b/c.pt" for name, path in told.items())
    assert beside(str(tmp_path / "b"), Path("out")) == "../b"
    assert [beside(text, Path("out")) for text in ("", "py:f.py:g", "gone.pt")] == ["", "py:f.py:g", "gone.pt"]
