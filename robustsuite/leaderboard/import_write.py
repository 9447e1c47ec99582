"""Imports to files of a published folder, which are added and never edited."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from robustsuite.errors import InputError
from robustsuite.leaderboard.definition import load_definition
from robustsuite.leaderboard.importing import BoardSeed, Import, Kept, printable
from robustsuite.results.published import ImportedEntry
from robustsuite.results.records import Problem
from robustsuite.results.store import json_bytes, read_bytes, write_atomic


@dataclass(frozen=True)
class Written:
    """What became of an import: files that are new, entries that were there already, entries that were refused."""

    new: tuple[Path, ...]
    unchanged: int
    refused: tuple[Problem, ...]


def write(result: Import, folder: Path) -> Written:
    """Add entries, corrections and missing board definitions to a published folder.

    Files that are there stay as they are: the same import again changes nothing, and an entry whose source has changed
    since is refused whole. Raises `InputError` when nothing of the source could be used, or when a board of that name
    is about something else.
    """
    if not result.kept:
        raise InputError(nothing_kept(result))
    absent = _define(result.boards, folder)
    new: list[Path] = []
    unchanged, refused = 0, []
    for kept in result.kept:
        files = dict(_files(kept, folder))
        there = {path: read_bytes(path) for path in files if path.exists()}
        clash = [path for path in there if there[path] != files[path]]
        if clash:
            refused.append(Problem(clash[0], _refusal(kept.entry)))
            continue
        missing = [path for path in files if path not in there]
        unchanged += not missing
        for path in missing:
            write_atomic(path, files[path])
        new += missing
    if not new and not unchanged:
        raise InputError(
            f"nothing was imported: {len(refused)} entries were refused. {refused[0].path} {refused[0].reason}"
        )
    return Written((*absent, *new), unchanged, tuple(refused))


def nothing_kept(result: Import) -> str:
    """Why an import has no entries, with the first reasons."""
    if not result.read:
        return "nothing could be imported: there is no file of the kind in the folder; name the one that has them."
    shown = "; ".join(f"{printable(Path(p.path.name))}: {p.reason}" for p in result.problems[:3])
    return f"nothing could be imported: {len(result.problems)} of {result.read} files could not be used ({shown})."


def _files(kept: Kept, folder: Path) -> Iterator[tuple[Path, bytes]]:
    entry = folder / "imported" / kept.board / f"{kept.entry.id}.json"
    yield entry, json_bytes(kept.entry, str(entry))
    for correction in kept.corrections:
        path = folder / "corrections" / kept.board / f"{correction.entry}-{correction.number}.json"
        yield path, json_bytes(correction, str(path))


def _refusal(entry: ImportedEntry) -> str:
    return (
        f"is there already and says something else than {entry.source_file} (sha256 {entry.source_sha256[:16]}) does "
        "now: the source has changed, or other options were used. Published files are never edited: add a correction "
        "that says what changed, or import into another board with --board."
    )


def _define(seeds: Sequence[BoardSeed], folder: Path) -> list[Path]:
    """Write the definitions that are missing; every other one must be about the same data and norm."""
    paths = {folder / "boards" / f"{seed.id}.yaml": seed for seed in seeds}
    for path, seed in paths.items():
        if path.exists():
            found = load_definition(path)
            if (found.data.name, found.threat.norm) != (seed.data_name, seed.norm):
                raise InputError(
                    f"{path} is about {found.data.name}, {found.threat.norm}; these entries are about "
                    f"{seed.data_name}, {seed.norm}. Name another board with --board."
                )
    absent = [path for path in paths if not path.exists()]
    for path in absent:
        write_atomic(path, definition(paths[path]))
    return absent


def definition(seed: BoardSeed) -> bytes:
    """The board's YAML definition, ranked as the source ranks."""
    import yaml

    body = {
        "id": seed.id,
        "title": seed.title,
        "description": seed.description,
        "data": {"name": seed.data_name},
        "threat": {"norm": seed.norm, "eps": seed.eps},
        "ranking": {"rule": "reported"},
    }
    return yaml.safe_dump(body, sort_keys=False, allow_unicode=True, width=120).encode()
