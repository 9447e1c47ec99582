"""NumPy files: layouts, names, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch

from robustsuite.data.dataset import Dataset
from robustsuite.data.reference import load_data
from robustsuite.errors import InputError

Y = np.arange(6) % 3
GREY = (np.arange(6 * 4 * 5).reshape(6, 4, 5) % 256).astype(np.uint8)
RGB = (np.arange(6 * 3 * 4 * 5).reshape(6, 3, 4, 5) % 256).astype(np.uint8)


def npz(path: Path, **arrays: np.ndarray) -> str:
    np.savez(path, **arrays)
    return str(path)


def test_bytes_are_scaled_and_grey_gets_a_channel(tmp_path: Path) -> None:
    data = load_data(npz(tmp_path / "toy.npz", x=GREY, y=Y))
    assert torch.equal(data.x, torch.from_numpy(GREY).unsqueeze(1).float() / 255)
    assert data.y.tolist() == Y.tolist()
    assert (data.name, data.num_classes, data.ids.tolist()) == ("toy", 3, list(range(6)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_floats_are_taken_as_they_are(tmp_path: Path, dtype: type) -> None:
    x = (RGB / 256).astype(dtype)
    data = load_data(npz(tmp_path / "a.npz", x=x, y=Y))
    assert torch.equal(data.x, torch.from_numpy(x.astype(np.float32)))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((6, 3, 4, 5), (3, 4, 5)),
        ((6, 4, 5, 3), (3, 4, 5)),
        ((6, 4, 5, 1), (1, 4, 5)),
        ((6, 4, 5), (1, 4, 5)),
        ((6, 12, 5, 5), (12, 5, 5)),
        ((6, 5, 5, 12), (12, 5, 5)),
    ],
)
def test_layouts(tmp_path: Path, shape: tuple, expected: tuple) -> None:
    assert load_data(npz(tmp_path / "a.npz", x=np.zeros(shape, np.uint8), y=Y)).input_shape == expected


def test_channels_last_is_transposed_not_reshaped(tmp_path: Path) -> None:
    first = load_data(npz(tmp_path / "a.npz", x=RGB, y=Y))
    last = load_data(npz(tmp_path / "b.npz", x=RGB.transpose(0, 2, 3, 1), y=Y))
    assert torch.equal(first.x, last.x)
    assert last.x.is_contiguous()


@pytest.mark.parametrize("shape", [(6, 3, 4, 3), (6, 1, 4, 1), (6, 1, 4, 3), (6, 4, 5, 7), (6, 5, 5, 5)])
def test_ambiguous_layouts_are_no_guess(tmp_path: Path, shape: tuple) -> None:
    with pytest.raises(InputError, match=r"could be \[N,C,H,W\] or \[N,H,W,C\]"):
        load_data(npz(tmp_path / "a.npz", x=np.zeros(shape, np.uint8), y=Y))


@pytest.mark.parametrize(
    ("names", "split"),
    [
        (("x", "y"), None),
        (("X", "Y"), "test"),
        (("images", "labels"), None),
        (("data", "targets"), None),
        (("x_test", "y_test"), None),
        (("test_images", "test_labels"), "test"),
        (("x_train", "y_train"), "train"),
        (("arr_0", "arr_1"), None),
    ],
)
def test_names_in_the_file(tmp_path: Path, names: tuple[str, str], split: str | None) -> None:
    path = npz(tmp_path / "a.npz", **{names[0]: GREY, names[1]: Y, "other": np.zeros(3)})
    assert len(load_data(path, split=split)) == 6


def test_a_file_with_splits(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", x_train=GREY, y_train=Y, x_test=GREY[:2], y_test=Y[:2])
    assert [len(load_data(path, split=s)) for s in ("train", "test", None)] == [6, 2, 2]
    with pytest.raises(InputError, match=r"split 'val'. It holds x_train"):
        load_data(path, split="val")


def test_a_train_split_is_not_made_up(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no 'train' split"):
        load_data(npz(tmp_path / "a.npz", x=GREY, y=Y), split="train")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": GREY}, r"It holds x; expected x and y"),
        ({"x": GREY, "y": Y[:5]}, "6 images, but 5 labels"),
        ({"x": GREY.astype(np.float32), "y": Y}, r"must lie in \[0,1\].*divide by 255"),
        ({"x": GREY.astype(np.float32) / 60 - 1, "y": Y}, "undo the normalisation"),
        ({"x": GREY.astype(np.int64), "y": Y}, "got int64"),
        ({"x": np.full((6, 1, 4, 4), np.nan), "y": Y}, "NaN"),
        ({"x": GREY.reshape(6, -1), "y": Y}, r"got the shape \[6, 20\]; reshape"),
        ({"x": GREY, "y": np.eye(6)}, "one-hot"),
        ({"x": GREY, "y": Y + 0.5}, "labels must be integers"),
        ({"x": GREY, "y": Y - 1}, r"labels must lie in \[0, 2\), got -1 at example 0"),
        ({"x": GREY[:0], "y": Y[:0]}, "no example"),
        ({"x": GREY, "y": np.array(list("abcdef"))}, "labels must be integers"),
        ({"x": GREY, "y": np.array([None] * 6)}, "never unpickled"),
    ],
)
def test_what_is_refused(tmp_path: Path, arrays: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_data(npz(tmp_path / "a.npz", **arrays))


def test_labels_out_of_the_declared_range(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", x=GREY, y=Y)
    with pytest.raises(InputError, match=r"labels must lie in \[0, 2\), got 2 at example 2"):
        load_data(path, num_classes=2)
    assert load_data(path, num_classes=10).num_classes == 10


def test_classes_are_counted_over_the_whole_file(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", x=GREY, y=np.array([0, 0, 0, 0, 0, 7]))
    assert load_data(path, subset="first:2").num_classes == 8
    assert load_data(npz(tmp_path / "b.npz", x=GREY, y=Y * 0)).num_classes == 2


@pytest.mark.parametrize("labels", [Y[:, None], Y.astype(np.uint8), Y.astype(np.float64)])
def test_labels_in_other_clothes(tmp_path: Path, labels: np.ndarray) -> None:
    assert load_data(npz(tmp_path / "a.npz", x=GREY, y=labels)).y.tolist() == Y.tolist()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.99])
def test_files_that_are_cut_off(tmp_path: Path, share: float) -> None:
    for path in (tmp_path / "a.npz", tmp_path / "x.npy"):
        np.savez(path, x=GREY, y=Y) if path.suffix == ".npz" else np.save(path, GREY)
        np.save(tmp_path / "y.npy", Y)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
        with pytest.raises(InputError, match="damaged, cut off"):
            load_data(str(path))


def test_npy_pairs_in_all_their_spellings(tmp_path: Path) -> None:
    np.save(tmp_path / "max_x.npy", GREY)
    np.save(tmp_path / "max_y.npy", Y)
    whole = [
        load_data(str(tmp_path / "max_x.npy")),
        load_data(str(tmp_path / "max_*.npy")),
        load_data(f"{tmp_path / 'max_x.npy'},{tmp_path / 'max_y.npy'}"),
    ]
    assert all(isinstance(d, Dataset) and torch.equal(d.x, whole[0].x) and len(d) == 6 for d in whole)
    assert [d.name for d in whole] == ["max_x", "max", "max_x"]
    assert whole[0].fingerprint == whole[1].fingerprint


def test_npy_without_its_labels(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", GREY)
    np.save(tmp_path / "pixels.npy", GREY)
    with pytest.raises(InputError, match=r"expected at .*y\.npy"):
        load_data(str(tmp_path / "x.npy"))
    with pytest.raises(InputError, match="give both files"):
        load_data(str(tmp_path / "pixels.npy"))
    with pytest.raises(InputError, match=r"matches 2 files|cannot tell images from labels"):
        load_data(str(tmp_path / "*.npy"))
    with pytest.raises(InputError, match=r"matches 1 files \(x.npy\)"):
        load_data(str(tmp_path / "x*.npy"))


def test_the_sdp_images(shared_data: Path) -> None:
    data = load_data(str(shared_data / "cifar10" / "sdp_*.npy"), subset="stride:2")
    assert data.x.shape == (100, 3, 32, 32)
    raw = np.load(shared_data / "cifar10" / "sdp_x.npy")
    assert torch.equal(data.x[3, 2], torch.from_numpy(raw[6, :, :, 2].copy()))
    assert (data.name, data.num_classes) == ("sdp", 10)


def test_the_csv_of_eran_holds_the_first_mnist_test_images(shared_data: Path) -> None:
    table = load_data(str(shared_data / "mnist" / "eran_100.csv"))
    test = load_data(str(shared_data / "mnist"), subset="first:100")
    assert torch.equal(table.x, test.x)
    assert torch.equal(table.y, test.y)
    assert load_data(str(shared_data / "cifar10" / "eran_100.csv")).x.shape == (100, 3, 32, 32)


@pytest.mark.parametrize(
    ("text", "message"),
    [("1,2,3\n", "got 3 numbers"), ("a,b\n", "not a table"), ("1," + ",".join(["0.5"] * 784), "whole numbers")],
)
def test_other_csv_files(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        load_data(str(tmp_path / "a.csv"))
