"""Array files as they are published: compressed, equal content in equal bytes, and read with a limit on their size."""

import lzma
from pathlib import Path

from robustsuite.errors import InputError
from robustsuite.results.store import read_bytes

_PRESET = 9
_MEMORY = 1 << 27  # bytes that decompression may take: preset 9 needs 65 MiB


def pack(data: bytes) -> bytes:
    """``data`` compressed by lzma (xz); the same bytes give the same bytes."""
    return lzma.compress(data, format=lzma.FORMAT_XZ, check=lzma.CHECK_CRC64, preset=_PRESET)


def unpack(packed: bytes, limit: int, what: str) -> bytes:
    """The inverse of `pack`. Never makes more than ``limit`` bytes; ``what`` names them in errors.

    Raises `InputError` for anything that is not one whole xz stream, is larger, or would take much memory.
    """
    reader = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MEMORY)
    try:
        data = reader.decompress(packed, max_length=limit + 1)
    except lzma.LZMAError as error:
        raise InputError(f"{what} is damaged or no xz file ({error}). Restore it from a copy.") from error
    if len(data) > limit:
        raise InputError(f"{what} unpacks to more than the {limit} bytes that it may hold. Restore it from a copy.")
    if not reader.eof or reader.unused_data:
        problem = "has something behind its end" if reader.eof else "is cut off"
        raise InputError(f"{what} {problem}. Restore it from a copy.")
    return data


def read_packed(path: str | Path, limit: int) -> bytes:
    """`unpack` of a file."""
    return unpack(read_bytes(path), limit, str(path))
