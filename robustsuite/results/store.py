"""Files that are whole or not there: atomic writing, readable JSON, deterministic array files.

Scope: bytes on disk. What a record means is `records`' business.
"""

import errno
import hashlib
import json
import os
import platform
import re
import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from robustsuite.errors import InputError, PrerequisiteError
from robustsuite.results.schema import canonical

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FOREIGN_LEFTOVER_SECONDS = 24 * 3600.0
_CHECKSUM = "sha256"
_DTYPES = {f"{kind}{bits}" for kind in ("int", "uint", "float") for bits in (8, 16, 32, 64)} - {"float8"}


def write_atomic(path: str | Path, data: bytes) -> None:
    """Write ``data`` so that ``path`` holds all of it or what it held before, whenever the process dies.

    Missing folders are made. Raises `PrerequisiteError` when the disk is full, read-only or refuses.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name[:100]}.{_host()}-{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    except OSError as error:
        raise PrerequisiteError(_refusal(path, error)) from error


def _sync_folder(folder: Path) -> None:
    """Make the renaming itself durable; some systems and file systems cannot, and the file is whole either way."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _refusal(path: Path, error: OSError) -> str:
    kept = "Everything written before is kept; run the same command again to resume."
    if error.errno in _FULL:
        return f"the disk is full (or a quota or size limit is reached) while writing {path}. Free some space. {kept}"
    if error.errno == errno.EROFS:
        return f"the file system is read-only while writing {path}. Make it writable or choose another folder. {kept}"
    return f"cannot write {path}: {error.strerror or error}. Check the folder and its permissions. {kept}"


_TEMPORARY = re.compile(r"^\..+\.(?P<host>[0-9a-f]{8})-(?P<pid>\d+)-[0-9a-f]{8}\.tmp$")


def is_temporary(path: Path) -> bool:
    """Whether the name is one that `write_atomic` uses before it renames."""
    return _TEMPORARY.match(path.name) is not None


def clean_temporaries(folder: str | Path) -> int:
    """Remove what killed processes left anywhere under ``folder``; return how many files that were.

    A file of a live process of this machine stays (workers share a run's folder), and so does a young one of
    another machine, whose processes cannot be asked.
    """
    removed = 0
    for path in Path(folder).rglob(".*.tmp"):
        if is_temporary(path) and _abandoned(path):
            with suppress(OSError):
                path.unlink()
                removed += 1
    return removed


def _abandoned(path: Path) -> bool:
    parts = _TEMPORARY.match(path.name)
    assert parts is not None
    if parts["host"] == _host() and os.name == "posix":  # elsewhere signal 0 would end the process
        try:
            os.kill(int(parts["pid"]), 0)
        except (ProcessLookupError, OverflowError):
            return True
        except OSError:  # another user's process
            return False
        return False
    try:
        return time.time() - path.stat().st_mtime > _FOREIGN_LEFTOVER_SECONDS
    except OSError:
        return False


def _host() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def write_json(path: str | Path, content: BaseModel | Mapping[str, Any]) -> None:
    """Write a model or mapping as JSON for people: indented, fields in their order, no NaN (`InputError`)."""
    write_atomic(path, json_bytes(content, str(path)))


def json_bytes(content: BaseModel | Mapping[str, Any], what: str) -> bytes:
    """The text that `write_json` writes; ``what`` names it in errors."""
    body = content.model_dump(mode="json") if isinstance(content, BaseModel) else dict(content)
    try:
        return (json.dumps(body, indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode()
    except (ValueError, TypeError) as error:  # NaN, a lone surrogate, or an object that JSON does not know
        raise InputError(f"{what} cannot be written as JSON: {error}.") from error


def read_json(path: str | Path) -> dict[str, Any]:
    """The object in a JSON file; raises `InputError` on a missing, cut, invalid or ambiguous (duplicate key) one."""
    path = Path(path)
    try:
        text = read_bytes(path).decode()
        body = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is not whole, valid JSON ({error}): it was cut short or edited. Restore it from a copy, or "
            "delete it and run the command that wrote it again."
        ) from error
    if not isinstance(body, dict):
        raise InputError(f"{path} holds a JSON {type(body).__name__}, expected an object with named fields.")
    return body


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A reader that keeps the first of two equal keys would see another record than one that keeps the last."""
    body = dict(pairs)
    if len(body) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key '{next(n for n in names if names.count(n) > 1)}' occurs twice")
    return body


def read_bytes(path: str | Path) -> bytes:
    """The file's content; raises `InputError` when there is no such readable file."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}.") from error


def sha256_file(path: str | Path) -> str:
    """sha256 of a file's bytes, 64 hex digits; raises `InputError` when it cannot be read."""
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}.") from error


def write_arrays(path: str | Path, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
    """Write arrays and a JSON ``meta`` in safetensors format: equal content gives equal bytes.

    bool is stored as uint8. A checksum goes along, because the format has none of its own. Raises `InputError` for
    dtypes that the format lacks (object, str) and for a ``meta`` that is not JSON.
    """
    write_atomic(path, array_bytes(arrays, meta, str(path)))


def array_bytes(arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any], what: str) -> bytes:
    """The bytes that `write_arrays` writes; ``what`` names them in errors."""
    from safetensors.numpy import save

    stored = {name: _storable(what, name, array) for name, array in arrays.items()}
    if _CHECKSUM in meta:
        raise InputError(f"{what}: the meta key '{_CHECKSUM}' is reserved.")
    try:
        # One key alone: the format's writer does not fix the order of several.
        body = json.loads(canonical(dict(meta)))  # as a reader will see it: lists for tuples, text for keys
        text = canonical({**body, _CHECKSUM: _checksum(stored, body)}).decode()
    except (ValueError, TypeError) as error:
        raise InputError(f"{what}: meta cannot be written as JSON: {error}.") from error
    return save(stored, metadata={"meta": text})


def read_arrays(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and meta of a file of `write_arrays`; raises `InputError` when it is cut, damaged or something else."""
    return parse_arrays(read_bytes(path), str(path))


def parse_arrays(data: bytes, what: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and meta of the bytes of such a file; ``what`` names them in errors."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        arrays = load(data)  # checks that the header fits the size
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        meta = json.loads(header["__metadata__"]["meta"])
        intact = meta.pop(_CHECKSUM) == _checksum(arrays, meta)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{what} is not a whole array file of robustsuite ({type(error).__name__}: {error}). Delete it and run "
            "the same command again, or restore it from a copy."
        ) from error
    if not intact:
        raise InputError(
            f"{what} is damaged: its content does not match its checksum. Delete it and run the same command again, "
            "or restore it from a copy."
        )
    return arrays, meta


def _storable(what: str, name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype == np.bool_:
        array = array.astype(np.uint8)
    if array.dtype.name not in _DTYPES:
        raise InputError(f"{what}: array '{name}' has dtype {array.dtype}; numbers and bool can be stored.")
    return np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")


def _checksum(arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(canonical(dict(meta)))
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(canonical([name, array.dtype.name, list(array.shape)]))
        digest.update(array.tobytes())
    return digest.hexdigest()
