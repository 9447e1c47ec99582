"""The embedded data set: scikit-learn's 1,797 handwritten digits of 8x8 pixels, hash-checked, with a fixed split."""

import hashlib
from typing import Any

import torch
from torch import Tensor

from robustsuite.data.dataset import Dataset
from robustsuite.errors import InputError
from robustsuite.noise import Noise
from robustsuite.registry import register_dataset

X_SHA256 = "9f578524b6cec1fc"
"""First 16 hex digits of the sha256 over the float32 bytes of images / 16."""
Y_SHA256 = "a3c91c262eddcf7b"
"""The same over the int64 bytes of the labels."""

TEST_EXAMPLES = 500


@register_dataset("digits")
def digits(split: str) -> Dataset:
    """1,797 digits of 8x8 grey pixels, ten classes; splits train (1,297), test (500) and all.

    An id is the index in scikit-learn's order. Raises `InputError` for another split, or when scikit-learn's copy is
    not the one that all results are on.
    """
    x, y = load_digits_checked()
    test = in_test_split(y)
    masks = {"train": ~test, "test": test, "all": torch.ones_like(test)}
    if split not in masks:
        raise InputError(f"digits has no split '{split}'; there are {', '.join(masks)}.")
    ids = masks[split].nonzero().flatten()
    return Dataset("digits", x[ids], y[ids], ids, 10, source="digits", classes=tuple("0123456789"))


def load_digits_checked() -> tuple[Tensor, Tensor]:
    """Images float32 ``[1797,1,8,8]`` in [0,1] and labels int64 ``[1797]``, their hashes checked."""
    from sklearn.datasets import load_digits  # takes a second to import, and only this data set needs it

    bunch: Any = load_digits()
    x = (bunch["images"] / 16).astype("float32")
    y = bunch["target"].astype("int64")
    for what, array, expected in (("images", x, X_SHA256), ("labels", y, Y_SHA256)):
        found = hashlib.sha256(array.tobytes()).hexdigest()[:16]
        if found != expected:
            raise InputError(
                f"the {what} of scikit-learn's digits hash to {found}, expected {expected}: this scikit-learn ships "
                "other data, and results on it could not be compared. Reinstall scikit-learn."
            )
    return torch.from_numpy(x).unsqueeze(1), torch.from_numpy(y)


def in_test_split(y: Tensor) -> Tensor:
    """Which examples are the test split, bool ``[N]``: of every class its share of the 500, picked by keyed noise.

    Shares are rounded down, and the classes with the largest remainders (the lower label on a tie) get one more.
    """
    counts = torch.bincount(y)
    exact = counts * TEST_EXAMPLES
    shares = exact // len(y)
    left = TEST_EXAMPLES - int(shares.sum())
    remainders = (exact % len(y)).tolist()
    for label in sorted(range(len(counts)), key=lambda k: (-remainders[k], k))[:left]:
        shares[label] += 1
    keys = Noise(0, "digits/split").at(torch.arange(len(y))).bits(1).flatten()
    mask = torch.zeros(len(y), dtype=torch.bool)
    for label, share in enumerate(shares.tolist()):
        members = (y == label).nonzero().flatten()
        mask[members[keys[members].argsort(stable=True)[:share]]] = True
    return mask
