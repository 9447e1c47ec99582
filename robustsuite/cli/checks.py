"""What a command says of a published folder that it has checked."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from robustsuite.cli import console
from robustsuite.errors import VerificationError

if TYPE_CHECKING:
    from robustsuite.results.arithmetic import Finding


def tell(folder: Path, findings: "Sequence[Finding]", as_json: bool) -> None:
    """Every finding and the outcome; raises `VerificationError` (with ``as_json`` exits with 6) where one is bad."""
    bad = [f for f in findings if not f.ok]
    if as_json:
        console.emit({"folder": str(folder), "ok": not bad, "findings": [dataclasses.asdict(f) for f in findings]})
        raise typer.Exit(6 if bad else 0)
    for finding in findings:
        console.say(str(finding))
    if bad:
        raise VerificationError(f"{len(bad)} of {len(findings)} checks of {folder} failed; the lines above name them.")
    console.say(f"{folder} holds: {len(findings)} checks.")
