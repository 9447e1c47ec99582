"""`robustsuite board site`: a published folder, or runs, to a static site."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robustsuite.cli import console
from robustsuite.cli.options import Json
from robustsuite.errors import InputError

if TYPE_CHECKING:
    from robustsuite.leaderboard.row import Board

_DEFAULT = Path("leaderboards")


def site(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[DIR]...", help="Published folders, or runs and folders of them [leaderboards]."),
    ] = None,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="Where the pages go.")] = Path("site"),
    as_json: Json = False,
) -> None:
    """Write the boards as a static site: open DIR/index.html, or put the folder on any web server."""
    from robustsuite.leaderboard.site.pages import write_site

    boards = [board for path in paths or [_DEFAULT] for board in _boards(path)]
    written = write_site(boards, out)
    if as_json:
        listed = [{"id": board.id, "entries": len(board.rows)} for board in boards]
        console.emit({"boards": listed, "index": str(out / "index.html"), "files": [str(path) for path in written]})
        return
    for board in boards:
        console.say(f"{board.id}: {len(board.rows)} {'entry' if len(board.rows) == 1 else 'entries'}")
    console.say(f"wrote {len(written)} files; open {out / 'index.html'}")


def _boards(path: Path) -> "list[Board]":
    """The boards of a published folder, or those that the runs under ``path`` give."""
    from robustsuite.leaderboard.board import read_boards
    from robustsuite.leaderboard.published import is_published

    if not path.exists():
        raise InputError(f"{path} does not exist; name a published folder, or runs.")
    found, problems = read_boards([path], galleries=True)
    if not found and not is_published(path):
        raise InputError(f"no usable record in {path}: there is nothing to show. Run robustsuite eval first.")
    for problem in problems:
        console.warn(f"not used: {problem.path}: {problem.reason}")
    return found
