"""`robustsuite board`: records to tables, checked."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robustsuite.cli import board_import, board_site, checks, console
from robustsuite.cli.options import Json
from robustsuite.errors import InputError

if TYPE_CHECKING:
    from robustsuite.leaderboard.row import Board

app = typer.Typer(help="Records to leaderboards.", no_args_is_help=True)
_DEFAULT_FOLDER = Path("leaderboards")
_DEFAULT_PATHS = ("runs", "leaderboards/runs")
_TABLE_COLUMNS = (
    "Rank",
    "Reported",
    "Model",
    "Defense",
    "Clean %",
    "Robust %",
    "Best known %",
    "Certified %",
    "Certifier",
    "Verified",
    "Better than",
    "n",
    "Notes",
)
_SHOWN_PROBLEMS = 20

Folder = Annotated[Path, typer.Argument(metavar="[DIR]", help="A published folder.")]


@app.callback()
def _group() -> None:
    """Records to leaderboards."""


@app.command("build")
def build(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[PATHS]...",
            help="A published folder, or runs, records and folders of them [leaderboards, or runs leaderboards/runs].",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="DIR", help="Where the tables go [leaderboards/tables].")
    ] = None,
    formats: Annotated[str, typer.Option("--format", metavar="F,F", help="Of md, csv, json, latex.")] = (
        "md,csv,json,latex"
    ),
    as_json: Json = False,
) -> None:
    """Build every board that the records give: ranked, with intervals, ties shown as ties.

    A published folder has definitions of its boards; other records are put together by data, threat and protocol.
    """
    from robustsuite.leaderboard.board import read_boards
    from robustsuite.leaderboard.export import to_json, write

    published = _published(paths)
    built, problems = read_boards([published] if published else _existing(paths))
    for problem in problems[:_SHOWN_PROBLEMS]:
        console.warn(f"not used: {problem.path}: {problem.reason}")
    if len(problems) > _SHOWN_PROBLEMS:
        console.warn(f"and {len(problems) - _SHOWN_PROBLEMS} more that could not be used (all with --json)")
    if not built:
        where = published or ", ".join(map(str, _existing(paths)))
        raise InputError(f"no usable record in {where}: no board was built. Run robustsuite eval first.")
    wanted = ["tex" if f == "latex" else f for f in (part.strip() for part in formats.split(",")) if f]
    written = write(built, out or (published or _DEFAULT_FOLDER) / "tables", wanted)
    if as_json:
        import json

        files = [str(path) for path in written]
        bad = [{"path": str(p.path), "reason": p.reason} for p in problems]
        console.emit({"boards": [json.loads(to_json(b)) for b in built], "files": files, "unusable": bad})
        return
    for board in built:
        _print(board)
        for conflict in board.conflicts:
            console.say(f"conflict: {conflict}")
    for path in written:
        console.say(f"wrote {path}")


@app.command("check")
def check(
    folder: Folder = _DEFAULT_FOLDER,
    against: Annotated[
        str | None,
        typer.Option(metavar="REF", help="A commit or branch: what is published there must be here, unchanged."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check a published folder: definitions, names, hashes, arithmetic, corrections, attestations and tables.

    What a repository runs on a contribution. Exits with 6 when something does not hold.
    """
    from robustsuite.leaderboard.check import check_folder

    checks.tell(folder, check_folder(folder, against), as_json)


@app.command("compare")
def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="A run key or its first digits, an id, or a name.")],
    second: Annotated[str, typer.Argument(metavar="B", help="The other entry.")],
    board: Annotated[str | None, typer.Option(metavar="ID", help="Needed where both are on several.")] = None,
    folder: Annotated[Path, typer.Option("--from", metavar="DIR", help="A published folder.")] = _DEFAULT_FOLDER,
    as_json: Json = False,
) -> None:
    """Two entries side by side, with the exact paired test that decides whether one may be called better."""
    from robustsuite.leaderboard.side_by_side import document, find, lines

    pair = find(folder, first, second, board)
    if as_json:
        console.emit(document(pair))
        return
    for line in lines(pair):
        console.say(line)


app.add_typer(board_import.app, name="import")
app.command("site")(board_site.site)


def _published(paths: list[Path] | None) -> Path | None:
    """The published folder that is meant, None where records are."""
    from robustsuite.leaderboard.published import is_published

    if paths is None or not paths:
        return _DEFAULT_FOLDER if is_published(_DEFAULT_FOLDER) else None
    folders = [p for p in paths if is_published(p)]
    if folders and len(paths) > 1:
        raise InputError(f"{folders[0]} is a published folder, which is built alone; name it, or records, not both.")
    return folders[0] if folders else None


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


def _print(board: "Board") -> None:
    from rich import box
    from rich.table import Table

    from robustsuite.leaderboard.display import table_rows
    from robustsuite.leaderboard.markdown import EMPTY

    rows: list[dict[str, Any]] = list(table_rows(board))
    if not rows:
        console.say(f"{board.id}: {EMPTY}")
        return
    table = Table(title=board.id, box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
    shown = [c for c in _TABLE_COLUMNS if any(row.get(c) for row in rows)]
    for column in shown:
        table.add_column(column, justify="right" if column.endswith("%") or column == "n" else "left")
    for row in rows:
        table.add_row(*(row.get(c, "") for c in shown))
    console.stdout().print(table)
