"""What is published beside records: imported entries, corrections and attestations; JSON files, one a statement."""

from typing import Any, Literal

from pydantic import Field

from robustsuite.results.schema import FileRef, Flag, Metric, Part

PUBLISHED_VERSION = 1


class CurvePoint(Part):
    """One point of a curve: accuracy up to and at ``x`` with its 95 % interval; without one where ``n`` is unknown."""

    x: float = Field(ge=0)
    value: float = Field(ge=0, le=1)
    ci95: tuple[float, float] | None = None


class Curve(Part):
    """Accuracy against eps (robust) or against the radius (certified), ascending in ``x``."""

    kind: Literal["robust", "certified"]
    label: str
    """What tells it from other curves of the entry: the stage, or ``sigma 0.25``."""
    norm: str
    points: tuple[CurvePoint, ...]


class ImportedEntry(Part):
    """A number that somebody else measured: shown with its provenance, never verified here and never ranked as equal.

    ``eps`` keeps the source's own text, so that 0.031 does not become 8/255.
    """

    published_version: Literal[1] = PUBLISHED_VERSION
    kind: Literal["imported"] = "imported"
    id: str
    """Unique on its board, safe in file names: letters, digits, ``._-``."""
    provenance: str
    """Who measured it: ``robustbench``, ``locuslab/smoothing``, ..."""
    name: str
    authors: str = ""
    venue: str = ""
    link: str = ""
    architecture: str = ""
    extra_data: bool | None = None
    forward_passes: int | None = None
    data_name: str
    norm: str
    eps: str | None
    metrics: tuple[Metric, ...]
    """``clean_accuracy``, ``robust_accuracy`` (AutoAttack's or whatever the source ranks by before corrections),
    ``certified_accuracy``, ``certified_accuracy@R``, as in records."""
    average_radius: float | None = None
    curves: tuple[Curve, ...] = ()
    flags: tuple[Flag, ...] = ()
    unreliable: bool = False
    source_file: str
    source_sha256: str
    details: dict[str, Any] = {}
    """Whatever else the source says, as it says it."""

    def metric(self, name: str) -> Metric | None:
        """The metric called ``name``, if the source has it."""
        return next((m for m in self.metrics if m.name == name), None)


class Correction(Part):
    """A later statement about an entry; the entry's own file is never edited, and neither is this one."""

    published_version: Literal[1] = PUBLISHED_VERSION
    kind: Literal["correction"] = "correction"
    board: str
    entry: str
    """A run key, or the id of an imported entry."""
    number: int = Field(ge=1)
    """1, 2, ... for one entry, without gaps: a correction that was taken away is missed."""
    utc: str
    by: str
    action: Literal["invalidate", "annotate", "unreliable", "lower"]
    """``invalidate``: out of the ranking. ``annotate``: a remark. ``unreliable``: the evaluation is. ``lower``: the
    robust accuracy is lower than the entry says."""
    reason: str
    examples: tuple[int, ...] = ()
    """Positions that somebody has broken (``lower`` of a run), ascending; their images are the evidence."""
    robust_accuracy: float | None = Field(default=None, ge=0, le=1)
    """``lower`` of an imported entry, whose examples are not known."""
    evidence: FileRef | None = None
    previous_sha256: str = ""
    """Over the canonical JSON of the entry's correction before this one; empty for the first."""


class Attestation(Part):
    """Somebody has run `robustsuite verify` on an entry, up to a level, and it held.

    0: hashes and arithmetic. 1: weights and clean predictions, and the stored adversarial examples. 2: a seeded subset
    run again. 3: everything run again.
    """

    published_version: Literal[1] = PUBLISHED_VERSION
    kind: Literal["attestation"] = "attestation"
    run_key: str
    content_sha256: str
    """Of the record that was looked at: an attestation of another one is worth nothing."""
    level: int = Field(ge=0, le=3)
    by: str
    utc: str
    suite_version: str
    findings: tuple[str, ...] = ()
    """What was checked, in words."""
