"""`--config FILE.yaml`: a command's options as YAML keys, below what is typed and above the defaults."""

import difflib
import json
from pathlib import Path
from typing import Any

import typer

from robustsuite.errors import InputError

_NOT_IN_FILES = frozenset({"config", "help", "as_json", "dry_run"})


def read_config(ctx: typer.Context, path: str | None) -> str | None:
    """Option callback: the file's values become the defaults of all other options of the command.

    Raises `InputError` naming a key that the command does not have.
    """
    if path is None or ctx.resilient_parsing:
        return path
    known = {p.name: p for p in ctx.command.params if p.name and p.name not in _NOT_IN_FILES}
    spelled = {_spelling(p): name for name, p in known.items()} | {name: name for name in known}
    values: dict[str, Any] = {}
    for key, value in _read(path).items():
        name = spelled.get(str(key).replace("_", "-")) or spelled.get(str(key))
        if name is None:
            near = difflib.get_close_matches(str(key), list(spelled), n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise InputError(
                f"{path}: unknown key '{key}'.{hint} Keys: {', '.join(sorted({*map(_spelling, known.values())}))}."
            )
        values[name] = _as_typed(path, str(key), value, many=_is_list(known[name]))
    ctx.default_map = values
    return path


def _read(path: str) -> dict[str, Any]:
    import yaml

    try:
        document = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read the config {path}: {error.strerror or error}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not YAML ({' '.join(str(error).split())[:200]}).") from None
    if not isinstance(document, dict):
        raise InputError(f"{path} must hold keys and values, one option a line, such as 'data: digits'.")
    return document


def _spelling(param: Any) -> str:
    """The option's long name without dashes in front, or the argument's own."""
    long = [o for o in getattr(param, "opts", []) if o.startswith("--")]
    return long[0].removeprefix("--") if long else str(param.name)


def _is_list(param: Any) -> bool:
    return bool(getattr(param, "multiple", False)) or getattr(param, "nargs", 1) == -1


def _as_typed(path: str, key: str, value: Any, *, many: bool) -> Any:
    """The value as a user would have typed it; a mapping is a list of ``key=value``."""
    if many:
        if isinstance(value, dict):
            return [f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in value.items()]
        return [str(v) for v in value] if isinstance(value, list) else [str(value)]
    if isinstance(value, dict) or value is None:
        raise InputError(f"{path}: '{key}' wants one value, got {value!r}.")
    if isinstance(value, list):
        return ",".join(map(str, value))
    return value if isinstance(value, bool) else str(value)
