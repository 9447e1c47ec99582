"""Texts of the command line made into values: pairs, numbers, shards, devices."""

import json
import math
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from robustsuite.errors import PrerequisiteError, UsageError

_FRACTION = re.compile(r"-?\d+(\.\d+)?/\d+(\.\d+)?")
_WORDS = {"True": True, "False": False, "None": None}


def pairs(option: str, texts: Sequence[str]) -> dict[str, Any]:
    """``key=value`` texts as a dictionary; values are JSON, fractions, or else plain text."""
    out: dict[str, Any] = {}
    for text in texts:
        key, sign, value = text.partition("=")
        if not sign or not key.strip():
            raise UsageError(f"{option} wants key=value, got '{text}'.")
        if key.strip() in out:
            raise UsageError(f"{option} names '{key.strip()}' twice.")
        out[key.strip()] = value_of(value.strip())
    return out


def value_of(text: str) -> Any:
    """A number, fraction, truth value, list or text."""
    if text in _WORDS:
        return _WORDS[text]
    if _FRACTION.fullmatch(text):
        return number("a parameter", text)
    try:
        return json.loads(text, parse_constant=_no_constant)
    except ValueError:
        return text


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def number(option: str, text: str) -> float:
    """A decimal or a quotient such as ``125.3/255``, divided as a training script would have done it."""
    above, sign, below = text.partition("/")
    try:
        value = float(above) / float(below if sign else 1)
    except (ValueError, ZeroDivisionError):
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(f"{option}: '{text}' is not a number; write it like 0.4914 or 125.3/255.")
    return value


def channels(option: str, text: str | None) -> tuple[float, ...] | None:
    """Comma-separated numbers, one a channel (or one for all)."""
    return tuple(number(option, part) for part in text.split(",")) if text else None


def names(texts: Sequence[str]) -> list[str]:
    """Comma-separated or repeated names as one list."""
    return [name.strip() for text in texts for name in text.split(",") if name.strip()]


def shard_of(text: str | None) -> tuple[int, int] | None:
    """``i/n`` as (index, count), the index from 0."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if found is None or int(found[1]) >= int(found[2]):
        raise UsageError(f"--shard wants i/n with i from 0 to n-1, such as 0/3, 1/3, 2/3; got '{text}'.")
    return int(found[1]), int(found[2])


def device_of(text: str) -> str:
    """``auto`` is the first GPU where there is one; raises `PrerequisiteError` for a device that is not there."""
    import torch

    if text == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(text)
    except RuntimeError:
        raise UsageError(f"--device wants auto, cpu or cuda:N, got '{text}'.") from None
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device wants auto, cpu or cuda:N, got '{text}'.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise PrerequisiteError(f"there is no device {text}: torch sees {torch.cuda.device_count()} GPUs. Use cpu.")
    return str(device)
