"""`robustsuite ls`: what there is."""

from typing import Annotated, Any

import typer

from robustsuite.cli import console
from robustsuite.cli.loading import load_plugins
from robustsuite.cli.options import Json, Plugins
from robustsuite.errors import UsageError

KINDS = ("attacks", "certifiers", "defenses", "datasets", "architectures", "protocols")


def ls(
    kind: Annotated[str | None, typer.Argument(metavar=f"[{'|'.join(KINDS)}]", help="Only these.")] = None,
    plugin: Plugins = [],  # noqa: B006  (typer's way to say: none given)
    as_json: Json = False,
) -> None:
    """List attacks, certifiers, defenses, datasets, architectures and protocols."""
    if kind is not None and kind not in KINDS:
        import difflib

        near = difflib.get_close_matches(kind, KINDS, n=1, cutoff=0.5)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise UsageError(f"nothing is called '{kind}'.{hint} Choose of {', '.join(KINDS)}.")
    load_plugins(plugin)
    found = {k: protocols() if k == "protocols" else plugins(k) for k in ([kind] if kind else KINDS)}
    if as_json:
        console.emit(found)
        return
    for name, rows in found.items():
        _print(name, rows)
    console.say("More: robustsuite show NAME")


def plugins(kind: str) -> list[dict[str, Any]]:
    """Every plugin of a kind, with the facts that it declares."""
    from robustsuite.registry import REGISTRIES

    return [
        {"name": e.name, "summary": e.summary, "facts": plain(e.facts), "origin": e.origin} for e in REGISTRIES[kind]
    ]


def protocols() -> list[dict[str, Any]]:
    """The built-in protocols with the names of their stages."""
    from robustsuite.evaluation.protocol import load_protocol, tiers

    loaded = [load_protocol(name) for name in tiers()]
    return [
        {"name": p.name, "summary": ", ".join(s.name for s in p.stages), "facts": {"version": p.version}, "origin": ""}
        for p in loaded
    ]


def plain(value: Any) -> Any:
    """A declared fact in JSON's types."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(v) for v in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _print(title: str, rows: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    table.add_column(style="dim")
    for row in rows:
        facts = "; ".join(f"{k} {_words(v)}" for k, v in row["facts"].items())
        table.add_row(row["name"], row["summary"], facts)
    console.stdout().print(table)


def _words(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
