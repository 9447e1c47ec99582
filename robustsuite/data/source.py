"""What every reader of data hands over: all labels at once, images only for the examples that are asked for."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from robustsuite.errors import InputError


@dataclass(frozen=True)
class Source:
    """A whole data set before a subset is chosen."""

    name: str
    labels: Tensor
    """int64 ``[N]``, every example in its fixed order; the place is the example's id."""
    images: Callable[[Tensor], Tensor]
    """Positions int64 ``[n]`` to images float32 ``[n,C,H,W]``; raises `InputError` where they cannot be read."""
    classes: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        """Number of named classes, else the largest label and one, at least 2."""
        return max(len(self.classes) or int(self.labels.max()) + 1, 2)


def from_arrays(name: str, x: np.ndarray, y: np.ndarray) -> Source:
    """A source over arrays; raises `InputError` when shapes, types or lengths do not fit."""
    labels = as_labels(name, y)
    axes = image_axes(name, x.shape)
    if len(x) != len(labels):
        raise InputError(f"{name}: {len(x)} images, but {len(labels)} labels.")
    if len(x) == 0:
        raise InputError(f"{name}: it holds no example.")
    if x.dtype != np.uint8 and not np.issubdtype(x.dtype, np.floating):
        raise InputError(
            f"{name}: images must be uint8 (0 to 255) or floats in [0,1], got {x.dtype}; convert them first."
        )

    def images(positions: Tensor) -> Tensor:
        chosen = torch.from_numpy(x[positions.numpy()].transpose(axes).copy()) if axes else _grey(x, positions)
        if chosen.dtype == torch.uint8:
            return chosen.float() / 255
        return chosen.float().contiguous()

    return Source(name, labels, images)


def _grey(x: np.ndarray, positions: Tensor) -> Tensor:
    return torch.from_numpy(x[positions.numpy()].copy()).unsqueeze(1)


def as_labels(name: str, y: np.ndarray) -> Tensor:
    """int64 ``[N]`` of labels that are integers in any width, ``[N]`` or ``[N,1]``; raises `InputError` otherwise."""
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1:
        hint = " They look one-hot: store their argmax." if y.ndim == 2 else ""
        raise InputError(f"{name}: labels must be one integer an image, got the shape {list(y.shape)}.{hint}")
    if np.issubdtype(y.dtype, np.floating) and bool((y == np.round(y)).all()):
        y = y.astype(np.int64)
    if not np.issubdtype(y.dtype, np.integer):
        raise InputError(f"{name}: labels must be integers from 0, got {y.dtype}.")
    return torch.from_numpy(y.astype(np.int64))


def image_axes(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The transposition to ``[N,C,H,W]``; empty for grey images ``[N,H,W]``, which get a channel.

    The channel axis is the one that holds 1 or 3; failing that, the one outside of a square image. Raises
    `InputError` when both readings are possible, never guesses.
    """
    if len(shape) == 3:
        return ()
    if len(shape) != 4:
        raise InputError(
            f"{name}: images must be [N,C,H,W], [N,H,W,C] or grey [N,H,W], got the shape {list(shape)}; reshape them."
        )
    first, last = shape[1] in (1, 3), shape[3] in (1, 3)
    if first == last:
        square_last, square_first = shape[2] == shape[3], shape[1] == shape[2]
        first, last = (square_last and not square_first, square_first and not square_last) if not first else (0, 0)
    if first == last:
        raise InputError(
            f"{name}: the shape {list(shape)} could be [N,C,H,W] or [N,H,W,C]; store the images as [N,C,H,W] with 1 or "
            "3 channels."
        )
    return (0, 1, 2, 3) if first else (0, 3, 1, 2)


def unsplit(name: str, split: str | None) -> None:
    """Refuse a split other than ``test`` for a file that has none: it would train and test on the same examples."""
    if split not in (None, "test"):
        raise InputError(
            f"{name} has no '{split}' split, it is one set of examples. Leave the split out and choose examples with a "
            "subset (range:0:8000, first:N, ids:FILE)."
        )
