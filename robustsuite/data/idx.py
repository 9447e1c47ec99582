"""IDX files, the format of MNIST: big-endian header, then unsigned bytes; plain or gzipped."""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from robustsuite.data.source import Source, from_arrays, unsplit
from robustsuite.errors import InputError

_UINT8 = 0x08
_PREFIXES = {"test": ("t10k", "test"), "train": ("train",), "val": ("val",)}


def read_idx(images: Path, labels: Path | None = None, split: str | None = None) -> Source:
    """Images and labels of an IDX pair; the labels' file is found by name when it is not given."""
    if not images.name.startswith(_PREFIXES.get(split or "test", ())):
        unsplit(str(images), split)
    labels = labels or _sibling(images)
    return from_arrays(str(images), load_idx(images), load_idx(labels))


def find_idx(folder: Path, split: str | None) -> Path | None:
    """The images' file of a folder: the only one, or that of the split; None where the folder holds no IDX images."""
    found = sorted(p for p in folder.iterdir() if p.is_file() and _is_images(p.name))
    if not found:
        return None
    chosen = [p for p in found if p.name.startswith(_PREFIXES.get(split or "test", ("?",)))]
    if len(chosen) == 1:
        return chosen[0]
    if len(found) == 1 and split is None:
        return found[0]
    raise InputError(
        f"{folder}: cannot tell which of {', '.join(p.name for p in found)} is the split '{split or 'test'}'; "
        "name the images' file itself."
    )


def is_idx(path: Path) -> bool:
    """Whether the name is that of an IDX file."""
    return "idx1" in path.name or "idx3" in path.name or path.name.removesuffix(".gz").endswith("-ubyte")


def _is_images(name: str) -> bool:
    return "images" in name and ("idx3" in name or name.removesuffix(".gz").endswith("ubyte"))


def _sibling(images: Path) -> Path:
    if "images" not in images.name:
        raise InputError(f"{images}: no labels were named; give both files as 'IMAGES,LABELS'.")
    name = images.name.replace("images", "labels").replace("idx3", "idx1")
    other = name.removesuffix(".gz") if name.endswith(".gz") else f"{name}.gz"
    for candidate in (images.with_name(name), images.with_name(other)):
        if candidate.is_file():
            return candidate
    raise InputError(f"{images}: its labels were expected at {images.with_name(name)}; name both as 'IMAGES,LABELS'.")


def load_idx(path: Path) -> np.ndarray:
    """The array of one IDX file, uint8; raises `InputError` when its header or its length is wrong."""
    if not path.is_file():
        raise InputError(f"{path}: no such file.")
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} is damaged or cut off ({error}). Copy it again.") from None
    if len(content) < 4 or content[:2] != b"\0\0":
        raise InputError(f"{path} is not an IDX file (it begins with {content[:8]!r}).")
    kind, axes = content[2], content[3]
    if kind != _UINT8:
        raise InputError(
            f"{path}: IDX type 0x{kind:02x} is not supported, images and labels are unsigned bytes (0x08)."
        )
    start = 4 + 4 * axes
    if len(content) < start:
        raise InputError(f"{path} is cut off within its header. Copy it again.")
    shape = struct.unpack(f">{axes}I", content[4:start])
    if len(content) - start != math.prod(shape):
        raise InputError(
            f"{path} is cut off or damaged: its header says {list(shape)}, which is {math.prod(shape)} bytes, and "
            f"{len(content) - start} are there. Copy it again."
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
