"""Weights files read safely: what kind of file it is, where the state dict lies in it, and what its tensors hash to."""

import argparse
import hashlib
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from robustsuite.errors import InputError

CONTAINERS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model", "net", "weights", "params")
"""Keys under which training scripts keep the state dict, the first one found wins."""

SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".model", ".bin", ".tar")
"""Endings that a weights file usually has; the first bytes decide what it is."""

_WRAPPERS = ("module.", "_orig_mod.")  # DistributedDataParallel and torch.compile


@dataclass(frozen=True)
class StateFile:
    """A state dict as it lay in its file, wrapper prefixes removed."""

    state: dict[str, Tensor]
    format: str
    """``pt`` (zip), ``pt-legacy`` (plain pickle) or ``safetensors``."""
    container: str | None = None
    """Where in the file it lay, such as ``state_dict[0]``; None: at the top."""
    extra: dict[str, Any] = field(default_factory=dict)
    """What else lay at the top: epoch, accuracy, arguments, metadata."""
    unpickled: bool = False
    """Whether it took unsafe unpickling to read it."""


def read_state(path: str | Path, *, trust_pickle: bool = False) -> StateFile:
    """Read the state dict of a checkpoint onto the CPU.

    Pickles are read with ``weights_only=True``; one that names other globals is refused, unless ``trust_pickle``
    says that its code may run. Raises `InputError` on anything that is not a whole checkpoint.
    """
    path = Path(path)
    kind = sniff(path)
    if kind == "safetensors":
        state, extra = _read_safetensors(path)
        return StateFile(_unwrap_names(state), kind, None, extra)
    content, unpickled = _read_pickle(path, kind, trust_pickle)
    state, container = _find_state(path, content, "")
    tensors = {k: v.detach() for k, v in state.items() if isinstance(v, Tensor)}
    extra = {k: v for k, v in state.items() if k not in tensors}
    if container and isinstance(content, Mapping):
        top = container.split(".")[0].split("[")[0]
        extra |= {k: v for k, v in content.items() if k != top}
    return StateFile(_unwrap_names(tensors), kind, container or None, extra, unpickled)


def sniff(path: Path) -> str:
    """``safetensors``, ``pt`` or ``pt-legacy`` from the first bytes; raises `InputError` for everything else."""
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint file.")
    with path.open("rb") as file:
        head = file.read(512)
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if not head:
        raise InputError(f"{path} is empty; download or copy it again.")
    if text.startswith(b"<"):
        raise InputError(f"{path} is an HTML or XML page, not a checkpoint: the download failed. Download it again.")
    if head.startswith(b"version https://git-lfs"):
        raise InputError(f"{path} is a Git LFS pointer, not the file itself; run `git lfs pull` where it came from.")
    if head.startswith(b"PK\x03\x04"):
        return _sniff_zip(path)
    if head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= 100_000_000:
        return "safetensors"
    if head[:1] == b"\x80" and 2 <= head[1] <= 5:
        return "pt-legacy"
    raise InputError(
        f"{path} is not a checkpoint (it begins with {head[:16]!r}); "
        "a .safetensors file or one written by torch.save was expected."
    )


def _sniff_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        raise InputError(f"{path} is cut off: the end of the zip archive is missing. Download it again.") from None
    if any(n.endswith("/constants.pkl") for n in names):
        raise InputError(f"{path} is a TorchScript archive; save the state_dict of the module instead.")
    if any(n.endswith("data.pkl") for n in names):
        return "pt"
    held = "a NumPy .npz" if all(n.endswith(".npy") for n in names) else "a zip archive"
    raise InputError(f"{path} is {held} without torch tensors (it holds {', '.join(names[:3]) or 'nothing'}).")


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        state = load_file(path)
    except (SafetensorError, ValueError, RuntimeError, OSError) as error:
        raise InputError(
            f"{path} is a damaged or cut off safetensors file ({_first_line(error)}). Copy it again."
        ) from None
    if not state:
        raise InputError(f"{path} holds no tensor.")
    return state, {}


