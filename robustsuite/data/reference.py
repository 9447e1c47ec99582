"""What the user types for data, made into a data set: a registered name, NumPy or IDX files, or an image folder."""

import dataclasses
import difflib
from pathlib import Path

import torch

from robustsuite.data import arrays, eran_csv, folder, idx
from robustsuite.data.archive import ARCHIVE_SUFFIXES
from robustsuite.data.dataset import Dataset
from robustsuite.data.source import Source, unsplit
from robustsuite.data.subset import select
from robustsuite.errors import InputError
from robustsuite.registry import DATASETS

FORMS = (
    "a registered name, FILE.npz, IMAGES.npy (its labels beside it, or 'IMAGES.npy,LABELS.npy', or a quoted pattern "
    "that matches both), IDX files or their folder, an ERAN .csv, or an image folder, also in a .tar, .tar.gz, "
    ".tar.xz or .zip"
)


def load_data(
    reference: str, *, split: str | None = None, subset: str = "all", num_classes: int | None = None
) -> Dataset:
    """The examples that ``reference``, ``split`` (default: test) and ``subset`` name.

    The subset is chosen before images are decoded. ``num_classes`` defaults to the class folders, else to the largest
    label of the whole file and one. Raises `InputError` (`UsageError` for a malformed subset) with the remedy.
    """
    if reference in DATASETS:
        return _registered(reference, split or "test", subset, num_classes)
    source = _open(reference, split)
    ids = torch.arange(len(source.labels))
    positions = select(subset, source.labels, ids)
    return Dataset(
        name=_short_name(reference),
        x=source.images(positions),
        y=source.labels[positions],
        ids=ids[positions],
        num_classes=num_classes or source.num_classes,
        subset=subset,
        source=reference,
        split=split,
        classes=source.classes,
    )


def _registered(name: str, split: str, subset: str, num_classes: int | None) -> Dataset:
    entry = DATASETS.get(name)
    data = entry.target(split)
    if not isinstance(data, Dataset):
        raise InputError(f"the dataset '{name}' ({entry.origin}) must return a Dataset, got {type(data).__name__}.")
    data = dataclasses.replace(data, source=name, split=split, num_classes=num_classes or data.num_classes)
    return data if subset == "all" else data.take(select(subset, data.y, data.ids), subset)


def _open(reference: str, split: str | None) -> Source:
    if "," in reference and not Path(reference).exists():
        return _pair(reference, split)
    if any(c in reference for c in "*?[") and not Path(reference).exists():
        unsplit(reference, split)
        return arrays.read_glob(reference)
    path = Path(reference)
    if not path.exists():
        raise InputError(_not_found(reference))
    if path.is_dir():
        return _directory(path, split)
    if path.suffix == ".npz":
        return arrays.read_npz(path, split)
    if path.name.endswith(ARCHIVE_SUFFIXES):
        return folder.read_folder(path, split)
    if idx.is_idx(path):
        return idx.read_idx(path, split=split)
    if path.suffix == ".npy":
        unsplit(reference, split)
        return arrays.read_npy(path)
    if path.suffix == ".csv":
        unsplit(reference, split)
        return eran_csv.read_csv(path)
    raise InputError(f"{path}: its kind is unknown from its name. Data can be {FORMS}.")


def _pair(reference: str, split: str | None) -> Source:
    parts = [Path(p.strip()) for p in reference.split(",")]
    if len(parts) != 2:
        raise InputError(f"'{reference}' names {len(parts)} files; a pair is 'IMAGES,LABELS'.")
    images, labels = parts
    if images.suffix == ".npy" and labels.suffix == ".npy":
        unsplit(reference, split)
        return arrays.read_npy(images, labels)
    if idx.is_idx(images) and idx.is_idx(labels):
        return idx.read_idx(images, labels, split)
    raise InputError(f"'{reference}': a pair is two .npy files or two IDX files, images first.")


def _directory(path: Path, split: str | None) -> Source:
    images = idx.find_idx(path, split)
    if images is not None:
        return idx.read_idx(images, split=split)
    if any(p.is_dir() for p in path.iterdir()):
        return folder.read_folder(path, split)
    held = ", ".join(sorted(p.name for p in path.iterdir())[:6])
    raise InputError(f"{path} is neither an image folder nor a folder of IDX files (it holds {held or 'nothing'}).")


def _not_found(reference: str) -> str:
    path = Path(reference)
    names = [entry.name for entry in DATASETS]
    near = difflib.get_close_matches(reference, names, n=3, cutoff=0.5)
    if path.parent.is_dir() and len(path.parts) > 1:
        beside = difflib.get_close_matches(path.name, [p.name for p in path.parent.iterdir()], n=2, cutoff=0.6)
        near += [str(path.with_name(name)) for name in beside]
    hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
    return (
        f"no data set '{reference}': neither a registered name ({', '.join(names)}) nor a file or folder.{hint} "
        f"Data can be {FORMS}."
    )


def _short_name(reference: str) -> str:
    """The last part of the path without its endings and wildcards; ``mnist/sdp_*.npy`` gives ``mnist-sdp``."""
    path = Path(reference.split(",")[0])
    name = path.name
    for suffix in (*ARCHIVE_SUFFIXES, ".npz", ".npy", ".csv", ".gz"):
        name = name.removesuffix(suffix)
    cleaned = name.replace("*", "").replace("?", "").strip("_-. ")
    return cleaned or path.parent.name or "data"
