"""Networks built from what the user names: a registered architecture, or a factory in a module or file of their own."""

import difflib
import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustsuite.errors import InputError, RobustsuiteError
from robustsuite.models.loading import fits
from robustsuite.noise import fork_global
from robustsuite.registry import ARCHITECTURES, FAILURES, load_plugin_file


def build(
    arch: str,
    params: Mapping[str, Any],
    *,
    num_classes: int,
    input_shape: tuple[int, ...],
    device: str = "cpu",
    seed: int = 0,
) -> nn.Module:
    """The network that ``arch`` names: a registered architecture or ``py:module:factory`` / ``py:file.py:factory``.

    The factory gets ``num_classes`` and ``input_shape`` where its signature names them, and ``params``, which win.
    Weights drawn at construction depend on ``seed`` alone. Raises `InputError` with the reason when the factory cannot
    be found, rejects the parameters, fails, or returns no module.
    """
    if not arch.startswith("py:"):
        return _call(arch, ARCHITECTURES.get(arch).target, params, num_classes, input_shape, device, seed)
    with _importable(arch):
        target = _imported(arch)
        if isinstance(target, nn.Module):
            return target
        return _call(arch, target, params, num_classes, input_shape, device, seed)


def fitting(state: Mapping[str, Tensor], *, num_classes: int, input_shape: tuple[int, ...]) -> list[str]:
    """Registered architectures whose default parameters give exactly these names and shapes."""
    names = []
    for entry in ARCHITECTURES:
        try:
            # Nothing is allocated or drawn on the meta device, so trying them all costs milliseconds.
            net = build(entry.name, {}, num_classes=num_classes, input_shape=input_shape, device="meta")
        except RobustsuiteError:
            continue  # it cannot be built for such images
        if fits(net.state_dict(), state):
            names.append(entry.name)
    return names


def source_sha256(arch: str) -> dict[str, str]:
    """Name and sha256 of the user's file behind ``py:file.py:factory`` (or an imported module); empty otherwise."""
    if not arch.startswith("py:"):
        return {}
    place = _parts(arch)[0]
    file = place if place.endswith(".py") else getattr(sys.modules.get(place), "__file__", None)
    return {Path(file).name: hashlib.sha256(Path(file).read_bytes()).hexdigest()} if file else {}


def _call(
    arch: str,
    factory: Any,
    params: Mapping[str, Any],
    num_classes: int,
    input_shape: tuple[int, ...],
    device: str,
    seed: int,
) -> nn.Module:
    if not callable(factory):
        raise InputError(
            f"'{arch}' is a {type(factory).__name__}; a function or class that gives a module is expected."
        )
    arguments = _arguments(arch, factory, params, {"num_classes": num_classes, "input_shape": input_shape})
    try:
        with fork_global(seed, "robustsuite.models.factory"), torch.device(device):
            net = factory(**arguments)
    except RobustsuiteError:
        raise
    except Exception as error:  # a user's factory may raise anything
        raise InputError(f"the factory '{arch}' failed with {_given(arguments)}: {_reason(error)}.") from error
    if not isinstance(net, nn.Module):
        raise InputError(f"the factory '{arch}' must return a torch.nn.Module, got {type(net).__name__}.")
    return net


def _arguments(
    arch: str, factory: Callable[..., Any], params: Mapping[str, Any], implicit: Mapping[str, Any]
) -> dict[str, Any]:
    try:
        signature = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # built-ins without a signature get what the user typed
        return dict(params)
    named = [n for n, p in signature.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    takes_all = any(p.kind is p.VAR_KEYWORD for p in signature.values())
    unknown = [name for name in params if name not in named]
    if unknown and not takes_all:
        near = difflib.get_close_matches(unknown[0], named, n=1, cutoff=0.5)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise InputError(f"'{arch}' takes no parameter '{unknown[0]}'.{hint} It takes {', '.join(named) or 'none'}.")
    return {k: v for k, v in implicit.items() if k in named} | dict(params)


def _parts(arch: str) -> tuple[str, str]:
    place, _, name = arch.removeprefix("py:").rpartition(":")
    if not place or not name:
        raise InputError(f"'{arch}' is not complete; expected py:module:factory or py:path/file.py:factory.")
    return place, name


def _imported(arch: str) -> Any:
    place, name = _parts(arch)
    if place.endswith(".py"):
        module = load_plugin_file(place)
        if module is None:
            reason = FAILURES.pop().reason  # fatal here, so it is said once, below
            raise InputError(f"{place} could not be imported: {reason.splitlines()[0]}.")
    else:
        try:
            module = importlib.import_module(place)
        except Exception as error:  # a user's module may raise anything
            raise InputError(f"the module '{place}' of '{arch}' could not be imported: {_reason(error)}.") from error
    target: Any = module
    for part in name.split("."):
        if not hasattr(target, part):
            public = [n for n in vars(module) if not n.startswith("_")]
            near = difflib.get_close_matches(part, public, n=2, cutoff=0.5)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            raise InputError(f"{place} has no '{name}'.{hint}")
        target = getattr(target, part)
    return target


@contextmanager
def _importable(arch: str) -> Iterator[None]:
    """The user's folder on the import path, as if they had run Python there."""
    place = _parts(arch)[0]
    folder = str(Path(place).resolve().parent if place.endswith(".py") else Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _given(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{k}={v!r}" for k, v in arguments.items()) or "no parameters"


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
