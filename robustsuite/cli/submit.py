"""`robustsuite submit`: a finished run to the files of a contribution."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robustsuite.cli import console
from robustsuite.cli.options import Json
from robustsuite.errors import RobustsuiteError

if TYPE_CHECKING:
    from robustsuite.results.stored import StoredRun


def submit(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, or its record.json.")],
    board: Annotated[str, typer.Option("--board", "-b", metavar="ID", help="The board: boards/ID.yaml.")],
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="The published folder.")] = Path("leaderboards"),
    data: Annotated[str | None, typer.Option("--data", "-d", metavar="DATA", help="Where the data lies now.")] = None,
    pictures: Annotated[int, typer.Option(metavar="N", min=0, max=64, help="Adversarial examples to show.")] = 8,
    as_json: Json = False,
) -> None:
    """Check a finished run and add it to a board: its record, packed verdicts and a few pictures, for a pull request.

    Every number is counted again from the verdicts first. Folders are taken off all paths. What is published already
    is never overwritten.
    """
    from robustsuite.leaderboard.submission import submit as publish

    done = publish(run, to, board, (lambda stored: _gallery(stored, data, pictures)) if pictures else None)
    key, title = done.record.run_key, done.board.title
    if as_json:
        files = [str(path) for path in done.files]
        console.emit({"run_key": key, "board": board, "new": bool(files), "files": files, "checks": done.checks})
        return
    if not done.files:
        console.say(f"Run {key} is published on '{title}' already, with the same content: nothing to do.")
        return
    console.say(f"{done.checks} checks hold: files, hashes, and every number counted again from the verdicts.")
    for path in done.files:
        console.say(f"wrote {path}")
    console.say(f"Run {key} is on '{title}'. Add these files, and no others, to a pull request.")


def _gallery(stored: "StoredRun", data: str | None, count: int) -> bytes | None:
    """Pictures of the run; none, and a word why, where its data is not at hand."""
    from robustsuite.data.reference import load_data
    from robustsuite.evaluation.gallery import write_gallery

    part = stored.record.request.data
    try:
        examples = load_data(data or part.source, split=part.split, subset=part.subset, num_classes=part.num_classes)
        if examples.fingerprint != part.fingerprint:
            console.warn(f"no pictures: {data or part.source} are not the examples of the run; give --data.")
            return None
        return write_gallery(stored.folder, examples, count)
    except RobustsuiteError as error:
        console.warn(f"no pictures: {error}")
        return None
