"""From what the user names to the plugin that it means, and to the checks of its kind."""

import difflib
import importlib
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from robustsuite.attacks.base import Attack
from robustsuite.certification.base import Certifier
from robustsuite.defenses.base import FitMethod, StepMethod, WrapMethod
from robustsuite.errors import InputError, RobustsuiteError
from robustsuite.registry import FAILURES, REGISTRIES, Entry, Registry, load_plugin_file
from robustsuite.testing.architecture import check_architecture
from robustsuite.testing.attack import check_attack
from robustsuite.testing.certifier import check_certifier
from robustsuite.testing.dataset import check_dataset
from robustsuite.testing.defense import check_defense
from robustsuite.testing.finding import Finding


@dataclass(frozen=True)
class _Kind:
    check: Callable[..., list[Finding]]
    bases: tuple[type, ...]
    decorator: str


_KINDS = {
    "attack": _Kind(
        check_attack, (Attack,), '@register_attack("NAME", norms=("Linf",), access="white-box", kind="bounded")'
    ),
    "certifier": _Kind(check_certifier, (Certifier,), '@register_certifier("NAME", norms=("Linf",))'),
    "defense": _Kind(check_defense, (StepMethod, FitMethod, WrapMethod), '@register_defense("NAME", kind="step")'),
    "dataset": _Kind(check_dataset, (), '@register_dataset("NAME")'),
    "architecture": _Kind(check_architecture, (), '@register_architecture("NAME")'),
}


def check_plugin(target: Any, params: Mapping[str, Any] | None = None) -> tuple[Entry, list[Finding]]:
    """The plugin that ``target`` means, and the findings on it.

    ``target``: ``my_attack.py:MyAttack``, ``my_attack.py`` (when it registers one thing), ``package.module:NAME``, a
    registered name (``pgd``; ``defense:ibp`` where several kinds share it), or the object itself. ``params`` are
    hyper-parameters to check it with. Raises `InputError` when there is no such thing or its file fails to import; a
    plugin that is not registered is a failed finding.
    """
    name = target if isinstance(target, str) else None
    thing = _resolve(target) if name is not None else target
    found = _registered(thing)
    if found is None:
        return _unregistered(thing)
    registry, entry = found
    check = _KINDS[registry.kind].check
    return entry, check(entry) if registry.kind == "dataset" else check(entry, params or {})


def _registered(thing: Any) -> tuple[Registry, Entry] | None:
    for registry in REGISTRIES.values():
        registry.discover()
        for entry in registry.entries.values():
            if entry is thing or entry.target is thing:
                return registry, entry
    return None


def _unregistered(thing: Any) -> tuple[Entry, list[Finding]]:
    name = getattr(thing, "__name__", type(thing).__name__)
    fits = [k for k in _KINDS.values() if isinstance(thing, type) and k.bases and issubclass(thing, k.bases)]
    remedy = " or ".join(k.decorator for k in fits or _KINDS.values())
    instance = f" (an instance of {type(thing).__name__}; the class itself is wanted)"
    detail = f"{name} is not registered{'' if isinstance(thing, type) or inspect.isroutine(thing) else instance}."
    finding = Finding("registered", False, detail, f"Put {remedy} above it, as the topmost decorator.")
    return Entry(name, thing, {}, getattr(thing, "__module__", "?")), [finding]


def _resolve(target: str) -> Any:
    """The object that a text names; raises `InputError` otherwise."""
    named = [entry for registry in REGISTRIES.values() for entry in registry if entry.name == target]
    if len(named) == 1:
        return named[0]
    if named:
        kinds = [f"{r.kind}:{target}" for r in REGISTRIES.values() if target in r]
        raise InputError(f"'{target}' is the name of several plugins; write {' or '.join(kinds)}.")
    place, _, name = target.rpartition(":")
    for registry in REGISTRIES.values():
        if place == registry.kind:
            return registry.get(name)
    if target.endswith(".py"):
        place, name = target, ""
    if not place:
        raise InputError(_unknown(target))
    module = _file(Path(place)) if place.endswith(".py") else _module(place)
    return _pick(module, place, name)


def _unknown(target: str) -> str:
    names = [entry.name for registry in REGISTRIES.values() for entry in registry]
    near = difflib.get_close_matches(target, names, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
    return f"no plugin '{target}'.{hint} Write FILE.py:NAME, package.module:NAME or a registered name."


def _pick(module: ModuleType, place: str, name: str) -> Any:
    here = {e.target.__name__: e.target for r in REGISTRIES.values() for e in r if _defined_in(e.target, module)}
    offered = f"it registers {', '.join(here)}" if here else "it registers nothing"
    if not name:
        if len(here) == 1:
            return next(iter(here.values()))
        raise InputError(f"{place} must be checked one name at a time, as {place}:NAME; {offered}.")
    if hasattr(module, name):
        return getattr(module, name)
    aliases = [e.target for r in REGISTRIES.values() for e in r if e.name == name and _defined_in(e.target, module)]
    if aliases:
        return aliases[0]
    near = difflib.get_close_matches(name, [*here, *vars(module)], n=1, cutoff=0.5)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    raise InputError(f"{place} has no '{name}'.{hint} ({offered}.)")


def _defined_in(thing: Any, module: ModuleType) -> bool:
    return getattr(thing, "__module__", None) == module.__name__ and hasattr(thing, "__name__")


def _file(path: Path) -> ModuleType:
    module = load_plugin_file(path)
    if module is None:
        raise InputError(f"plugin file {path} fails to import: {FAILURES[-1].reason}.")
    return module


def _module(name: str) -> ModuleType:
    if not re.fullmatch(r"\w+(\.\w+)*", name):
        raise InputError(f"'{name}' is neither a Python file (.py) nor a module's name.")
    try:
        return importlib.import_module(name)
    except RobustsuiteError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(
            f"the module {name} fails to import: {type(error).__name__}: {error}. "
            "Check its name, and that it is installed."
        ) from error
