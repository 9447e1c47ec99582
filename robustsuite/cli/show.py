"""`robustsuite show`: one plugin, protocol or run in full."""

import dataclasses
import difflib
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robustsuite.cli import console, listing, radii_view, run_view
from robustsuite.cli.loading import load_plugins
from robustsuite.cli.options import Json, Plugins
from robustsuite.errors import UnknownNameError

if TYPE_CHECKING:
    from robustsuite.registry import Entry

_IMPLICIT = ("num_classes", "input_shape", "split")


def show(
    name: Annotated[str, typer.Argument(metavar="NAME|RUN", help="A plugin, a protocol, a run directory or its key.")],
    runs: Annotated[Path, typer.Option(metavar="DIR", help="Where runs named by their key lie.")] = Path("runs"),
    radii: Annotated[
        str | None,
        typer.Option(metavar="R,R|all", help="A run's certified accuracy there, or the whole curve."),
    ] = None,
    family: Annotated[
        str | None,
        typer.Option(metavar="RULE[:P]", help="A run's certificates all together: holm or bonferroni, failing with P."),
    ] = None,
    plugin: Plugins = [],  # noqa: B006  (typer's way to say: none given)
    as_json: Json = False,
) -> None:
    """Show a plugin with its parameters, a protocol with its stages, or a run as eval printed it."""
    if radii and radii != radii_view.ALL:
        radii_view.parse_radii(radii)
    if family:
        radii_view.parse_family(family)
        load_plugins(plugin)
    for place in (Path(name), runs / name):
        if place.exists() and (place.is_file() or (place / "request.json").exists()):
            document = run_view.show_stored(place, as_json=as_json, radii=radii, family=family)
            if document is not None:
                console.emit(document)
            return
    load_plugins(plugin)
    found = _plugins(name) + _protocols(name)
    if not found:
        raise UnknownNameError(_unknown(name))
    if as_json:
        console.emit({"name": name, "found": found})
        return
    for item in found:
        _print(item)


def _plugins(name: str) -> list[dict[str, Any]]:
    from robustsuite.registry import REGISTRIES

    return [_describe(kind, registry.get(name)) for kind, registry in REGISTRIES.items() if name in registry]


def _describe(kind: str, entry: "Entry") -> dict[str, Any]:
    return {
        "kind": kind,
        "name": entry.name,
        "doc": inspect.getdoc(entry.target) or "",
        "facts": listing.plain(entry.facts),
        "origin": entry.origin,
        "parameters": _parameters(entry.target),
    }


def _parameters(target: Any) -> list[dict[str, Any]]:
    """Names, types and defaults of what a user may set."""
    if dataclasses.is_dataclass(target):
        found = [(f.name, f.type, f.default) for f in dataclasses.fields(target) if f.init]
    else:
        signature = inspect.signature(target).parameters.values()
        found = [(p.name, p.annotation, p.default) for p in signature if p.name not in _IMPLICIT]
    return [
        {
            "name": name,
            "type": kind if isinstance(kind, str) else getattr(kind, "__name__", str(kind)),
            "default": None if default in (dataclasses.MISSING, inspect.Parameter.empty) else listing.plain(default),
            "required": default in (dataclasses.MISSING, inspect.Parameter.empty),
        }
        for name, kind, default in found
    ]


def _protocols(name: str) -> list[dict[str, Any]]:
    from robustsuite.evaluation.protocol import load_protocol, tiers

    if name not in tiers() and not name.endswith((".yaml", ".yml")):
        return []
    body = load_protocol(name).model_dump(mode="json")
    return [{"kind": "protocols", **body}]


def _unknown(name: str) -> str:
    from robustsuite.evaluation.protocol import tiers
    from robustsuite.registry import REGISTRIES

    known = [entry.name for registry in REGISTRIES.values() for entry in registry] + tiers()
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
    return f"'{name}' is no plugin, protocol or run.{hint} See robustsuite ls."


def _print(item: dict[str, Any]) -> None:
    console.say(f"{item['name']} ({item['kind'].removesuffix('s')})")
    if item["kind"] == "protocols":
        console.say(f"version {item['version']}")
        for s in item["stages"]:
            params = ", ".join(f"{k}={v}" for k, v in s["params"].items())
            when = {"supported": " when supported", "flagged": " when a suspicion is raised"}.get(s["when"], "")
            tail = " (tail)" if s["tail"] else ""
            console.say(f"  {s['kind']} {s['name']}{tail}{when}{': ' + params if params else ''}")
        console.say("")
        return
    console.say(item["doc"])
    for key, value in item["facts"].items():
        if key == "defaults" and isinstance(value, dict):
            for name, params in value.items():
                console.say(f"  published for {name}: {', '.join(f'{k}={_short(v)}' for k, v in params.items())}")
        else:
            console.say(f"  {key}: {value}")
    console.say(f"  from: {item['origin']}")
    for p in item["parameters"]:
        default = ", required" if p["required"] else f" = {p['default']}"
        console.say(f"  {p['name']} ({p['type']}){default}")
    console.say("")


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
