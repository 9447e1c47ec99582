"""IDX files: MNIST itself, and damaged ones."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from robustsuite.data.idx import load_idx
from robustsuite.data.reference import load_data
from robustsuite.errors import InputError

PIXELS = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5)


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx(PIXELS))
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.array([2, 0, 1], np.uint8))))
    return tmp_path


def test_a_pair_in_all_its_spellings(folder: Path) -> None:
    images, labels = folder / "t10k-images-idx3-ubyte", folder / "t10k-labels-idx1-ubyte.gz"
    for reference in (folder, images, f"{images},{labels}"):
        data = load_data(str(reference))
        assert torch.equal(data.x, torch.from_numpy(PIXELS).unsqueeze(1) / 255)
        assert data.y.tolist() == [2, 0, 1]


def test_the_split_chooses_among_two_pairs(folder: Path) -> None:
    (folder / "train-images-idx3-ubyte").write_bytes(idx(PIXELS[:2]))
    (folder / "train-labels-idx1-ubyte").write_bytes(idx(np.array([0, 1], np.uint8)))
    assert [len(load_data(str(folder), split=s)) for s in (None, "test", "train")] == [3, 3, 2]
    assert len(load_data(str(folder / "train-images-idx3-ubyte"), split="train")) == 2
    with pytest.raises(InputError, match="cannot tell which of t10k-images-idx3-ubyte, train-images"):
        load_data(str(folder), split="val")


def test_a_train_split_is_not_made_up(folder: Path) -> None:
    with pytest.raises(InputError, match="cannot tell which"):
        load_data(str(folder), split="train")
    with pytest.raises(InputError, match="has no 'train' split"):
        load_data(str(folder / "t10k-images-idx3-ubyte"), split="train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (idx(PIXELS)[:-1], r"header says \[3, 4, 5\], which is 60 bytes, and 59"),
        (idx(PIXELS)[:9], "cut off within its header"),
        (b"", "not an IDX file"),
        (b"\x1f\x8b\x08garbage", "damaged or cut off"),
        (gzip.compress(idx(PIXELS), mtime=0)[:-12], "damaged or cut off"),
        (b"<html>" + bytes(99), "not an IDX file"),
        (struct.pack(">HBBI", 0, 13, 1, 0), "type 0x0d"),
    ],
)
def test_damaged_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_idx(path)


def test_missing_labels(folder: Path) -> None:
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(InputError, match=r"labels were expected at .*t10k-labels-idx1-ubyte"):
        load_data(str(folder))


def test_mnist(shared_data: Path) -> None:
    data = load_data(str(shared_data / "mnist"))
    assert data.x.shape == (10000, 1, 28, 28)
    assert torch.bincount(data.y).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert (data.name, data.num_classes) == ("mnist", 10)
