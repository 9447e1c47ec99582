"""Images and labels as the suite uses them, checked once at the boundary and fingerprinted."""

import hashlib
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from robustsuite.errors import InputError


@dataclass(frozen=True)
class Dataset:
    """``x`` float32 ``[N,C,H,W]`` in [0,1], ``y`` int64 ``[N]`` in [0,K), ``ids`` int64 ``[N]``.

    An id is an example's place in the whole data set, so that it keeps its randomness in every subset. Raises
    `InputError` on shapes, ranges, NaN or labels that do not fit.
    """

    name: str
    x: Tensor
    y: Tensor
    ids: Tensor
    num_classes: int
    subset: str = "all"
    source: str = ""
    split: str | None = None
    classes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        check_images(self.name, self.x, self.y, self.num_classes)
        if self.ids.shape != self.y.shape or self.ids.unique().numel() != self.ids.numel():
            raise InputError(f"{self.name}: every example needs an id of its own.")

    def __len__(self) -> int:
        return self.y.shape[0]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return tuple(self.x.shape[1:])

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over shape, ids, float32 pixels and labels, after all preprocessing and in order."""
        digest = hashlib.sha256(repr(tuple(self.x.shape)).encode())
        for tensor in (self.ids, self.x, self.y):
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def take(self, positions: Tensor, subset: str) -> "Dataset":
        """The examples at ``positions`` int64, under the subset's name."""
        return Dataset(
            self.name,
            self.x[positions],
            self.y[positions],
            self.ids[positions],
            self.num_classes,
            subset,
            self.source,
            self.split,
            self.classes,
        )


def check_images(name: str, x: Tensor, y: Tensor, num_classes: int) -> None:
    """Raise `InputError` naming what was expected, what came and what to do."""
    if x.ndim != 4 or x.dtype != torch.float32:
        raise InputError(f"{name}: images must be float32 [N,C,H,W], got {x.dtype} {list(x.shape)}.")
    if x.shape[0] == 0:
        raise InputError(f"{name}: no example left.")
    if y.shape != x.shape[:1] or y.dtype != torch.int64:
        raise InputError(f"{name}: labels must be int64 [{x.shape[0]}], got {y.dtype} {list(y.shape)}.")
    if not bool(torch.isfinite(x).all()):
        raise InputError(f"{name}: images contain NaN or infinity.")
    low, high = float(x.min()), float(x.max())
    if low < 0 or high > 1:
        bytes_ = low >= 0 and 16 < high <= 255
        hint = "divide by 255" if bytes_ else "rescale them, or undo the normalisation (it belongs into the model)"
        raise InputError(f"{name}: images must lie in [0,1], got [{low:g}, {high:g}]; {hint}.")
    bad = (y < 0) | (y >= num_classes)
    if bool(bad.any()):
        first = int(bad.nonzero()[0])
        raise InputError(
            f"{name}: labels must lie in [0, {num_classes}), got {int(y[first])} at example {first} "
            f"({int(bad.sum())} such labels); check the labels or the number of classes."
        )
