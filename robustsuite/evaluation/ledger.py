"""The ledger: the outcome of every (example, stage), in block files while the run goes on, in one file when sealed.

A block is a fixed set of neighbouring examples. Its file is written once, when all its examples have finished the
stage, under a temporary name that is renamed last: a kill at any moment loses only blocks in flight.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from robustsuite.errors import InputError
from robustsuite.results.ledger import OVERLAP, StageLedger
from robustsuite.results.store import read_arrays, write_arrays


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
