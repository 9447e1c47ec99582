"""Image folders, loose or in an archive: class subfolders, maybe below train/ and test/, decoded only as asked."""

import io
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from robustsuite.data.archive import Member, list_members, read_members
from robustsuite.data.source import Source, unsplit
from robustsuite.errors import InputError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif"})
_SPLITS = {"train": "train", "test": "test", "val": "val", "valid": "val", "validation": "val"}


@dataclass(frozen=True, slots=True)
class _Entry:
    split: str
    """As the folder is called; empty without this level."""
    label: str
    rest: str
    member: Member


def read_folder(path: Path, split: str | None = None) -> Source:
    """The images of one split, in the order of class name and file name.

    The classes are those of all splits together, sorted. Raises `InputError` when there are no class folders, the
    split is not there, or (once images are asked for) one cannot be decoded or differs in size.
    """
    entries = _layout(path)
    classes = tuple(sorted({e.label for e in entries}))
    place = {name: i for i, name in enumerate(classes)}
    chosen = sorted(_of_split(path, entries, split), key=lambda e: (e.label, e.rest))
    members = [e.member for e in chosen]
    labels = torch.tensor([place[e.label] for e in chosen], dtype=torch.int64)
    return Source(str(path), labels, lambda at: _decode_all(path, [members[i] for i in at.tolist()]), classes)


def _layout(path: Path) -> list[_Entry]:
    named = [(m, PurePosixPath(m.name).parts) for m in list_members(path)]
    named = [(m, parts) for m, parts in named if PurePosixPath(m.name).suffix.lower() in SUFFIXES and _visible(parts)]
    if not named:
        raise InputError(f"{path}: no image found ({', '.join(sorted(SUFFIXES))}).")
    while len({parts[0] for _, parts in named}) == 1 and named[0][1][0] not in _SPLITS and _deeper(named, 2):
        named = [(m, parts[1:]) for m, parts in named]
    has_splits = all(parts[0] in _SPLITS for _, parts in named) and _deeper(named, 2)
    if not _deeper(named, 2 if has_splits else 1):
        stray = next(m.name for m, parts in named if len(parts) < (3 if has_splits else 2))
        raise InputError(f"{path}: {stray} lies in no class folder; expected CLASS/IMAGE or test/CLASS/IMAGE.")
    if has_splits:
        return [_Entry(p[0], p[1], "/".join(p[2:]), m) for m, p in named]
    return [_Entry("", p[0], "/".join(p[1:]), m) for m, p in named]


def _visible(parts: tuple[str, ...]) -> bool:
    return not any(part.startswith(".") or part == "__MACOSX" for part in parts)


def _deeper(named: list[tuple[Member, tuple[str, ...]]], depth: int) -> bool:
    return all(len(parts) > depth for _, parts in named)


def _of_split(path: Path, entries: list[_Entry], split: str | None) -> list[_Entry]:
    there = Counter(e.split for e in entries)
    if "" in there:
        unsplit(str(path), split)
        return entries
    wanted = [split] if split else ["test", "val"]
    for name in wanted:
        folders = [s for s in there if s == name or _SPLITS[s] == _SPLITS.get(name)]
        if len(folders) == 1:
            return [e for e in entries if e.split == folders[0]]
    listed = ", ".join(f"{name} ({count})" for name, count in sorted(there.items()))
    raise InputError(f"{path} has no split '{split or 'test'}'; there are {listed}. Name one of them.")


def _decode_all(path: Path, members: list[Member]) -> Tensor:
    pixels: dict[int, np.ndarray] = {}
    for i, content in read_members(path, members):
        pixels[i] = _decode(f"{path}/{members[i].name}", content)
    _check_sizes(path, members, pixels)
    # A few grey images among coloured ones are the custom of ImageNet: all are coloured then.
    coloured = any(p.shape[2] == 3 for p in pixels.values())
    rows = [
        np.repeat(pixels[i], 3, 2) if coloured and pixels[i].shape[2] == 1 else pixels[i] for i in range(len(members))
    ]
    return torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2).float().div_(255).contiguous()


def _decode(name: str, content: bytes) -> np.ndarray:
    """uint8 ``[H,W,C]``, one channel for grey images, else three."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.mode.startswith(("I", "F")):
                raise InputError(f"{name}: images of {image.mode} pixels are not supported; store 8 bits a channel.")
            decoded = np.asarray(image if image.mode == "L" else image.convert("RGB"))
    except InputError:
        raise
    except Exception as error:  # Pillow's decoders raise many types on damaged files
        raise InputError(f"{name} cannot be decoded ({error}); replace it or leave it out.") from None
    return decoded[:, :, None] if decoded.ndim == 2 else decoded


def _check_sizes(path: Path, members: list[Member], pixels: dict[int, np.ndarray]) -> None:
    first = pixels[0].shape[:2]
    for i, image in pixels.items():
        if image.shape[:2] != first:
            sizes = " but ".join(f"{members[k].name} is {pixels[k].shape[1]}x{pixels[k].shape[0]}" for k in (0, i))
            raise InputError(f"{path}: images differ in size, {sizes}. Resize them to one size first.")
