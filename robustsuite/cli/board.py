"""`robustsuite board`: records to tables."""

from pathlib import Path
from typing import Annotated

import typer

from robustsuite.cli import console
from robustsuite.cli.options import Json
from robustsuite.errors import InputError

app = typer.Typer(help="Records to leaderboard tables.", no_args_is_help=True)
_DEFAULT_PATHS = ("runs", "leaderboards/runs")
_TABLE_COLUMNS = ("Rank", "Model", "Defense", "Clean %", "Robust %", "Certified %", "Certifier", "n", "Notes")


@app.callback()
def _group() -> None:
    """Records to leaderboard tables."""


@app.command("build")
def build(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[PATHS]...", help="Runs, records or folders of them [runs leaderboards/runs]."),
    ] = None,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="Where the tables go.")] = Path(
        "leaderboards/tables"
    ),
    formats: Annotated[str, typer.Option("--format", metavar="F,F", help="Of md, csv, json, latex.")] = (
        "md,csv,json,latex"
    ),
    as_json: Json = False,
) -> None:
    """Build every board that the records give: ranked, with intervals, ties shown as ties."""
    from robustsuite.leaderboard.board import boards
    from robustsuite.leaderboard.display import table_rows
    from robustsuite.leaderboard.export import build as write
    from robustsuite.leaderboard.export import to_json
    from robustsuite.results.records import find_records

    roots = _existing(paths)
    records, problems = find_records(roots)
    for problem in problems:
        console.warn(f"not used: {problem.path}: {problem.reason}")
    if not records:
        raise InputError(
            f"no usable record in {', '.join(map(str, roots))}: no board was built. Run robustsuite eval first."
        )
    wanted = ["tex" if f == "latex" else f for f in (part.strip() for part in formats.split(",")) if f]
    written = write(records, out, wanted)
    built = boards(records)
    if as_json:
        import json

        files = [str(path) for path in written]
        bad = [{"path": str(p.path), "reason": p.reason} for p in problems]
        console.emit({"boards": [json.loads(to_json(b)) for b in built], "files": files, "unusable": bad})
        return
    for board in built:
        _print(board.id, table_rows(board))
        for conflict in board.conflicts:
            console.say(f"conflict: {conflict}")
    for path in written:
        console.say(f"wrote {path}")


def _existing(paths: list[Path] | None) -> list[Path]:
    """The paths to search; those named must exist, of the defaults one is enough."""
    if paths:
        missing = [p for p in paths if not p.exists()]
        if missing:
            raise InputError(f"{missing[0]} does not exist; name run directories, records or folders of them.")
        return paths
    found = [Path(p) for p in _DEFAULT_PATHS if Path(p).is_dir()]
    if not found:
        raise InputError(f"there is no {' and no '.join(_DEFAULT_PATHS)} here; name the directory of runs.")
    return found


def _print(title: str, rows: list[dict[str, str]]) -> None:
    from rich import box
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
    shown = [c for c in _TABLE_COLUMNS if any(row.get(c) for row in rows)]
    for column in shown:
        table.add_column(column, justify="right" if column.endswith("%") or column == "n" else "left")
    for row in rows:
        table.add_row(*(row.get(c, "") for c in shown))
    console.stdout().print(table)
