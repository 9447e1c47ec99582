"""Models of robustbench's zoo, ``robustbench:NAME@DATASET/THREAT``, and what keeps its package from working.

Its checkpoints are read from ``MODEL_DIR/DATASET/THREAT/NAME.pt`` by its own loader; nothing is downloaded. Neither
torch nor robustbench is imported before a model is loaded.
"""

import argparse
import base64
import difflib
import hashlib
import importlib
import importlib.metadata as metadata
import os
import pickle
import re
import shlex
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustsuite.errors import InputError, PrerequisiteError, UsageError

if TYPE_CHECKING:
    from torch import nn

PREFIX = "robustbench:"
ENVIRONMENT = "ROBUSTSUITE_MODEL_DIR"
REPAIR = "pip install --force-reinstall --no-deps robustbench==1.1.1"
_CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet": 1000}
_FORM = "write it like robustbench:Wong2020Fast@cifar10/Linf"


@dataclass(frozen=True)
class ZooModel:
    """A name of the zoo with its data set and the threat model that it was trained for."""

    name: str
    dataset: str
    threat: str

    @classmethod
    def parse(cls, reference: str) -> "ZooModel":
        """Read ``robustbench:NAME@DATASET/THREAT``; raises `UsageError` otherwise."""
        name, _, place = reference.removeprefix(PREFIX).partition("@")
        dataset, _, threat = place.partition("/")
        if not (name and dataset and threat):
            raise UsageError(f"'{reference}' is not complete; {_FORM}.")
        if dataset not in _CLASSES:
            raise UsageError(
                f"'{reference}': robustbench has no data set '{dataset}' ({', '.join(_CLASSES)}); {_FORM}."
            )
        return cls(name, dataset, threat)


def is_zoo(reference: str) -> bool:
    """Whether ``reference`` names a model of the zoo."""
    return reference.startswith(PREFIX)


def num_classes(reference: str | None) -> int | None:
    """Classes of the model's data set; None when ``reference`` names no model of the zoo."""
    return _CLASSES[ZooModel.parse(reference).dataset] if reference and is_zoo(reference) else None


def refuse(options: list[str]) -> None:
    """Raise `UsageError` for loading options that were typed: robustbench builds and normalises its networks itself."""
    if options:
        raise UsageError(f"robustbench builds and normalises its networks itself; leave out {', '.join(options)}.")


def load(reference: str, *, model_dir: str | Path | None = None, trust_pickle: bool = False) -> "nn.Module":
    """The network that robustbench's ``load_model`` gives, its checkpoint read from ``model_dir``.

    Raises `PrerequisiteError` when the package or the checkpoint is not there, or other files lie where the package's
    should; `InputError` for an unknown name or a checkpoint that is damaged or does not fit.
    """
    model = ZooModel.parse(reference)
    folder = Path(model_dir or os.environ.get(ENVIRONMENT) or "models")
    package = _package()
    files = _checkpoints(_entry(package, model), folder, model)
    from robustsuite.models.checkpoint import sniff

    for file in files:
        sniff(file)
    try:
        with _reading(trust_pickle):
            return package.utils.load_model(
                model.name, model_dir=folder, dataset=model.dataset, threat_model=model.threat
            )
    except pickle.UnpicklingError as error:
        raise _unreadable(files, error) from None
    except (RuntimeError, KeyError, AttributeError, TypeError) as error:  # its loader checks nothing
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise InputError(
            f"robustbench cannot load {model.name} from {', '.join(map(str, files))} ({reason}); "
            "is it the checkpoint of that name?"
        ) from None


