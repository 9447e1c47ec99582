"""The ledger: the outcome of every (example, stage), in block files while the run goes on, in one file when sealed.

A block is a fixed set of neighbouring examples. Its file is written once, when all its examples have finished the
stage, under a temporary name that is renamed last: a kill at any moment loses only blocks in flight.
"""

from dataclasses import asdict, dataclass, field, fields
from enum import IntEnum
from pathlib import Path

import numpy as np

from robustsuite.errors import InputError
from robustsuite.results.store import read_arrays, write_arrays

CLEAN = "clean"
# Prefixes of stages that are run again, on other examples than the first time.
AUDIT, OVERLAP, REST = "audit-", "overlap-", "rest-"


class Outcome(IntEnum):
    """What a stage did to an example."""

    SKIPPED = 0
    """It was decided before, so the stage never saw it."""
    SURVIVED = 1
    """The stage worked on it and left it undecided."""
    BROKEN = 2
    CERTIFIED = 3
    ERROR = 4
    """The stage failed before it finished this example."""


@dataclass
class StageLedger:
    """One stage's outcomes for the examples of a block or of a run; every array has one row an example."""

    outcome: np.ndarray  # uint8, Outcome
    distance: np.ndarray  # float64, of the adversarial example; 0 where there is none
    margin: np.ndarray  # float32, the evaluator's, at the adversarial example (clean stage: at the image)
    radius: np.ndarray  # float64, proved
    predicted: np.ndarray  # int64, the class predicted or proved (-1: none)
    lane: np.ndarray  # int64, the restart or target that succeeded (-1: none)
    forward: np.ndarray  # int64, evaluations that the example needed
    backward: np.ndarray  # int64
    refused: np.ndarray  # int64, claims that the evaluator did not confirm
    extra: dict[str, np.ndarray] = field(default_factory=dict)  # clean stage: logits

    @classmethod
    def empty(cls, n: int) -> "StageLedger":
        """n examples that no stage has seen."""
        return cls(
            outcome=np.zeros(n, np.uint8),
            distance=np.zeros(n, np.float64),
            margin=np.zeros(n, np.float32),
            radius=np.zeros(n, np.float64),
            predicted=np.full(n, -1, np.int64),
            lane=np.full(n, -1, np.int64),
            forward=np.zeros(n, np.int64),
            backward=np.zeros(n, np.int64),
            refused=np.zeros(n, np.int64),
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays by name, `extra` included."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "extra"} | self.extra

    @classmethod
    def of(cls, arrays: dict[str, np.ndarray]) -> "StageLedger":
        """The inverse of `arrays`."""
        known = {f.name for f in fields(cls)} - {"extra"}
        missing = known - arrays.keys()
        if missing:
            raise InputError(f"a ledger file lacks {', '.join(sorted(missing))}; delete it and run again.")
        extra = {k: v for k, v in arrays.items() if k not in known}
        return cls(**{k: arrays[k] for k in known}, extra=extra)

    def put(self, positions: np.ndarray, part: "StageLedger") -> None:
        """Copy the rows of ``part`` to ``positions``."""
        for f in fields(self):
            if f.name != "extra":
                getattr(self, f.name)[positions] = getattr(part, f.name)
        for name, value in part.extra.items():
            if name not in self.extra:
                self.extra[name] = np.zeros((len(self.outcome), *value.shape[1:]), value.dtype)
            self.extra[name][positions] = value


@dataclass(frozen=True)
class Note:
    """What is to say about a block beside its verdicts."""

    error: str = ""
    """What stopped the stage, if anything did."""
    guarantee: str = ""
    """A certifier's: deterministic, or with which confidence."""
    slots: int = 0
    """Rows of a batch; fewer than the run's after the device had run out of memory."""


@dataclass(frozen=True)
class Blocks:
    """How a run of ``n`` examples is cut into blocks, and which of them a shard owns."""

    n: int
    size: int
    shard: tuple[int, int] = (0, 1)

    @property
    def count(self) -> int:
        """Blocks of the whole run."""
        return -(-self.n // self.size)

    def mine(self) -> list[int]:
        """The blocks of this shard."""
        index, total = self.shard
        return [b for b in range(self.count) if b % total == index]

    def positions(self, block: int) -> np.ndarray:
        """The examples of a block."""
        return np.arange(block * self.size, min((block + 1) * self.size, self.n))


def write_points(path: Path, stage: str, block: int, points: dict[int, np.ndarray]) -> None:
    """Store the points of a block, by position."""
    positions = sorted(points)
    arrays = {"position": np.array(positions, np.int64), "x_adv": np.stack([points[p] for p in positions])}
    write_arrays(path, arrays, {"stage": stage, "block": block})


class LedgerStore:
    """The block files of one run directory."""

    def __init__(self, run_dir: Path, blocks: Blocks) -> None:
        self.run_dir = run_dir
        self.blocks = blocks

    def path(self, stage: str, block: int) -> Path:
        """Where the verdicts of a block lie until the run is sealed."""
        return self.run_dir / "ledger" / stage / f"{block:05d}.safetensors"

    def adversarials_path(self, stage: str, block: int) -> Path:
        """Where the adversarial examples of a block lie, for good."""
        return self.run_dir / "adversarials" / stage / f"{block:05d}.safetensors"

    def write(self, stage: str, block: int, part: StageLedger, adversarials: dict[int, np.ndarray], note: Note) -> None:
        """Store a finished block: adversarial examples first, so that a verdict never lacks its evidence.

        What a second attack made of a broken example is no evidence for any number, so it is not kept.
        """
        if adversarials and not stage.startswith(OVERLAP):
            write_points(self.adversarials_path(stage, block), stage, block, adversarials)
        meta = {"stage": stage, "block": block, "note": asdict(note)}
        write_arrays(self.path(stage, block), part.arrays(), meta)

    def read(self, stage: str, block: int) -> tuple[StageLedger, Note] | None:
        """A finished block and its note, or None when it is still to do.

        An unreadable file counts as not there: recomputing it gives the same bytes.
        """
        path = self.path(stage, block)
        if not path.exists():
            return None
        try:
            arrays, meta = read_arrays(path)
            part, note = StageLedger.of(arrays), Note(**meta["note"])
        except (InputError, KeyError, TypeError):
            return None
        if len(part.outcome) != len(self.blocks.positions(block)):
            return None
        return part, note

    def drop(self, stage: str, block: int) -> None:
        """Forget a block, so that it is done again."""
        self.path(stage, block).unlink(missing_ok=True)
        self.adversarials_path(stage, block).unlink(missing_ok=True)
