"""Boards to a folder of pages. The same boards give the same bytes."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustsuite.errors import InputError
from robustsuite.leaderboard.export import FORMATS
from robustsuite.leaderboard.row import Board, Row
from robustsuite.leaderboard.site import compare, words
from robustsuite.leaderboard.site.command import protocol_yaml
from robustsuite.leaderboard.site.curves import board_charts
from robustsuite.leaderboard.site.entry import entry
from robustsuite.leaderboard.site.names import file_names
from robustsuite.leaderboard.site.scatter import scatter
from robustsuite.leaderboard.site.table import columns, in_common, lines
from robustsuite.results.store import write_atomic

if TYPE_CHECKING:
    from jinja2 import Environment

_HERE = Path(__file__).parent
_GENERATOR = b'content="robustsuite board site"'
_FORMAT_NAMES = {"csv": "CSV", "json": "JSON", "md": "Markdown", "tex": "LaTeX (booktabs)"}


def write_site(boards: Sequence[Board], out_dir: str | Path) -> list[Path]:
    """Write the pages of all boards and an index; return the paths written.

    ``index.html``, a folder a board with its table, its comparison, its exports and ``entries/``, and ``_assets/``
    with one style sheet and the scripts. Raises `InputError` when ``out_dir`` has an index of its own,
    `PrerequisiteError` when the disk refuses.
    """
    out, env = Path(out_dir), _environment()
    if (out / "index.html").exists() and _GENERATOR not in (out / "index.html").read_bytes():
        raise InputError(f"{out / 'index.html'} was not written by `robustsuite board site`; choose another folder.")
    folders = file_names([board.id for board in boards])
    files = {out / "_assets" / path.name: path.read_bytes() for path in sorted((_HERE / "assets").iterdir())}
    listed = [_card(board, folder) for board, folder in zip(boards, folders, strict=True)]
    files[out / "index.html"] = _page(env, "index.html.j2", root="", cards=listed)
    for path, content in files.items():
        _put(path, content)
    written = list(files)
    for board, folder in zip(boards, folders, strict=True):
        written += _write_board(env, board, out / folder)
    return written


def _write_board(env: "Environment", board: Board, folder: Path) -> list[Path]:
    pages = file_names([row.key or row.run_key or row.label for row in board.rows])
    protocols = _protocols(board)
    about = {
        "board": board,
        "title": words.title(board),
        "question": words.question(board),
        "examples": words.examples(board),
        "digits": words.decimals(board),
    }
    table = lines(board, pages)
    files = {folder / f"table.{name}": write(board).encode(errors="replace") for name, write in FORMATS.items()}
    files |= {folder / name: text.encode() for name, text in protocols.values()}
    files[folder / "index.html"] = _page(
        env,
        "board.html.j2",
        **about,
        root="../",
        rule=words.rule(board),
        best=_best(board, pages),
        common=in_common(board),
        filters=_filters(board),
        columns=columns(board),
        lines=table,
        scatter=scatter(board, pages),
        curves=board_charts(board, pages),
        exports=[(f"table.{name}", _FORMAT_NAMES.get(name, name)) for name in FORMATS],
        protocols=[name for name, _ in protocols.values()],
    )
    payload = compare.payload(board, pages)
    files[folder / "compare.html"] = _page(env, "compare.html.j2", **about, root="../", payload=payload)
    for path, content in files.items():
        _put(path, content)
    written = list(files)
    for row, page, line in zip(board.rows, pages, table, strict=True):
        file = protocols[row.record.request.protocol.model_dump_json()][0] if row.record else ""
        shown = entry(board, row, page, file)
        body = _page(env, "entry.html.j2", **about, root="../../", entry=shown, line=line, protocol_file=file)
        written.append(folder / "entries" / f"{page}.html")
        _put(written[-1], body)
    return written


def _put(path: Path, content: bytes) -> None:
    """Write what is not there already: most pages stay as they are when an entry is added."""
    if not path.is_file() or path.read_bytes() != content:
        write_atomic(path, content)


def _protocols(board: Board) -> dict[str, tuple[str, str]]:
    """Of every protocol that an entry followed, by its JSON: the name of its file, and the file's text."""
    ran = [row.record.request.protocol for row in board.rows if row.record] or [board.protocol]
    distinct = {protocol.model_dump_json(): protocol for protocol in ran if protocol}
    named = enumerate(distinct.items(), 1)
    return {key: (f"protocol{f'-{i}' * (i > 1)}.yaml", protocol_yaml(protocol)) for i, (key, protocol) in named}


def _card(board: Board, folder: str) -> dict[str, Any]:
    """A board on the index page."""
    return {
        "folder": folder,
        "board": board,
        "title": words.title(board),
        "question": words.question(board),
        "examples": words.examples(board),
        "digits": words.decimals(board),
        "best": _best(board, [""] * len(board.rows)),
        "verified": sum((row.level or 0) > 0 for row in board.rows),
    }


def _best(board: Board, pages: Sequence[str]) -> dict[str, Any] | None:
    """The entry that leads the board, and how many it shares its rank with."""
    for row, page in zip(board.rows, pages, strict=True):
        if _place(board, row) is not None and words.headline(row):
            shared = sum(_place(board, other) == _place(board, row) for other in board.rows) - 1
            return {"row": row, "page": page, "shared": 0 if board.ranking == "reported" else shared}
    return None


def _place(board: Board, row: Row) -> int | None:
    return row.reported_rank if board.ranking == "reported" else row.rank


def _filters(board: Board) -> dict[str, list[str]]:
    """The choices of every filter that tells entries apart."""
    architectures = sorted({words.visible(row.arch, 60) for row in board.rows if row.arch}, key=str.casefold)
    extra = sorted({"" if row.extra_data is None else str(row.extra_data) for row in board.rows})
    return {"arch": architectures, "extra": extra, "division": sorted({row.division for row in board.rows})}


def _environment() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    env = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters |= {"data": _data, "clear": lambda text: words.visible(str(text), None)}
    env.globals |= {"words": words}
    return env


def _data(body: Mapping[str, Any]) -> Any:
    """JSON inside a script element: no text in it can close the element or open a comment."""
    from markupsafe import Markup

    text = json.dumps(body, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _page(env: "Environment", template: str, **context: Any) -> bytes:
    return env.get_template(template).render(**context).encode(errors="replace")
