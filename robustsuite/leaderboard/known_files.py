"""What belongs into a published folder, and what does not."""

from collections.abc import Iterator
from pathlib import Path

from robustsuite.leaderboard.export import FORMATS
from robustsuite.leaderboard.published import ADD_ONLY, BOARDS, IMPORTED, RECORD, RUNS, STATEMENT

_TABLES = "tables"
_BESIDE_A_RECORD = ("verdicts.xz", "gallery.xz")


def strangers(root: Path) -> list[tuple[str, str]]:
    """(path, reason) of everything in the folders of a board that no reader looks for; other folders are not looked at.

    A link is a stranger wherever it leads.
    """
    boards = {path.stem for path in (root / BOARDS).glob("*.yaml")}
    found = []
    for folder in (BOARDS, *ADD_ONLY, _TABLES):
        for path in _below(root / folder):
            parts = path.relative_to(root).parts
            if path.is_symlink():
                found.append(("/".join(parts), "a link; only plain files are published"))
            elif reason := _reason(path, parts, boards):
                found.append(("/".join(parts), reason))
    return found


def _below(folder: Path) -> Iterator[Path]:
    """Files and links below a folder, links not followed, in the order of their names."""
    if folder.is_symlink():
        yield folder
        return
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.is_dir() and not path.is_symlink():
            yield from _below(path)
        else:
            yield path


def _reason(path: Path, parts: tuple[str, ...], boards: set[str]) -> str:
    folder, name = parts[0], parts[-1]
    if folder == BOARDS:
        return "" if len(parts) == 2 and path.suffix == ".yaml" else "only <id>.yaml belongs here"
    if folder == _TABLES:
        known = {f"{board}.{ending}" for board in boards for ending in FORMATS} | {"README.md"}
        return "" if len(parts) == 2 and name in known else "no table of a board; remove it"
    if len(parts) != 3:
        return f"files lie in {folder}/<board>/"
    if parts[1] not in boards:
        return f"there is no {BOARDS}/{parts[1]}.yaml"
    if folder == RUNS:
        return _beside_a_record(path)
    fits = name.endswith(".json") if folder == IMPORTED else STATEMENT.fullmatch(name) is not None
    return "" if fits and not name.startswith(".") else "not a name that anything here is looked for under"


def _beside_a_record(path: Path) -> str:
    key, _, ending = path.name.partition(".")
    if RECORD.fullmatch(f"{key}.json") is None or ending not in ("json", *_BESIDE_A_RECORD):
        return "only <run_key>.json, .verdicts.xz and .gallery.xz belong here"
    if not path.with_name(f"{key}.json").is_file():
        return "there is no record beside it"
    return ""
