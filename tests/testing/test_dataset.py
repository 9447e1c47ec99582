"""Data sets with a fault seeded into each."""

import pytest
import torch

from robustsuite.data.dataset import Dataset
from robustsuite.errors import InputError
from robustsuite.noise import Noise
from robustsuite.testing import check_dataset


def build(first, n=40, classes=3):
    ids = torch.arange(first, first + n)
    return Dataset("toy", Noise(0, "x").at(ids).uniform((1, 4, 4)), ids % classes, ids, classes)


def good(split):
    """Forty images a split."""
    places = {"train": 0, "test": 100}
    if split not in places:
        raise InputError(f"no split '{split}'.")
    return build(places[split])


def accepts_anything(split):
    """Whatever split."""
    return build(100 if split == "test" else 0)


def key_error(split):
    """A raw error for an unknown split."""
    return build({"train": 0, "test": 100}[split])


def leaks(split):
    """Training examples among the test examples."""
    good(split)
    return build(0 if split == "train" else 20)


def reshuffled(split):
    """Another order each time."""
    data = good(split)
    return data.take(torch.randperm(len(data)), "all")


def percent(split):
    """Pixels from 0 to 255."""
    data = good(split)
    return Dataset("toy", data.x * 255, data.y, data.ids, 3)


def tuples(split):
    """Returns x and y."""
    data = good(split)
    return data.x, data.y


def one_class(split):
    """Knows zeros alone."""
    data = good(split)
    return Dataset("toy", data.x, data.y * 0, data.ids, 3)


def two_arguments(split, root):
    """Wants more than a split."""
    return good(split)


def test_a_sound_dataset_passes():
    assert [f for f in check_dataset(good) if not f.ok] == []


@pytest.mark.parametrize(
    ("plugin", "finding", "words"),
    [
        (accepts_anything, "unknown split", "is accepted"),
        (key_error, "unknown split", "KeyError"),
        (leaks, "train split", "20 of 40 test ids are training ids"),
        (reshuffled, "repeatable", "two fingerprints"),
        (reshuffled, "hands off", "torch's global generator"),
        (percent, "test split", "divide by 255"),
        (tuples, "test split", "got tuple"),
        (one_class, "classes", "all labels are 0"),
        (two_arguments, "function", "takes (split, root)"),
    ],
)
def test_a_fault_is_found_and_named(plugin, finding, words):
    found = {f.name: f for f in check_dataset(plugin) if not f.ok}
    assert finding in found
    assert words in found[finding].detail
    assert found[finding].remedy