def _entry(package: Any, model: ZooModel) -> dict[str, Any]:
    zoo = {
        data.value: {t.value: models for t, models in by.items()} for data, by in package.model_zoo.model_dicts.items()
    }
    by_threat = zoo[model.dataset]
    if model.threat not in by_threat:
        raise InputError(
            f"robustbench has no models for '{model.dataset}/{model.threat}'; it has {', '.join(by_threat)}."
        )
    names = list(by_threat[model.threat])
    if model.name in names:
        return by_threat[model.threat][model.name]
    near = difflib.get_close_matches(model.name, names, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"It has {', '.join(names)}."
    raise InputError(f"robustbench has no model '{model.name}' for {model.dataset}/{model.threat}. {hint}")


def _checkpoints(entry: dict[str, Any], folder: Path, model: ZooModel) -> list[Path]:
    """The files that its loader will open; raises `PrerequisiteError` that says how to get those that are absent."""
    drive = entry.get("gdrive_id")
    if drive is None or (model.dataset == "imagenet" and "Standard" in model.name):
        raise PrerequisiteError(
            f"the weights of {model.name} do not lie in robustbench's model folder, its loader fetches them from the "
            "network, which robustsuite does not do by itself; load it in a module of your own and name that: "
            "py:module:factory."
        )
    path = folder / model.dataset / model.threat / f"{model.name}.pt"
    parts = drive if isinstance(drive, list) else [drive]
    files = [Path(f"{path}_m{i}.pt") for i in range(len(parts))] if isinstance(drive, list) else [path]
    absent = [(file, part) for file, part in zip(files, parts, strict=True) if not file.is_file()]
    if absent:
        get = " && ".join(f"gdown {part} -O {shlex.quote(str(file))}" for file, part in absent)
        raise PrerequisiteError(
            f"no checkpoint at {', '.join(str(file) for file, _ in absent)}. Nothing is downloaded by itself; get it "
            f"with: mkdir -p {shlex.quote(str(path.parent))} && {get}, or say where it lies: --model-dir DIR (or "
            f"{ENVIRONMENT}) with DIR/DATASET/THREAT/NAME.pt."
        )
    return files


@contextmanager
def _reading(trust_pickle: bool) -> Iterator[None]:
    """Plain tensors only, unless the file is trusted; what its constructors draw depends on nothing before."""
    import torch

    from robustsuite.noise import fork_global

    switch = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"  # its loader leaves torch.load's arguments at their defaults
    before = os.environ.get(switch)
    if trust_pickle:
        os.environ[switch] = "1"
    try:
        with (
            torch.serialization.safe_globals([argparse.Namespace]),
            fork_global(0, "robustsuite.models.robustbench"),
            warnings.catch_warnings(),
        ):
            warnings.filterwarnings("ignore", message=f"Environment variable {switch}")
            yield
    finally:
        os.environ.pop(switch, None)
        if before is not None:
            os.environ[switch] = before


def _unreadable(files: list[Path], error: Exception) -> Exception:
    """The suite's own words on a checkpoint that torch refuses to read."""
    from robustsuite.models.checkpoint import read_state

    for file in files:
        try:
            read_state(file)
        except InputError as reason:
            return reason
    return InputError(f"{', '.join(map(str, files))} cannot be read: {error}.")


def _package() -> Any:
    """robustbench, imported in spite of what it lacks; raises `PrerequisiteError` with the command that mends it."""
    reason = obstacle()
    if reason:
        raise PrerequisiteError(f"{PREFIX}... cannot be used: {reason}.")
    with _autoattack_lent(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations of what it imports: nothing that a user of the suite can mend
        try:
            importlib.import_module("robustbench.utils")
            return importlib.import_module("robustbench")
        except Exception as error:  # such as torchvision's operators that do not fit torch
            raise PrerequisiteError(
                f"robustbench is installed but cannot be imported ({type(error).__name__}: {error}); "
                "robustsuite doctor looks for the known reasons."
            ) from error


@contextmanager
def _autoattack_lent() -> Iterator[None]:
    """robustbench 1.1.1 depends on pyautoattack but imports ``autoattack``: known by that name for the import only."""
    if find_spec("autoattack") is not None:
        yield
        return
    lent = {"autoattack": "pyautoattack", "autoattack.state": "pyautoattack.state"}
    for alias, name in lent.items():
        sys.modules[alias] = importlib.import_module(name)
    try:
        yield
    finally:
        for alias in lent:
            sys.modules.pop(alias, None)


def obstacle() -> str | None:
    """Why robustbench cannot work here, with the command that mends it; None when nothing is known to be wrong."""
    if not installed():
        return "the package robustbench is not installed: pip install 'robustsuite[reference]'"
    altered = altered_files()
    if altered:
        return f"{len(altered)} of robustbench's files are not its own (such as {altered[0]}): {REPAIR}"
    if find_spec("pkg_resources") is None:
        return (
            "robustbench imports pkg_resources, which setuptools 81 and newer do not have: pip install 'setuptools<81'"
        )
    if find_spec("autoattack") is None and find_spec("pyautoattack") is None:
        return "robustbench needs pyautoattack: pip install 'robustsuite[reference]'"
    return None


def installed() -> bool:
    """Whether robustbench is installed, working or not."""
    try:
        metadata.version("robustbench")
    except metadata.PackageNotFoundError:
        return False
    return True


def altered_files() -> list[str]:
    """Files of robustbench that are gone or have another content than its RECORD says.

    torchattacks 3.5.1 ships a ``robustbench/`` of 2022: installed later it overwrites files, uninstalled it takes
    them away.
    """
    return [str(file) for file in metadata.files("robustbench") or [] if not _as_recorded(file)]


def _as_recorded(file: metadata.PackagePath) -> bool:
    """Only code counts, and only what the package calls its own; RECORD itself and byte code have no hash."""
    hashed = getattr(file, "hash", None)
    if hashed is None or file.parts[0] != "robustbench":
        return True
    place = Path(str(file.locate()))
    if not place.is_file():
        return False
    digest = hashlib.new(hashed.mode, place.read_bytes()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode() == hashed.value


def unmet_pins() -> list[str]:
    """Packages that robustbench pins to one version and that are here in another, such as ``timm 1.0.20 (==1.0.9)``."""
    unmet = []
    for need in metadata.requires("robustbench") or []:
        pin = re.fullmatch(r"([\w.-]+)\s*\(?==\s*([\w.]+)\)?", need)
        if pin is None:
            continue
        try:
            version = metadata.version(pin[1])
        except metadata.PackageNotFoundError:
            version = "absent"
        if version != pin[2]:
            unmet.append(f"{pin[1]} {version} (=={pin[2]})")
    return unmet
