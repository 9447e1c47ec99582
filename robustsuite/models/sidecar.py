"""The YAML beside a checkpoint that says how to load it; `save_checkpoint` writes both, atomically."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import save
from torch import Tensor

from robustsuite.errors import InputError, PrerequisiteError
from robustsuite.models.checkpoint import weights_sha256


class Normalization(BaseModel):
    """One mean and one std a channel, for images in [0,1]."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    mean: tuple[float, ...]
    std: tuple[float, ...]


class Sidecar(BaseModel):
    """Version 1. Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    version: Literal[1] = 1
    arch: str
    """A registered architecture or ``py:module:factory``."""
    arch_params: dict[str, Any] = {}
    num_classes: int = Field(ge=2)
    input_shape: tuple[int, int, int]
    """(C, H, W) of the images in [0,1]."""
    normalization: Normalization | None = None
    weights_sha256: str = ""
    """Over the tensors; filled in by `save_checkpoint`."""
    output: Literal["logits", "probabilities"] = "logits"
    randomized: bool = False
    wrap: dict[str, Any] | None = None
    """The inference-time defense to put around it: ``name`` and its parameters. Carried here, applied elsewhere.

    Values that begin with ``./`` or ``../`` are paths, relative to the sidecar's folder (see `placed`).
    """
    defense: dict[str, Any] | None = None
    """How it was trained: ``name``, parameters, seed, data fingerprint, ..."""


def save_checkpoint(path: str | Path, state: Mapping[str, Tensor], sidecar: Sidecar) -> Path:
    """Write ``state`` to ``path`` (ending .safetensors, added if absent) and the sidecar beside it; return the former.

    Each file appears whole or not at all, the weights first: what a kill between the two leaves behind is told by the
    hash. Raises `PrerequisiteError` when they cannot be written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        path = path.with_name(f"{path.name}.safetensors")
    tensors = _on_cpu(state)
    sidecar = sidecar.model_copy(update={"weights_sha256": weights_sha256(tensors)})
    text = yaml.safe_dump(sidecar.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True)
    _write(path, {path: save(tensors), sidecar_path(path): text.encode()})
    return path


def save_weights(path: Path, state: Mapping[str, Tensor]) -> Path:
    """Write the weights alone, for a part that a sidecar elsewhere speaks of; raises as `save_checkpoint`."""
    _write(path, {path: save(_on_cpu(state))})
    return path


def placed(value: Any, folder: Path) -> Any:
    """``value`` with the paths in it that begin with ``./`` or ``../`` taken from ``folder``."""
    if isinstance(value, str):
        return os.path.normpath(folder / value) if value.startswith(("./", "../")) else value
    if isinstance(value, dict):
        return {key: placed(item, folder) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [placed(item, folder) for item in value]
    return value


def beside(path: str, folder: Path) -> str:
    """``path`` as `placed` finds it again from ``folder``; what is no file or folder stays as it is."""
    if not path or not Path(path).exists():
        return path
    relative = Path(os.path.relpath(path, folder)).as_posix()
    return relative if relative.startswith("../") else f"./{relative}"


def _on_cpu(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}


def _write(path: Path, files: Mapping[Path, bytes]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for file, content in files.items():
            _replace(file, content)
    except OSError as error:
        raise PrerequisiteError(f"cannot write the checkpoint {path}: {error.strerror or error}.") from error


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def sidecar_path(weights: Path) -> Path:
    """Where the sidecar of a weights file lies: the same name, ending .yaml."""
    return weights.with_suffix(".yaml")


def find_sidecar(weights: str | Path) -> Sidecar | None:
    """The sidecar beside a weights file, None where there is none; raises `InputError` as `read_sidecar` does."""
    path = sidecar_path(Path(weights))
    return read_sidecar(path) if path.is_file() else None


def read_sidecar(path: Path) -> Sidecar:
    """Read and check one sidecar; raises `InputError` that names each key that is unknown, absent or wrong."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not readable YAML ({' '.join(str(error).split())[:200]}).") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a sidecar: expected keys and values, got {type(content).__name__}.")
    try:
        return Sidecar.model_validate(content)
    except ValidationError as error:
        problems = "; ".join(_in_words(e["loc"], e["type"], e["msg"]) for e in error.errors())
        raise InputError(
            f"{path} is not a valid sidecar: {problems}. The keys are {', '.join(Sidecar.model_fields)}. "
            "If the file is something else, rename it: this name belongs to the checkpoint beside it."
        ) from None


def _in_words(place: tuple[int | str, ...], kind: str, message: str) -> str:
    key = ".".join(map(str, place))
    if kind == "extra_forbidden":
        return f"unknown key '{key}'"
    if kind == "missing":
        return f"the key '{key}' is missing"
    return f"'{key}': {message[:1].lower()}{message[1:]}"


def check_weights(sidecar: Sidecar, state: Mapping[str, Tensor], path: Path) -> None:
    """Raise `InputError` when the sidecar speaks of other weights than those in the file."""
    found = weights_sha256(state)
    if sidecar.weights_sha256 and sidecar.weights_sha256 != found:
        raise InputError(
            f"{path}: the weights hash to {found[:16]}..., but its sidecar says {sidecar.weights_sha256[:16]}...; "
            f"one of the two files was replaced. Restore the pair, or remove {sidecar_path(path).name} and name the "
            "architecture yourself."
        )


def trained_with(defense: dict[str, Any]) -> str:
    """``trades+awp+ema``: the base and its modifiers; empty where the sidecar names none."""
    base = defense.get("name") or defense.get("method") or ""
    parts = modifiers if base and isinstance(modifiers := defense.get("modifiers"), list) else []
    return "+".join([str(base), *(str(part.get("name")) for part in parts if isinstance(part, dict))])
