"""Adversarial images that somebody else made, read from the files that people exchange; nothing in them is believed."""

import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustsuite.data.dataset import Dataset
from robustsuite.errors import InputError
from robustsuite.results.store import parse_arrays, read_bytes

_IMAGES = ("adv_complete", "x_adv", "adv", "adversarials", "adv_examples", "images", "x", "arr_0")
_POSITIONS = ("position", "positions", "index", "indices")
_IDS = ("id", "ids")
_SETS = 32
"""A file may hold so many sets of float64 images for the run's examples; a larger one is not opened."""
_SPILL = 0.01  # further outside of [0,1] than this, images are not in this range at all


@dataclass(frozen=True)
class Images:
    """One set of images, float32 ``[M,C,H,W]``, and which of the run's examples each of them attacks, int64 ``[M]``."""

    name: str
    x_adv: Tensor
    positions: Tensor


def read_images(path: Path, data: Dataset) -> list[Images]:
    """The sets of images in a file, each with at most one for every example of ``data``.

    ``.pt``/``.pth``: a tensor for all examples in their order, AutoAttack's ``{'adv_complete': x_adv}``, its tuple
    ``(x_adv, y_adv)``, or its dict of such by attack. ``.npy``: an array for all examples. ``.npz`` and
    ``.safetensors`` (this suite's own among them): ``x_adv`` for all examples, or with ``position`` (places in the
    run) or ``id`` (the data's own). Pixels are floats in [0,1], or uint8, which is divided by 255.

    Raises `InputError` for anything else, saying what was expected, what came, and what to do.
    """
    _check_size(path, data)
    sets = _READERS[path.suffix.lower()](path)
    return [_images(f"{path.name}{name}", arrays, data) for name, arrays in sets.items()]


def _check_size(path: Path, data: Dataset) -> None:
    if path.suffix.lower() not in _READERS:
        raise InputError(f"{path}: adversarial images come as {', '.join(sorted(_READERS))}, got '{path.suffix}'.")
    if not path.is_file():
        raise InputError(f"{path}: no such file.")
    size = path.stat().st_size
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            size = max(size, sum(entry.file_size for entry in archive.infolist()))
    most = _SETS * 8 * data.x.numel() + (1 << 20)
    if size > most:
        raise InputError(
            f"{path} holds {size:,} bytes, more than {_SETS} sets of images for the run's {len(data)} examples of "
            f"{list(data.input_shape)} could take ({most:,}). Save the adversarial images alone."
        )


def _read_torch(path: Path) -> dict[str, dict[str, Any]]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InputError(
            f"{path} was refused: loading it would run code, or it is no file of torch.save. Save the tensor alone: "
            "torch.save(x_adv.cpu(), 'x_adv.pt')."
        ) from None
    except Exception as error:  # torch raises many types for a file that is cut off
        raise _damaged(path, error) from None
    if isinstance(content, Mapping):
        key = next((k for k in _IMAGES if k in content), None)
        if key is not None:
            rest = {k: content[k] for k in (*_POSITIONS, *_IDS) if k in content}
            return {"": {"x_adv": _first(content[key])} | rest}
        return {f" ({name})": {"x_adv": _first(value)} for name, value in content.items()}
    return {"": {"x_adv": _first(content)}}


def _first(value: Any) -> Any:
    """The images of AutoAttack's pair of images and predictions."""
    return value[0] if isinstance(value, list | tuple) and len(value) == 2 else value


def _read_npy(path: Path) -> dict[str, dict[str, Any]]:
    return {"": {"x_adv": _numpy(path)}}


def _read_npz(path: Path) -> dict[str, dict[str, Any]]:
    with _numpy(path) as archive:
        try:
            return _named(path, {name: archive[name] for name in archive.files})
        except Exception as error:  # zip, zlib and NumPy raise types of their own
            raise _damaged(path, error) from None


def _numpy(path: Path) -> Any:
    try:
        loaded = np.load(path, allow_pickle=False)
    except Exception as error:
        raise _damaged(path, error) from None
    if isinstance(loaded, np.ndarray) != (path.suffix.lower() == ".npy"):
        raise InputError(f"{path} is not what its name says: rename a single array .npy, an archive .npz.")
    return loaded


def _read_safetensors(path: Path) -> dict[str, dict[str, Any]]:
    from safetensors.torch import load

    body = read_bytes(path)
    try:
        arrays = load(body)
    except Exception as error:  # safetensors' own, and ValueError for dtypes that torch lacks
        raise _damaged(path, error) from None
    if body.find(b'"__metadata__":{"meta":', 8, 64) >= 0:  # one of ours has a checksum, too
        arrays = parse_arrays(body, str(path))[0]
    return _named(path, arrays)


