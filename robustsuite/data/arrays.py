"""NumPy files: one ``.npz`` with images and labels, or a pair of ``.npy``; nothing in them is ever unpickled."""

import glob
import re
import zipfile
from pathlib import Path

import numpy as np

from robustsuite.data.source import Source, from_arrays, unsplit
from robustsuite.errors import InputError

PAIRS = (("x", "y"), ("X", "Y"), ("X", "y"), ("images", "labels"), ("data", "targets"), ("data", "labels"))
"""Names of images and labels in a file without splits, in the order in which they are looked for."""

_TOKENS = (("x", "y"), ("X", "Y"), ("images", "labels"), ("data", "targets"))
_SPLITS = ("train", "test", "val")


def read_npz(path: Path, split: str | None) -> Source:
    """Images and labels of one ``.npz``: the names of the split (``x_test``, ``test_images``), else those of `PAIRS`.

    Raises `InputError` when the file is damaged or no pair is there, naming what it holds.
    """
    with _open(path) as archive:
        names = archive.files
        wanted = split or "test"
        pair = _pair_of_split(names, wanted)
        if pair is None and not any(_pair_of_split(names, s) for s in _SPLITS):
            pair = next((p for p in (*PAIRS, ("arr_0", "arr_1")) if set(p) <= set(names)), None)
            if pair is not None:
                unsplit(str(path), split)
        if pair is None:
            raise InputError(
                f"{path}: no images and labels for the split '{wanted}'. It holds {', '.join(names) or 'nothing'}; "
                f"expected x and y (or {', '.join('/'.join(p) for p in PAIRS[3:])}, or x_{wanted}/y_{wanted})."
            )
        try:
            x, y = archive[pair[0]], archive[pair[1]]
        except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise _unreadable(path, error) from None
    return from_arrays(str(path), x, y)


def _pair_of_split(names: list[str], split: str) -> tuple[str, str] | None:
    for a, b in PAIRS:
        for pair in ((f"{a}_{split}", f"{b}_{split}"), (f"{split}_{a}", f"{split}_{b}")):
            if set(pair) <= set(names):
                return pair
    return None


def _open(path: Path) -> np.lib.npyio.NpzFile:
    try:
        loaded = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise _unreadable(path, error) from None
    if not isinstance(loaded, np.lib.npyio.NpzFile):
        raise InputError(f"{path} is a single array, not an .npz; name it .npy and give its labels too.")
    return loaded


def read_npy(images: Path, labels: Path | None = None) -> Source:
    """Images of one ``.npy`` and labels of another; the labels' file is found by name when it is not given."""
    labels = labels or sibling(images)
    return from_arrays(str(images), load_npy(images), load_npy(labels))


def load_npy(path: Path) -> np.ndarray:
    """One array, mapped rather than read; raises `InputError` for a damaged file or one that holds objects."""
    if not path.is_file():
        raise InputError(f"{path}: no such file.")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise _unreadable(path, error) from None
    if not isinstance(array, np.ndarray):
        raise InputError(f"{path} is not an .npy file with one array.")
    return array


def sibling(images: Path) -> Path:
    """The labels' file beside the images': the name's last ``x`` (images, data) becomes ``y`` (labels, targets)."""
    for x, y in _TOKENS:
        found = list(re.finditer(rf"(?<![A-Za-z0-9]){x}(?![A-Za-z0-9])", images.stem))
        if found:
            last = found[-1]
            path = images.with_name(images.stem[: last.start()] + y + images.stem[last.end() :] + images.suffix)
            if path.is_file():
                return path
            raise InputError(f"{images}: its labels were expected at {path}; name both files as 'IMAGES,LABELS'.")
    raise InputError(f"{images}: no labels were named; give both files as 'IMAGES.npy,LABELS.npy'.")


def read_glob(pattern: str) -> Source:
    """Two ``.npy`` files that match a pattern, one of images and one of labels."""
    paths = sorted(Path(p) for p in glob.glob(pattern, recursive=True))  # noqa: PTH207 - patterns may be absolute
    if len(paths) != 2:
        listed = f" ({', '.join(p.name for p in paths[:6])})" if paths else ""
        raise InputError(
            f"{pattern} matches {len(paths)} files{listed}; it must match the images and the labels alone."
        )
    first, second = (load_npy(p) for p in paths)
    if (first.ndim >= 3) == (second.ndim >= 3):
        shapes = " and ".join(f"{p.name} {list(a.shape)}" for p, a in zip(paths, (first, second), strict=True))
        raise InputError(f"{pattern}: cannot tell images from labels by their shapes ({shapes}).")
    images, labels = (paths[0], paths[1]) if first.ndim >= 3 else (paths[1], paths[0])
    return read_npy(images, labels)


def _unreadable(path: Path, error: Exception) -> InputError:
    if "allow_pickle" in str(error) or "Object arrays" in str(error):
        return InputError(f"{path} holds Python objects, which are never unpickled; store plain arrays of numbers.")
    reason = str(error).strip().split("\n")[0]
    return InputError(f"{path} is damaged, cut off or not a NumPy file ({reason}). Copy it again.")
