"""Step methods by name, and what is told of one."""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

from robustsuite.defenses.base import StepMethod
from robustsuite.errors import ContractError, RobustsuiteError, UsageError
from robustsuite.registry import DEFENSES, Entry


def make_method(name: str, params: Mapping[str, Any] | None = None) -> StepMethod:
    """The step method registered as ``name`` with hyper-parameters ``params``.

    Raises `UnknownNameError` for the name, `UsageError` for a parameter that it does not have or refuses, or when it is
    not a defense that trains, `ContractError` when its class is not a dataclass.
    """
    entry = DEFENSES.get(name)
    if not (isinstance(entry.target, type) and issubclass(entry.target, StepMethod)):
        trained = ", ".join(e.name for e in DEFENSES if isinstance(e.target, type) and issubclass(e.target, StepMethod))
        raise UsageError(f"the defense '{name}' does not fill slots of the training loop; those that do: {trained}.")
    if not dataclasses.is_dataclass(entry.target):
        raise ContractError(f"the defense '{name}' ({entry.origin}) must be a dataclass; add @dataclass(frozen=True).")
    known = [f.name for f in dataclasses.fields(entry.target) if f.init]
    for key in params or {}:
        if key not in known:
            raise UsageError(_unknown(entry, key, known))
    try:
        return entry.target(**dict(params or {}))
    except RobustsuiteError:
        raise
    except Exception as error:  # a plugin's own checks may raise anything
        raise UsageError(f"the defense '{name}' refuses {dict(params or {})}: {error}") from error


def defense_name(method: StepMethod) -> str:
    """The name that ``method``'s class is registered under, or the class's own."""
    return next((entry.name for entry in DEFENSES if entry.target is type(method)), type(method).__name__)


def hyper_parameters(method: StepMethod) -> dict[str, Any]:
    """The fields of ``method``; raises `ContractError` when it is not a step method and dataclass."""
    if not isinstance(method, StepMethod) or not dataclasses.is_dataclass(method):
        raise ContractError(
            f"{type(method).__name__} cannot be trained: a dataclass that inherits StepMethod is expected."
        )
    return dataclasses.asdict(method)


def _unknown(entry: Entry, key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return f"the defense '{entry.name}' has no parameter '{key}'.{hint} It has: {', '.join(known) or 'none'}."
