"""The embedded digits: their hash and their split."""

import hashlib

import pytest
import torch

from robustsuite.data import digits as module
from robustsuite.data.digits import digits
from robustsuite.data.reference import load_data
from robustsuite.errors import InputError


def test_sizes_classes_and_hashes() -> None:
    whole = digits("all")
    assert whole.x.shape == (1797, 1, 8, 8)
    assert hashlib.sha256(whole.x.numpy().tobytes()).hexdigest().startswith("9f578524b6cec1fc")
    assert hashlib.sha256(whole.y.numpy().tobytes()).hexdigest().startswith("a3c91c262eddcf7b")
    assert torch.bincount(whole.y).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert (float(whole.x.min()), float(whole.x.max())) == (0.0, 1.0)


def test_the_split_is_stratified_disjoint_and_fixed() -> None:
    train, test = digits("train"), digits("test")
    assert (len(train), len(test)) == (1297, 500)
    assert sorted(torch.cat([train.ids, test.ids]).tolist()) == list(range(1797))
    counts = torch.bincount(torch.cat([train.y, test.y]))
    assert (torch.bincount(test.y) - counts * 500 / 1797).abs().max() < 1
    whole = digits("all")
    assert torch.equal(test.x, whole.x[test.ids])
    # Every result on digits depends on this split: a change of it must show here.
    assert test.ids[:10].tolist() == [2, 3, 7, 16, 18, 21, 22, 24, 25, 37]
    assert hashlib.sha256(test.ids.numpy().tobytes()).hexdigest()[:16] == "48744c78032de48b"


def test_the_split_looks_random() -> None:
    ids = digits("test").ids.double()
    # The mean of 500 of 1797 places has deviation 1797 / sqrt(12 * 500) = 23.
    assert abs(float(ids.mean()) - 898) < 4 * 23


def test_through_the_loader() -> None:
    data = load_data("digits", subset="first:5")
    assert torch.equal(data.ids, digits("test").ids[:5])
    assert (data.name, data.source, data.split, data.subset) == ("digits", "digits", "test", "first:5")
    assert len(load_data("digits", split="train")) == 1297


def test_an_unknown_split() -> None:
    with pytest.raises(InputError, match=r"no split 'val'; there are train, test, all"):
        load_data("digits", split="val")


def test_other_data_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "X_SHA256", "0" * 16)
    with pytest.raises(InputError, match="images of scikit-learn's digits hash to 9f578524b6cec1fc"):
        digits("test")
