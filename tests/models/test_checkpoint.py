"""Weights files: what is read, and what each kind of bad file is told."""

import argparse
import collections
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from robustsuite.errors import InputError
from robustsuite.models.checkpoint import read_state, weights_sha256

STATE = {"0.weight": torch.arange(6.0).view(2, 3), "0.bias": torch.tensor([0.5, -0.5])}


class Foreign:
    """A class that a checkpoint may name, and that no loader should run unasked."""

    def __init__(self) -> None:
        self.lr = 0.1


def saved(path: Path, content: object, **options: object) -> Path:
    torch.save(content, path, **options)
    return path


def same(state: dict) -> bool:
    return set(state) == set(STATE) and all(torch.equal(state[k], STATE[k]) for k in STATE)


@pytest.mark.parametrize("legacy", [False, True])
def test_plain_state_dict(tmp_path: Path, legacy: bool) -> None:
    path = saved(tmp_path / "a.pt", STATE, _use_new_zipfile_serialization=not legacy)
    file = read_state(path)
    assert same(file.state)
    assert (file.format, file.container) == ("pt-legacy" if legacy else "pt", None)


@pytest.mark.parametrize(
    ("content", "container"),
    [
        ({"state_dict": STATE, "epoch": 3}, "state_dict"),
        ({"model_state_dict": STATE, "optimizer": {"lr": 0.1}}, "model_state_dict"),
        ({"model": STATE, "acc": torch.tensor(3)}, "model"),
        ({"net": STATE}, "net"),
        ({"weights": STATE}, "weights"),
        ({"params": STATE}, "params"),
        ({"student": STATE, "epoch": 1}, "student"),
        ([STATE], "[0]"),
        ({"acc": torch.tensor(3), "state_dict": [STATE]}, "state_dict[0]"),
        ({"model": {"state_dict": STATE}}, "model.state_dict"),
        ({"model": {"name": "resnet18", "width": [1, 2]}, "params": {"lr": 0.1}, "weights": STATE}, "weights"),
    ],
)
def test_containers(tmp_path: Path, content: object, container: str) -> None:
    file = read_state(saved(tmp_path / "a.pt", content))
    assert same(file.state)
    assert file.container == container


def test_the_averaged_weights_win_and_the_rest_is_kept_as_extra(tmp_path: Path) -> None:
    other = {k: v + 1 for k, v in STATE.items()}
    file = read_state(saved(tmp_path / "a.pt", {"state_dict": other, "state_dict_ema": STATE, "epoch": 7}))
    assert same(file.state)
    assert set(file.extra) == {"state_dict", "epoch"}
    assert file.extra["epoch"] == 7


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module.module."]
)
def test_wrapper_prefixes(tmp_path: Path, prefix: str) -> None:
    assert same(read_state(saved(tmp_path / "a.pt", {prefix + k: v for k, v in STATE.items()})).state)


def test_averaged_model_and_compiled_submodules(tmp_path: Path) -> None:
    content = {"n_averaged": torch.tensor(5), **{"module." + k: v for k, v in STATE.items()}}
    assert same(read_state(saved(tmp_path / "a.pt", content)).state)
    inner = {"0._orig_mod.weight": STATE["0.weight"], "0.bias": STATE["0.bias"]}
    assert same(read_state(saved(tmp_path / "b.pt", inner)).state)


def test_a_prefix_that_only_some_names_have_stays(tmp_path: Path) -> None:
    content = {"module.weight": STATE["0.weight"], "bias": STATE["0.bias"]}
    assert set(read_state(saved(tmp_path / "a.pt", content)).state) == {"module.weight", "bias"}


def test_argparse_arguments_are_allowed(tmp_path: Path) -> None:
    file = read_state(saved(tmp_path / "a.pt", {"state_dict": STATE, "args": argparse.Namespace(lr=0.1)}))
    assert same(file.state)
    assert file.extra["args"].lr == 0.1
    assert not file.unpickled


