"""`robustsuite board import`: what others have measured, to entries of a published folder."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robustsuite.cli import console
from robustsuite.cli.options import Json
from robustsuite.errors import InputError, UsageError

if TYPE_CHECKING:
    from robustsuite.leaderboard.import_write import Written
    from robustsuite.leaderboard.importing import Import

app = typer.Typer(help="What others have measured, to entries of a published folder.", no_args_is_help=True)
_SHOWN = 20

Root = Annotated[Path, typer.Argument(metavar="DIR", help="The folder of the source's files.")]
Board = Annotated[str | None, typer.Option("--board", metavar="ID", help="The board to add to; else one by its data.")]
To = Annotated[Path, typer.Option("--to", metavar="DIR", help="The published folder.")]


@app.callback()
def _group() -> None:
    """What others have measured, to entries of a published folder."""


@app.command("robustbench")
def robustbench(
    root: Root,
    board: Board = None,
    to: To = Path("leaderboards"),
    date: Annotated[
        str, typer.Option("--date", metavar="YYYY-MM-DD", help="Of its corrections; the files themselves have none.")
    ] = "",
    as_json: Json = False,
) -> None:
    """RobustBench's model_info files: <dataset>/<threat>/<model>.json below DIR, or one such folder."""
    from robustsuite.leaderboard.import_robustbench import read

    _checked(board)
    _finish(read(root, board, _dated(date)), to, as_json)


@app.command("smoothing-log")
def smoothing_log(
    root: Root,
    board: Board = None,
    to: To = Path("leaderboards"),
    n: Annotated[int, typer.Option("--n", min=1, help="Samples an example that the source states.")] = 100_000,
    alpha: Annotated[float, typer.Option("--alpha", help="Failure probability that the source states.")] = 0.001,
    by: Annotated[str, typer.Option("--by", metavar="NAME", help="Who made the logs.")] = "locuslab/smoothing",
    as_json: Json = False,
) -> None:
    """Certification logs: <data>/<architecture>/noise_S/test/sigma_T below DIR."""
    from robustsuite.leaderboard.import_smoothing import read

    _checked(board)
    _finish(read(root, board, n, alpha, by), to, as_json)


def _checked(board: str | None) -> None:
    from robustsuite.leaderboard.importing import is_safe

    if board is not None and not is_safe(board):
        raise UsageError(f"--board '{board}' cannot be a file's name; use letters, digits and ._- .")


def _dated(date: str) -> str:
    from datetime import datetime

    try:
        return f"{datetime.strptime(date, '%Y-%m-%d').date().isoformat()}T00:00:00Z" if date else ""
    except ValueError as error:
        raise UsageError(f"--date '{date}' is no date; write it like 2025-02-05.") from error


def _finish(result: "Import", to: Path, as_json: bool) -> None:
    from robustsuite.leaderboard.import_write import write
    from robustsuite.leaderboard.importing import printable

    try:
        written = write(result, to)
    except InputError as error:
        error.document = _document(result, None)
        raise
    if as_json:
        console.emit(_document(result, written))
        return
    for line in _summary(result, written):
        console.say(line)
    for problem in (*result.problems, *written.refused):
        console.warn(f"not imported: {printable(problem.path)}: {problem.reason}")


def _summary(result: "Import", written: "Written") -> list[str]:
    """What was read, kept and flagged, in lines."""
    raised = _raised(result)
    corrections = Counter(c.action for kept in result.kept for c in kept.corrections)
    lines = [
        f"read {result.read} files: {len(result.kept)} entries, {len(result.problems)} files not used; "
        f"{len(written.new)} files written, {written.unchanged} entries there already, {len(written.refused)} refused"
    ]
    for board, count in Counter(kept.board for kept in result.kept).items():
        lines.append(f"board {board}: {count} entries")
    if corrections:
        lines.append("corrections: " + ", ".join(f"{count} {action}" for action, count in sorted(corrections.items())))
    lines.append(f"flagged: {len({entry for entry, _, _ in raised})} of {len(result.kept)} entries")
    lines += [f"  {entry}: {name}: {evidence}" for entry, name, evidence in raised[:_SHOWN]]
    return [*lines, f"  and {len(raised) - _SHOWN} more (--json has all)"] if len(raised) > _SHOWN else lines


def _raised(result: "Import") -> list[tuple[str, str, str]]:
    return [(k.entry.id, f.name, f.evidence) for k in result.kept for f in k.entry.flags if f.raised]


def _document(result: "Import", written: "Written | None") -> dict[str, Any]:
    from robustsuite.leaderboard.importing import printable

    refused = written.refused if written else ()
    return {
        "read": result.read,
        "entries": [
            {
                "board": kept.board,
                "id": kept.entry.id,
                "flags": {flag.name: flag.evidence for flag in kept.entry.flags if flag.raised},
                "corrections": [correction.action for correction in kept.corrections],
            }
            for kept in result.kept
        ],
        "not_used": [{"path": printable(p.path), "reason": p.reason} for p in result.problems],
        "refused": [{"path": printable(p.path), "reason": p.reason} for p in refused],
        "unchanged": written.unchanged if written else 0,
        "files": [str(path) for path in written.new] if written else [],
    }
