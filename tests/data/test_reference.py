"""What can be typed for data, and what is answered to what cannot."""

from pathlib import Path

import numpy as np
import pytest
import torch

from robustsuite.data.dataset import Dataset
from robustsuite.data.reference import load_data
from robustsuite.errors import InputError
from robustsuite.registry import DATASETS


@pytest.fixture
def registered():
    def toy(split: str) -> Dataset:
        """Four examples whose ids start at 10."""
        x = torch.linspace(0, 1, 4 * 9).view(4, 1, 3, 3)
        return Dataset("toy", x, torch.tensor([0, 1, 0, 1]), torch.arange(10, 14), 2, source=split)

    DATASETS.register("toy-for-tests")(toy)
    DATASETS.register("broken-for-tests")(lambda split: split)
    yield
    for name in ("toy-for-tests", "broken-for-tests"):
        del DATASETS.entries[name]


@pytest.mark.usefixtures("registered")
def test_a_registered_data_set(tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("13\n10\n")
    data = load_data("toy-for-tests", split="train", subset=f"ids:{tmp_path / 'ids.txt'}", num_classes=5)
    assert data.ids.tolist() == [13, 10]
    assert (data.source, data.split, data.num_classes) == ("toy-for-tests", "train", 5)
    with pytest.raises(InputError, match="must return a Dataset, got str"):
        load_data("broken-for-tests")


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("digit", "Did you mean 'digits'"),
        ("no/such/file.npz", r"neither a registered name \(.*digits.*\) nor a file or folder"),
        ("a.npy,b.npy,c.npy", "names 3 files"),
        ("a.npy,b.csv", "two .npy files or two IDX files"),
        ("a.npy,b.npy", "a.npy: no such file"),
        ("nowhere_*.npy", "matches 0 files"),
    ],
)
def test_references_that_lead_nowhere(reference: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_data(reference)


def test_a_misspelt_file_is_answered_with_its_neighbour(tmp_path: Path) -> None:
    np.savez(tmp_path / "images.npz", x=np.zeros((2, 4, 4), np.uint8), y=np.zeros(2, np.int64))
    with pytest.raises(InputError, match=r"Did you mean '.*images\.npz'"):
        load_data(str(tmp_path / "image.npz"))


def test_kinds_that_cannot_be_told(tmp_path: Path) -> None:
    (tmp_path / "data.parquet").write_bytes(b"x")
    with pytest.raises(InputError, match="its kind is unknown"):
        load_data(str(tmp_path / "data.parquet"))
    with pytest.raises(InputError, match=r"neither an image folder nor .* \(it holds data.parquet\)"):
        load_data(str(tmp_path))


def test_the_record_can_name_the_same_examples_again(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.arange(160, dtype=np.uint8).reshape(10, 4, 4), y=np.arange(10) % 3)
    first = load_data(str(tmp_path / "a.npz"), subset="random:4@1")
    again = load_data(first.source, split=first.split, subset=first.subset)
    assert again.fingerprint == first.fingerprint
    assert again.fingerprint != load_data(first.source, subset="random:4@2").fingerprint
