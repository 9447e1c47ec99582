"""The CSV files of the ERAN verifier: label, then pixels 0 to 255 in height, width, channel order."""

from pathlib import Path

import numpy as np

from robustsuite.data.source import Source, from_arrays
from robustsuite.errors import InputError

_SHAPES = {784: (28, 28, 1), 3072: (32, 32, 3)}


def read_csv(path: Path) -> Source:
    """Images and labels; raises `InputError` unless every line holds a label and 784 or 3072 whole pixels."""
    try:
        table = np.loadtxt(path, delimiter=",", ndmin=2)
    except ValueError as error:
        raise InputError(f"{path} is not a table of numbers ({str(error).splitlines()[0]}).") from None
    shape = _SHAPES.get(table.shape[1] - 1)
    if shape is None:
        raise InputError(
            f"{path}: a line must hold a label and 784 (MNIST) or 3072 (CIFAR-10) pixels, got {table.shape[1]} numbers."
        )
    pixels = table[:, 1:]
    if pixels.min() < 0 or pixels.max() > 255 or (pixels != np.round(pixels)).any():
        raise InputError(
            f"{path}: pixels must be whole numbers from 0 to 255, got [{pixels.min():g}, {pixels.max():g}]."
        )
    return from_arrays(str(path), pixels.astype(np.uint8).reshape(-1, *shape), table[:, 0])
