"""The gallery of a published run: a few broken examples for people to look at, in one small file."""

from typing import Any, NamedTuple

import numpy as np

from robustsuite.errors import InputError
from robustsuite.results.packed import unpack
from robustsuite.results.store import parse_arrays

GALLERY = "gallery.safetensors"
MOST_PICTURES, MOST_PIXELS = 64, 1024
_MOST_BYTES = 32 << 20
_NUMBERS = ("position", "label", "before", "after")
_IMAGES = ("x", "x_adv")


class Gallery(NamedTuple):
    """K pictures: int64 ``[K]`` position, label, clean prediction and prediction at ``x_adv``; the distance in the
    run's norm, float64 ``[K]``; images float32 ``[K,C,H,W]`` in [0,1]; and the stage that broke each."""

    position: np.ndarray
    label: np.ndarray
    before: np.ndarray
    after: np.ndarray
    distance: np.ndarray
    x: np.ndarray
    x_adv: np.ndarray
    stages: tuple[str, ...]
    run_key: str


def read_gallery(packed: bytes) -> Gallery:
    """The gallery in the bytes of a ``.gallery.xz``.

    Raises `InputError` for anything else: damaged, more than 64 pictures or 1,024 pixels a side, arrays that do not
    fit each other, pixels outside of [0,1]. Whether the pictures are true, `robustsuite verify` says.
    """
    arrays, meta = parse_arrays(unpack(packed, _MOST_BYTES, "the gallery"), "the gallery")
    if problem := _problem(arrays, meta.get("stages"), meta.get("run_key")):
        raise InputError(f"the gallery cannot be used: {problem}. Submit its run again.")
    return Gallery(**arrays, stages=tuple(meta["stages"]), run_key=meta["run_key"])


def _problem(arrays: dict[str, np.ndarray], stages: Any, run_key: Any) -> str:
    named = {*_NUMBERS, "distance", *_IMAGES}
    if set(arrays) != named:
        return f"it holds {', '.join(sorted(arrays))}, expected {', '.join(sorted(named))}"
    if not isinstance(run_key, str) or not isinstance(stages, list) or not all(isinstance(s, str) for s in stages):
        return "its run key and stages must be texts"
    shape, count = arrays["x"].shape, len(stages)
    if len(shape) != 4 or shape != arrays["x_adv"].shape or not 1 <= count <= MOST_PICTURES or shape[0] != count:
        return f"images {list(shape)} and {list(arrays['x_adv'].shape)} for {count} stages"
    if shape[1] not in (1, 3) or not 1 <= min(shape[2:]) <= max(shape[2:]) <= MOST_PIXELS:
        return f"images of {list(shape[1:])}, expected 1 or 3 channels and at most {MOST_PIXELS} pixels a side"
    wanted = dict.fromkeys(_NUMBERS, "int64") | {"distance": "float64"} | dict.fromkeys(_IMAGES, "float32")
    for name, dtype in wanted.items():
        array = arrays[name]
        if array.dtype.name != dtype or array.shape[0] != count or (name not in _IMAGES and array.ndim != 1):
            return f"'{name}' is {array.dtype} {list(array.shape)}, expected {dtype} with {count} rows"
    if not all(((arrays[name] >= 0) & (arrays[name] <= 1)).all() for name in _IMAGES):
        return "pixels must lie in [0,1]"
    if not np.isfinite(arrays["distance"]).all() or (arrays["distance"] < 0).any():
        return "distances must be finite and >= 0"
    if any((arrays[name] < 0).any() for name in _NUMBERS):
        return "positions and classes must be >= 0"
    return ""
