"""What each certifier of a run took for an example, and its diagnostics, in one line each."""

from pathlib import Path
from typing import TYPE_CHECKING

from robustsuite.cli import console

if TYPE_CHECKING:
    from robustsuite.results.schema import Record


def show(directory: Path, record: "Record") -> None:
    """Print a line a certifier; nothing without the run's directory."""
    from robustsuite.results.certificates import TIGHTNESS, certificate_diagnostics

    for name, found in certificate_diagnostics(directory, record).items():
        said = []
        if seconds := found.get("seconds"):
            said.append(f"{_time(seconds['mean'])} an example (at most {_time(seconds['most'])})")
        if tightness := found.get(TIGHTNESS):
            said.append(f"propagation tightness {tightness['mean']:.3g} (1: interval bounds lose nothing)")
        if said:
            console.say(f"{name}: {'; '.join(said)}")


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"
