"""What a run took, in a file beside its ledger: no outcome hangs on it, and it may differ between two equal runs."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np


def note(run_dir: Path, event: Mapping[str, Any]) -> None:
    """Append one event; where that is impossible it is not known."""
    with suppress(OSError), (run_dir / "events.jsonl").open("a") as file:
        file.write(json.dumps(event) + "\n")


def stage_events(run_dir: Path) -> dict[str, list[dict[str, Any]]]:
    """Passes and seconds of every call of a stage, by the ledger's name."""
    out: dict[str, list[dict[str, Any]]] = {}
    for event in _read(run_dir):
        if "forward" in event:
            out.setdefault(event["stage"], []).append(event)
    return out


def example_seconds(run_dir: Path, n: int) -> dict[str, np.ndarray]:
    """Seconds that every certifier took for each example, float64 ``[N]`` by the ledger's name; 0 where it saw none.

    A certifier works on a batch at a time, whose examples get even shares of what it took. Of a batch that was done
    twice, after a kill, the second time counts.
    """
    out: dict[str, np.ndarray] = {}
    for event in _read(run_dir):
        if examples := event.get("examples"):
            out.setdefault(event["stage"], np.zeros(n))[examples] = event["seconds"] / len(examples)
    return out


def _read(run_dir: Path) -> list[dict[str, Any]]:
    path, out = run_dir / "events.jsonl", []
    for line in path.read_text().splitlines() if path.exists() else []:
        with suppress(json.JSONDecodeError):  # the last line of a killed process
            out.append(json.loads(line))
    return out
