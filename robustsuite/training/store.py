"""A training in flight on disk: what a kill at any moment leaves behind, and the way back."""

import json
import os
import time
from pathlib import Path
from typing import Any

import torch

from robustsuite.errors import InputError, PrerequisiteError

SUFFIX = ".training.pt"
EVERY = 60.0  # seconds
_VERSION = 2  # of what a state consists of


class Store:
    """The state beside the checkpoint ``path``; it appears whole or not at all, and goes when the training is done.

    ``request`` is everything that decides the weights: a state of another request is never taken up.
    """

    def __init__(self, path: str | Path, request: dict[str, Any], every: float = EVERY) -> None:
        path, self.every, self.last = Path(path), every, time.monotonic()
        self.path = path.with_name(path.name.removesuffix(".safetensors") + SUFFIX)
        self.request = json.dumps(request | {"state": _VERSION}, sort_keys=True)

    def due(self) -> bool:
        """Whether so much time has passed since the last save that a kill would cost more than another."""
        return time.monotonic() - self.last >= self.every

    def save(self, state: dict[str, Any]) -> None:
        """Replace what is there. Raises `PrerequisiteError` when it cannot be written."""
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                torch.save({"request": self.request, "state": state}, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path)
            self.last = time.monotonic()
        except OSError as error:
            raise PrerequisiteError(
                f"cannot write the training state {self.path}: {error.strerror or error}."
            ) from error
        finally:
            temporary.unlink(missing_ok=True)

    def load(self) -> dict[str, Any] | None:
        """The state of an earlier run of the same request, None when there is none.

        Raises `InputError` for a file that is no training state, or that of another training.
        """
        if not self.path.exists():
            return None
        remedy = f"Delete {self.path} to start anew, or choose another -o."
        try:
            document = torch.load(self.path, map_location="cpu", weights_only=True)
            request, state = document["request"], document["state"]
        except Exception as error:  # whatever a broken file makes torch raise
            raise InputError(f"{self.path} is not a training state ({type(error).__name__}). {remedy}") from error
        if request != self.request:
            raise InputError(
                f"{self.path} belongs to another training ({_difference(request, self.request)}). {remedy}"
            )
        return state

    def clear(self) -> None:
        """Take the state away: the checkpoint is written."""
        self.path.unlink(missing_ok=True)


def _difference(theirs: str, ours: str) -> str:
    old, new = json.loads(theirs), json.loads(ours)
    found = [
        f"{key}: {old.get(key)} there, {new.get(key)} now" for key in sorted(old | new) if old.get(key) != new.get(key)
    ]
    return "; ".join(found)
