"""Methods by name: a base, its modifiers, and which parameter belongs to which."""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from robustsuite.defenses.base import FitMethod, StepMethod
from robustsuite.defenses.composed import Composed, compose
from robustsuite.errors import ContractError, RobustsuiteError, UsageError
from robustsuite.registry import DEFENSES, Entry


def make_method(name: str, params: Mapping[str, Any] | None = None) -> StepMethod:
    """The step method or modifier registered as ``name`` with hyper-parameters ``params``.

    Raises `UnknownNameError` for the name, `UsageError` for a parameter that it does not have or refuses, or when it is
    not a defense that trains, `ContractError` when its class is not a dataclass.
    """
    return _made(_entry(name), params)


def make_trainable(
    name: str, modifiers: Sequence[str] = (), params: Mapping[str, Any] | None = None, defaults: str | None = None
) -> Composed | FitMethod:
    """What ``name`` trains with: `make_composed`, or the fit method of that name.

    A fit method owns its loop, so that modifiers of the loop's steps are refused. Raises as `make_composed`.
    """
    entry = DEFENSES.get(name)
    if not (isinstance(entry.target, type) and issubclass(entry.target, FitMethod)):
        return make_composed(name, modifiers, params, defaults)
    if modifiers:
        raise UsageError(
            f"{name} is a fit method, which owns its loop, and {' and '.join(modifiers)} would fill slots of the step "
            "loop; leave --with out."
        )
    _check_dataclass(entry)
    chosen = _published(entry, defaults)
    for key, value in (params or {}).items():
        part, dot, parameter = key.rpartition(".")
        if dot and part != name:
            raise UsageError(f"-D {key} is for '{part}', which is not trained here; the parts are: {name}.")
        chosen[parameter] = value
    return _made(entry, chosen)


def _made(entry: Entry, params: Mapping[str, Any] | None) -> Any:
    name, known = entry.name, _fields(entry)
    for key in params or {}:
        if key not in known:
            raise UsageError(_unknown(f"the defense '{name}' has no parameter '{key}'", key, known))
    try:
        return entry.target(**dict(params or {}))
    except RobustsuiteError:
        raise
    except Exception as error:  # a plugin's own checks may raise anything
        raise UsageError(f"the defense '{name}' refuses {dict(params or {})}: {error}") from error


def make_composed(
    name: str, modifiers: Sequence[str] = (), params: Mapping[str, Any] | None = None, defaults: str | None = None
) -> Composed:
    """``name`` with ``modifiers``, as one method; a modifier that is named as the base gets its paper's base.

    A parameter is the base's if it has one of that name, else the one modifier's that has; ``part.parameter`` says
    which. ``defaults``: start from each part's published hyper-parameters for that data set. Raises as `make_method`,
    and `UsageError` for combinations that cannot be.
    """
    names = [name, *modifiers]
    if _entry(name).facts.get("kind") == "modifier":
        names.insert(0, _entry(name).target.base)
    for modifier in names[1:]:
        if _entry(modifier).facts.get("kind") != "modifier":
            offered = ", ".join(e.name for e in DEFENSES if e.facts.get("kind") == "modifier")
            raise UsageError(
                f"'{modifier}' is no modifier but a base of its own, and one training has one base ({names[0]}); "
                f"the modifiers are: {offered}."
            )
    chosen = {part: _published(_entry(part), defaults) for part in names}
    for key, value in (params or {}).items():
        part, parameter = _owner(key, names)
        chosen[part][parameter] = value
    base, *others = [(part, make_method(part, chosen[part])) for part in names]
    return compose(base, *others)


def as_composed(method: StepMethod) -> Composed:
    """``method`` as the loop runs it."""
    if isinstance(method, Composed):
        return method
    hyper_parameters(method)
    return compose((defense_name(method), method))


def described(method: Composed | FitMethod) -> list[dict[str, Any]]:
    """Name and hyper-parameters of the base and of each modifier."""
    if isinstance(method, FitMethod):
        return [{"name": defense_name(method), "params": hyper_parameters(method)}]
    return [{"name": name, "params": hyper_parameters(part)} for name, part in method.parts]


def defense_name(method: StepMethod | FitMethod) -> str:
    """The name that ``method``'s class is registered under, or the class's own."""
    return next((entry.name for entry in DEFENSES if entry.target is type(method)), type(method).__name__)


def hyper_parameters(method: StepMethod | FitMethod) -> dict[str, Any]:
    """The fields of ``method``; raises `ContractError` when it is no training-time defense and dataclass."""
    if not isinstance(method, StepMethod | FitMethod) or not dataclasses.is_dataclass(method):
        raise ContractError(
            f"{type(method).__name__} cannot be trained: a dataclass that inherits StepMethod or FitMethod is needed."
        )
    return dataclasses.asdict(method)


def _entry(name: str) -> Entry:
    entry = DEFENSES.get(name)
    if not (isinstance(entry.target, type) and issubclass(entry.target, StepMethod)):
        trained = ", ".join(e.name for e in DEFENSES if isinstance(e.target, type) and issubclass(e.target, StepMethod))
        raise UsageError(f"the defense '{name}' does not fill slots of the training loop; those that do: {trained}.")
    _check_dataclass(entry)
    return entry


def _check_dataclass(entry: Entry) -> None:
    if not dataclasses.is_dataclass(entry.target):
        raise ContractError(
            f"the defense '{entry.name}' ({entry.origin}) must be a dataclass; add @dataclass(frozen=True)."
        )


def _fields(entry: Entry) -> list[str]:
    return [f.name for f in dataclasses.fields(entry.target) if f.init]


def _published(entry: Entry, defaults: str | None) -> dict[str, Any]:
    """The defense's published hyper-parameters for a data set; its own defaults when it lists none for it."""
    return dict(entry.facts.get("defaults", {}).get(defaults, {})) if defaults else {}


def _owner(key: str, names: list[str]) -> tuple[str, str]:
    """The part and the parameter that ``key`` means."""
    part, dot, parameter = key.rpartition(".")
    if dot:
        if part not in names:
            raise UsageError(f"-D {key} is for '{part}', which is not trained here; the parts are: {', '.join(names)}.")
        return part, parameter
    having = [name for name in names if key in _fields(_entry(name))]
    if names[0] in having:
        return names[0], key
    if len(having) > 1:
        ways = " or ".join(f"{name}.{key}" for name in having)
        raise UsageError(f"{' and '.join(having)} both have a parameter '{key}'; say {ways}.")
    if not having:
        known = [field for name in names for field in _fields(_entry(name))]
        raise UsageError(_unknown(f"{' with '.join(names)} has no parameter '{key}'", key, known))
    return having[0], key


def _unknown(what: str, key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return f"{what}.{hint} It has: {', '.join(known) or 'none'}."
