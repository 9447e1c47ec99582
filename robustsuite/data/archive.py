"""Files by name in a folder, a tar (plain or compressed) or a zip: listed once, read in storage order, never extracted.

A compressed tar can only be read forwards, so its members are read in the order of their offsets in one pass.
"""

import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from robustsuite.errors import InputError

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2")
ARCHIVE_SUFFIXES = (*TAR_SUFFIXES, ".zip")

_BROKEN = (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError, OSError)


@dataclass(frozen=True, slots=True)
class Member:
    """One file: its path with forward slashes, and where a tar holds it."""

    name: str
    offset: int = 0
    size: int = 0


def list_members(path: Path) -> list[Member]:
    """Every regular file below ``path``; raises `InputError` when the archive is damaged or of another kind."""
    if path.is_dir():
        return [Member(p.relative_to(path).as_posix()) for p in path.rglob("*") if p.is_file()]
    try:
        if path.name.endswith(".zip"):
            with zipfile.ZipFile(path) as archive:
                return [Member(i.filename) for i in archive.infolist() if not i.is_dir()]
        with tarfile.open(path, "r:*") as tar:
            members = {m.name.removeprefix("./"): (m.offset_data, m.size) for m in tar if m.isreg()}
            _check_end(tar)
        return [Member(name, *place) for name, place in members.items()]
    except _BROKEN as error:
        raise _damaged(path, error) from None


def read_members(path: Path, members: Sequence[Member]) -> Iterator[tuple[int, bytes]]:
    """``(index into members, content)`` in the archive's own order."""
    if path.is_dir():
        for i, member in enumerate(members):
            yield i, (path / member.name).read_bytes()
        return
    try:
        if path.name.endswith(".zip"):
            with zipfile.ZipFile(path) as archive:
                for i, member in enumerate(members):
                    yield i, archive.read(member.name)
            return
        with tarfile.open(path, "r:*") as tar:
            for i in sorted(range(len(members)), key=lambda i: members[i].offset):
                yield i, _read_tar(tar, members[i])
    except _BROKEN as error:
        raise _damaged(path, error) from None


def _check_end(tar: tarfile.TarFile) -> None:
    """tarfile takes an archive that is cut off for a shorter one; a whole one ends with blocks of zeros."""
    file = tar.fileobj
    if file is None:
        return
    file.seek(tar.offset)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise EOFError("its last block is missing")


def _read_tar(tar: tarfile.TarFile, member: Member) -> bytes:
    info = tarfile.TarInfo(member.name)
    info.offset_data, info.size = member.offset, member.size
    file = tar.extractfile(info)
    content = file.read() if file is not None else b""
    if len(content) != member.size:
        raise EOFError(f"{member.name} ends early")
    return content


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(f"{path} is damaged, cut off or not the archive that its name says ({error}). Copy it again.")