def _read_pickle(path: Path, kind: str, trust_pickle: bool) -> tuple[Any, bool]:
    """The pickled content, and whether reading it could run code."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True), False
    except pickle.UnpicklingError as error:
        refused = _refused_globals(path, error)
        if not refused:
            raise _damaged(path, error) from None
        if not trust_pickle:
            raise InputError(
                f"{path} was refused: loading it runs code, for it names the globals {', '.join(refused)}. "
                "Ask its author for a plain state dict or a .safetensors file; if you trust where it came from, "
                "add --trust-pickle (the record will say so)."
            ) from None
    except Exception as error:  # torch raises many types for a file that is cut off
        raise _damaged(path, error) from None
    try:
        return torch.load(path, map_location="cpu", weights_only=False), True
    except Exception as error:  # the file's own code runs here and may raise anything
        raise InputError(
            f"{path} could not be unpickled although it is trusted ({type(error).__name__}: {_first_line(error)}). "
            "The modules that it names must be importable here."
        ) from None


def _refused_globals(path: Path, error: Exception) -> list[str]:
    named = re.findall(
        r"(?:Unsupported global: GLOBAL|WeightsUnpickler error:? Unsupported class) ([\w.]+)", str(error)
    )
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            named += torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # the legacy format has no such list; what the error names must do
        pass
    return sorted(set(named))


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(
        f"{path} is damaged or cut off and could not be read "
        f"({type(error).__name__}: {_first_line(error)}). Download or copy it again."
    )


def _find_state(path: Path, content: Any, where: str) -> tuple[Mapping[str, Any], str]:
    """The mapping that holds the tensors, and its place in the file; raises `InputError` when there is not one."""
    if isinstance(content, nn.Module):
        return content.state_dict(), where or "module"
    if isinstance(content, list | tuple):
        held = [i for i, item in enumerate(content) if _may_hold_state(item)]
        if len(held) == 1:
            return _find_state(path, content[held[0]], f"{where}[{held[0]}]")
        raise InputError(
            f"{path}: {where or 'the file'} is a list with {len(held)} state dicts, exactly one is expected; "
            "save the one that is meant on its own."
        )
    if not isinstance(content, Mapping):
        raise InputError(f"{path} holds a {type(content).__name__}, not a state dict; save model.state_dict().")
    for key in CONTAINERS:
        if _may_hold_state(content.get(key)):
            return _find_state(path, content[key], f"{where}.{key}" if where else key)
    if any(isinstance(v, Tensor) for v in content.values()):
        return content, where
    held = [k for k, v in content.items() if isinstance(v, nn.Module) or _all_tensors(v)]
    if len(held) == 1:
        return _find_state(path, content[held[0]], f"{where}.{held[0]}" if where else str(held[0]))
    raise InputError(
        f"{path}: no state dict found in it. Its keys are {', '.join(map(str, list(content)[:12])) or '(none)'}; "
        f"expected tensors, or one of {', '.join(CONTAINERS)}."
    )


def _may_hold_state(value: Any) -> bool:
    """Whether there are tensors in it: a key such as ``model`` may just as well hold a name or settings."""
    if isinstance(value, Mapping):
        return any(isinstance(v, Tensor) or _may_hold_state(v) for v in value.values())
    return isinstance(value, nn.Module) or (isinstance(value, list | tuple) and any(map(_may_hold_state, value)))


def _all_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and len(value) > 0 and all(isinstance(v, Tensor) for v in value.values())


def _unwrap_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names without the prefixes of DistributedDataParallel, AveragedModel and torch.compile, however stacked."""
    named = {str(k).replace("._orig_mod.", "."): v for k, v in state.items()}
    if "n_averaged" in named and all(k == "n_averaged" or k.startswith("module.") for k in named):
        del named["n_averaged"]  # AveragedModel's counter, no part of the network
    while named and (prefix := next((w for w in _WRAPPERS if all(k.startswith(w) for k in named)), None)):
        named = {k.removeprefix(prefix): v for k, v in named.items()}
    return named


def weights_sha256(state: Mapping[str, Tensor]) -> str:
    """sha256 over name, dtype, shape and bytes of every tensor in the names' order, whatever file they came from."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{str(tensor.dtype).removeprefix('torch.')}\0{list(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
