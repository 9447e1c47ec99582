"""Parsed text to a pydantic model, and its errors in words that name the file, the key and what was expected."""

import difflib
from functools import cache
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from robustsuite.errors import InputError

_Model = TypeVar("_Model", bound=BaseModel)
_SHOWN_PROBLEMS = 8


def validated(model: type[_Model], body: Any, source: str, what: str) -> _Model:
    """``body`` as a ``model``; raises `InputError`: ``source`` is not ``what``, and why, key by key."""
    try:
        return model.model_validate(body)
    except ValidationError as error:
        raise InputError(_explain(model, source, what, error)) from error


def _explain(model: type[BaseModel], source: str, what: str, error: ValidationError) -> str:
    problems = error.errors(include_url=False)
    known = _known_keys(model)
    lines = [f"  {_in_words(known, p['type'], p['loc'], p['msg'], p['input'])}" for p in problems[:_SHOWN_PROBLEMS]]
    if len(problems) > _SHOWN_PROBLEMS:
        lines.append(f"  and {len(problems) - _SHOWN_PROBLEMS} more")
    return f"{source} is not {what}:\n" + "\n".join(lines)


def _in_words(known: list[str], kind: str, location: tuple[int | str, ...], message: str, got: object) -> str:
    where = ".".join(map(str, location))
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.7)
        return f"unknown key '{where}'." + (f" Did you mean '{near[0]}'?" if near else "")
    if kind == "missing":
        return f"the key '{where}' is missing."
    shown = repr(got)
    return f"'{where}': {message[:1].lower()}{message[1:]}, got {shown if len(shown) <= 80 else shown[:77] + '...'}."


@cache
def _known_keys(model: type[BaseModel]) -> list[str]:
    schema = model.model_json_schema()
    parts = [schema, *schema.get("$defs", {}).values()]
    return sorted({key for part in parts for key in part.get("properties", {})})