@pytest.mark.parametrize("legacy", [False, True])
def test_unsafe_globals_are_named_and_need_trust(tmp_path: Path, legacy: bool) -> None:
    content = {"state_dict": STATE, "config": Foreign()}
    path = saved(tmp_path / "a.pt", content, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(InputError, match=r"Foreign.*--trust-pickle"):
        read_state(path)
    file = read_state(path, trust_pickle=True)
    assert same(file.state)
    assert file.unpickled


def test_a_whole_module_needs_trust_and_gives_its_state(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(3, 2))
    net.load_state_dict(STATE)
    path = saved(tmp_path / "a.pt", net)
    with pytest.raises(InputError, match=r"torch\.nn\.modules.*--trust-pickle"):
        read_state(path)
    assert same(read_state(path, trust_pickle=True).state)


def test_safetensors_and_pt_have_the_same_hash(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "a.safetensors")
    reordered = collections.OrderedDict(reversed(list(STATE.items())))
    other = read_state(saved(tmp_path / "a.pt", {"model": {"module." + k: v for k, v in reordered.items()}}))
    file = read_state(tmp_path / "a.safetensors")
    assert file.format == "safetensors"
    assert weights_sha256(file.state) == weights_sha256(other.state) == weights_sha256(STATE)


@pytest.mark.parametrize(
    "change",
    [
        {"0.weight": STATE["0.weight"].view(3, 2)},
        {"0.weight": STATE["0.weight"].double()},
        {"0.weight": STATE["0.weight"] + 1e-7},
        {"1.weight": STATE["0.weight"]},
    ],
)
def test_the_hash_sees_names_shapes_types_and_values(change: dict) -> None:
    assert weights_sha256({**STATE, **change}) != weights_sha256(STATE)


def test_the_hash_takes_scalars_and_bfloat16_and_views() -> None:
    state = {"a": torch.tensor(1), "b": torch.ones(4, dtype=torch.bfloat16), "c": torch.arange(6).view(2, 3).t()}
    assert weights_sha256(state) == weights_sha256({**state, "c": state["c"].contiguous()})


def zip_bytes(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, b"x")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n <!DOCTYPE html><html>404</html>", "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"hello, this is a note", "not a checkpoint"),
        (b"\x89HDF\r\n\x1a\n" + bytes(64), "not a checkpoint"),
        (zip_bytes("readme.txt"), "zip archive without torch tensors"),
        (zip_bytes("net/constants.pkl"), "TorchScript"),
        (b"\x80\x02" + bytes(40), "damaged"),
    ],
)
def test_files_that_are_no_checkpoint(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_state(path)


def test_an_npz_is_not_a_checkpoint(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros(3))
    with pytest.raises(InputError, match=r"\.npz"):
        read_state(tmp_path / "a.npz")


@pytest.mark.parametrize("kind", ["pt", "legacy", "safetensors"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_files_that_are_cut_off(tmp_path: Path, kind: str, share: float) -> None:
    path = tmp_path / "model.bin"
    state = {"weight": torch.randn(300, 10, generator=torch.Generator().manual_seed(0))}
    if kind == "safetensors":
        save_file(state, path)
    else:
        saved(path, state, _use_new_zipfile_serialization=kind == "pt")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(InputError, match=r"cut off|damaged|not a checkpoint"):
        read_state(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3, "lr": 0.1}, "no state dict found.*epoch, lr"),
        ([STATE, STATE], "2 state dicts"),
        ({"teacher": STATE, "student": STATE}, "teacher, student"),
        (torch.zeros(3), "a Tensor, not a state dict"),
    ],
)
def test_contents_without_one_state_dict(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_state(saved(tmp_path / "a.pt", content))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such checkpoint"):
        read_state(tmp_path / "none.pt")


def test_the_six_shared_checkpoints_load(shared_data: Path) -> None:
    files = sorted((shared_data / "checkpoints").iterdir())
    counts = {path.name: sum(t.numel() for t in read_state(path).state.values()) for path in files}
    assert counts == {
        "cifar_cnn_a_adv.model": 214_918,
        "mlp_b_adv_0.05.pth": 89_610,
        "mlp_b_lpd_0.1.pth": 89_610,
        "mnist_cnn_a_adv.model": 166_406,
        "mnist_conv_small_nat.pth": 89_606,
        "mnist_madry_tiny.pt": 52_506,
    }