def _named(path: Path, arrays: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    key = next((k for k in _IMAGES if k in arrays), None)
    if key is None:
        held = ", ".join(arrays) or "nothing"
        raise InputError(f"{path} holds {held}; expected x_adv, and position where it is not for all examples.")
    return {"": {"x_adv": arrays[key]} | {k: arrays[k] for k in (*_POSITIONS, *_IDS) if k in arrays}}


_READERS = {
    ".pt": _read_torch,
    ".pth": _read_torch,
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".safetensors": _read_safetensors,
}


def _images(name: str, arrays: Mapping[str, Any], data: Dataset) -> Images:
    x_adv = _pixels(name, _tensor(name, arrays["x_adv"]), data)
    return Images(name, x_adv, _positions(name, arrays, len(x_adv), data))


def _tensor(name: str, value: Any) -> Tensor:
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "fiub":
            raise InputError(f"{name}: images must be numbers, got {value.dtype}.")
        value = torch.from_numpy(np.ascontiguousarray(value, value.dtype.newbyteorder("=")))
    if not isinstance(value, Tensor):
        raise InputError(f"{name}: expected a tensor of images, got {type(value).__name__}; save x_adv alone.")
    if value.layout != torch.strided or value.is_complex():
        raise InputError(f"{name}: expected a plain tensor of real numbers, got {value.dtype}, {value.layout}.")
    return value.detach()


def _pixels(name: str, x_adv: Tensor, data: Dataset) -> Tensor:
    """Checked images, float32 in about [0,1]."""
    shape, got = data.input_shape, list(x_adv.shape)
    if x_adv.ndim != 4 or tuple(got[1:]) != shape or not len(x_adv):
        last = x_adv.ndim == 4 and (got[3], got[1], got[2]) == shape
        hint = "move the channels: x_adv.permute(0, 3, 1, 2)" if last else "give the images as the run's model saw them"
        raise InputError(f"{name}: expected images [N, {', '.join(map(str, shape))}], got {got}; {hint}.")
    if x_adv.dtype == torch.uint8:
        return x_adv.float() / 255
    if not x_adv.is_floating_point():
        raise InputError(
            f"{name}: expected floats in [0,1] or uint8, got {str(x_adv.dtype).removeprefix('torch.')}; divide by 255, "
            "or convert to uint8 what is 0 to 255."
        )
    x_adv = x_adv.float()
    broken = ~torch.isfinite(x_adv).flatten(1).all(1)
    if bool(broken.any()):
        rows = broken.nonzero().flatten().tolist()
        raise InputError(
            f"{name}: {len(rows)} images contain NaN or infinity (rows {rows[:5]}); leave them out and name the rest "
            "by position in an .npz, or put the clean images there."
        )
    low, high = float(x_adv.min()), float(x_adv.max())
    if low < -_SPILL or high > 1 + _SPILL:
        bytes_ = low >= 0 and 1.5 < high <= 255
        hint = "divide by 255" if bytes_ else "undo the normalisation: the run's model does it itself"
        raise InputError(f"{name}: pixels must lie in [0,1], got [{low:g}, {high:g}]; {hint}.")
    return x_adv


def _positions(name: str, arrays: Mapping[str, Any], count: int, data: Dataset) -> Tensor:
    key = next((k for k in (*_POSITIONS, *_IDS) if k in arrays), None)
    if key is None:
        if count != len(data):
            raise InputError(
                f"{name}: expected {len(data)} images, one for each of the run's examples ({data.subset}) in their "
                f"order, got {count}. Give the missing ones as clean images, or an .npz with x_adv and position."
            )
        return torch.arange(count)
    given = _tensor(name, arrays[key]).flatten()
    if given.shape != (count,) or given.is_floating_point() or given.dtype == torch.bool:
        raise InputError(f"{name}: '{key}' must hold an integer for each of {count} images, got {list(given.shape)}.")
    given = given.long()
    if key in _IDS:
        places = {example: place for place, example in enumerate(data.ids.tolist())}
        given = torch.tensor([places.get(example, -1) for example in given.tolist()])
    outside = (given < 0) | (given >= len(data))
    if bool(outside.any()) or given.unique().numel() != count:
        problem = "name no example of the run" if bool(outside.any()) else "name one example more than once"
        raise InputError(f"{name}: values of '{key}' {problem}; its examples have positions 0 to {len(data) - 1}.")
    return given


def _damaged(path: Path, error: Exception) -> InputError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return InputError(f"{path} is damaged, cut off or not a file of its kind ({reason}). Copy or save it again.")
