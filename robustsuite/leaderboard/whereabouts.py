"""What a record says of its author's machine: paths, which are cut down to file names before it is published."""

import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from robustsuite.results.schema import Record

_NUMBERS = re.compile(r"(\w+:)*[-+\d.,/:e]*")
"""8/255, Linf:8/255, range:5:15, 125.3/255,123/255: a slash that divides."""
_NAMED = re.compile(r"(robustbench|torchattacks):.*")
"""robustbench:NAME@cifar10/Linf: a slash that no file system knows."""
_ABSOLUTE = re.compile(r"(?:^|[\s'\"=:,(\[])(?:/[\w.~-]+/|~[\w-]*/|[A-Za-z]:[\\/]|\\\\\w|file://)")


def without_folders(record: Record) -> Record:
    """The record with file names for paths where people name files: model, data, training, command; sealed again.

    None of them is in the run key. Both hashes change.
    """
    request, host = record.request, record.host
    model = request.model.model_copy(
        update={
            "reference": file_names(request.model.reference),
            "load_options": file_names(request.model.load_options),
            "defense": file_names(request.model.defense),
        }
    )
    data = request.data.model_copy(update={"source": file_names(request.data.source)})
    return record.model_copy(
        update={
            "request": request.model_copy(update={"model": model, "data": data}),
            "host": host.model_copy(update={"command": _command(host.command)}),
        }
    ).sealed()


def absolute_paths(body: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """(key, text) of every text in a JSON body that names an absolute path, keys of mappings included."""
    if isinstance(body, Mapping):
        for name, value in body.items():
            where = f"{key}.{name}" if key else str(name)
            if _ABSOLUTE.search(str(name)):
                yield where, str(name)
            yield from absolute_paths(value, where)
    elif isinstance(body, list | tuple):
        for i, value in enumerate(body):
            yield from absolute_paths(value, f"{key}.{i}")
    elif isinstance(body, str) and _ABSOLUTE.search(body):
        yield key, body


def file_names(value: Any) -> Any:
    """``value`` with the folders of every path in it taken away; what only looks like one stays."""
    if isinstance(value, Mapping):
        return {name: file_names(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [file_names(part) for part in value]
    return _file_name(value) if isinstance(value, str) else value


def _file_name(text: str) -> str:
    if not re.search(r"[\\/]", text) or _NUMBERS.fullmatch(text) or _NAMED.fullmatch(text):
        return text
    if "=" in text:  # --model-param weights=folder/net.pt
        name, _, value = text.partition("=")
        return f"{name}={_file_name(value)}"
    if text.startswith("py:"):  # py:folder/file.py:factory
        file, colon, factory = text[3:].rpartition(":")
        return f"py:{_last(file)}{colon}{factory}"
    return _last(text)


def _last(path: str) -> str:
    return PureWindowsPath(path).name if "\\" in path or re.match(r"[A-Za-z]:", path) else PurePosixPath(path).name


def _command(command: str) -> str:
    try:
        words = shlex.split(command)
    except ValueError:  # an unclosed quote
        words = command.split()
    return shlex.join(_file_name(word) for word in words)
