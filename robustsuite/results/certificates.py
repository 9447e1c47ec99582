"""What a run keeps of its certificates beside their radii: the time of each, and diagnostics such as the tightness."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from robustsuite.results.ledger import Outcome
from robustsuite.results.schema import Record
from robustsuite.results.store import read_arrays

SECONDS = "seconds.safetensors"
"""Seconds of every example by stage, float64 ``[N]``; beside the ledger and outside of all hashes."""
TIGHTNESS = "tightness"
"""The diagnostic of interval propagation, float64 ``[N]`` in (0,1], in the ledger where it was asked for."""


def certificate_diagnostics(run_dir: Path, record: Record) -> dict[str, dict[str, dict[str, float]]]:
    """By certifier and name (``seconds``, ``tightness``): mean, median, least and most over the examples that it saw.

    Empty without the run's directory, and where no certifier ran; a file of times may be missing.
    """
    path, out = run_dir / "verdicts.safetensors", {}
    names = [s.name for s in record.stages if s.kind == "certifier" and s.n_in]
    if not names or not path.exists():
        return {}
    arrays, seconds = read_arrays(path)[0], read_seconds(run_dir)
    for name in names:
        seen = arrays[f"{name}/outcome"] != Outcome.SKIPPED
        values = {"seconds": seconds.get(name), TIGHTNESS: arrays.get(f"{name}/{TIGHTNESS}")}
        out[name] = {what: _spread(each[seen]) for what, each in values.items() if each is not None}
    return out


def read_seconds(run_dir: Path) -> Mapping[str, np.ndarray]:
    """Seconds of every example by stage; none where the run has kept none."""
    path = run_dir / SECONDS
    return read_arrays(path)[0] if path.exists() else {}


def _spread(values: np.ndarray) -> dict[str, float]:
    found = {"mean": values.mean(), "median": np.median(values), "least": values.min(), "most": values.max()}
    return {name: float(value) for name, value in found.items()}
