"""What a board shows: the data that tables, exports, charts and the site are made from."""

from dataclasses import dataclass, field
from typing import Any

from robustsuite.results.published import Correction, Curve, ImportedEntry
from robustsuite.results.schema import Metric, ProtocolPart, Record


@dataclass(frozen=True)
class Cost:
    """What an evaluation took: forward and backward passes of single examples, seconds, and on what."""

    forward: int
    backward: int
    seconds: float
    device: str


@dataclass(frozen=True)
class Row:
    """One entry. `rank` is None for entries that are shown but not ranked; `notes` say why, and what else to know."""

    rank: int | None
    tied: bool
    label: str
    """The model's name, with the run key's first digits where several entries have the same name."""
    defense: str
    arch: str
    clean: Metric | None
    robust: Metric | None
    """What the entry's own attacks left."""
    certified: Metric | None
    certifiers: tuple[tuple[str, str], ...]
    """(plugin, guarantee) of every certifier that ran."""
    gap: float | None
    """best known robust - certified: the share of examples that is neither broken nor proved."""
    n: int
    status: str
    unreliable: bool
    randomized: bool
    flags: tuple[str, ...]
    notes: tuple[str, ...]
    run_key: str
    """Of an imported entry: empty."""
    outcome_sha256: str
    weights_sha256: str
    suite_version: str
    best_known: Metric | None = None
    """What nobody has broken: over all runs of the board on these weights, and the corrections."""
    key: str = ""
    """The run key, or the imported entry's id: unique on the board, safe in file names."""
    fidelity: str = ""
    """What the defense's parts rest on, where they say so: paper, authors' code, or reconstructed."""
    provenance: str = "run"
    """``run`` for records of this suite, else who measured it."""
    level: int | None = None
    """How far it was verified, 0 to 3; None: nothing that could be checked."""
    division: str = "open"
    """``closed``: training data and architecture are those that the board fixes."""
    group: int | None = None
    """Entries of one group have overlapping intervals with the best of the group; None where there is no rank."""
    reported_rank: int | None = None
    """The place in the source's own order, on boards that are ranked as reported."""
    extra_data: bool | None = None
    n_params: int | None = None
    authors: str = ""
    venue: str = ""
    link: str = ""
    curves: tuple[Curve, ...] = ()
    cost: Cost | None = None
    corrections: tuple[Correction, ...] = ()
    record: Record | None = None
    imported: ImportedEntry | None = None
    gallery: tuple["Picture", ...] = ()
    kept: bytes = b""
    """Which of the n examples are robust as far as is known, ``np.packbits`` of bool ``[N]``; empty: not known."""

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The metrics that the run has, in the table's order."""
        return tuple(m for m in (self.clean, self.robust, self.certified) if m is not None)


@dataclass(frozen=True)
class Picture:
    """One broken example for people to look at: images as float32 arrays ``[C,H,W]`` in [0,1]."""

    position: int
    label: int
    before: int
    after: int
    stage: str
    distance: float
    x: Any
    x_adv: Any


@dataclass(frozen=True)
class Conflict:
    """Runs of one request with different outcomes: at least one of them is wrong."""

    run_key: str
    outcomes: tuple[str, ...]
    name: str

    def __str__(self) -> str:
        shown = ", ".join(o[:16] for o in self.outcomes)
        return f"run {self.run_key} ({self.name}) has {len(self.outcomes)} different outcomes: {shown}"


@dataclass(frozen=True)
class Comparison:
    """Two entries on the same examples: exact McNemar test, two-sided, before and after Holm's correction.

    ``only_first``: examples that only the first entry keeps (robust for the best known attacks).
    """

    first: str
    second: str
    both: int
    only_first: int
    only_second: int
    neither: int
    p_value: float
    adjusted: float
    """Holm over all pairs of the board that can be compared."""

    @property
    def better(self) -> str | None:
        """The key of the entry that may be called better at the 5 % level; None where nothing may be said."""
        if self.adjusted > 0.05:
            return None
        return self.first if self.only_first > self.only_second else self.second


@dataclass(frozen=True)
class Board:
    """Entries that answered one question: the same examples, threat model and protocol."""

    id: str
    data_name: str
    subset: str
    fingerprint: str
    n: int
    norm: str
    eps: str
    protocol: ProtocolPart | None
    """None on a board of imported entries alone."""
    rows: tuple[Row, ...]
    conflicts: tuple[Conflict, ...]
    title: str = ""
    description: str = ""
    ranking: str = "verified"
    """``verified``: by the lower end of best known. ``reported``: in the source's order, nothing verified."""
    columns: tuple[str, ...] = ()
    """Which of the table's columns the board shows, in this order; empty: all that have content."""
    comparisons: tuple[Comparison, ...] = field(default=())
