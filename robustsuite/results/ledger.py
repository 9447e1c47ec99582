"""The sealed ledger: the outcome of every (example, stage), as a run stores it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np

from robustsuite.errors import InputError
from robustsuite.results.store import read_arrays

CLEAN = "clean"
VERDICT = "verdict"
"""The stage that votes on a randomised model's strongest points."""
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
class Ledger:
    """The sealed verdicts of a run, by stage."""

    stages: list[str]
    arrays: dict[str, np.ndarray]
    run_key: str = ""

    @classmethod
    def of(cls, arrays: dict[str, np.ndarray], meta: Mapping[str, Any]) -> "Ledger":
        """What `verdicts.safetensors` holds; raises `InputError` when it is no ledger."""
        stages = meta.get("stages")
        if not isinstance(stages, list) or any(f"{name}/outcome" not in arrays for name in [CLEAN, *stages]):
            raise InputError("an array file without the verdicts of its stages is no ledger; restore it from a copy.")
        return cls(stages, arrays, str(meta.get("run_key", "")))

    def outcome(self, stage: str) -> np.ndarray:
        """The outcome codes of a stage, ``[N]``."""
        return self.arrays[f"{stage}/outcome"]

    def part(self, stage: str) -> StageLedger:
        """All arrays of a stage."""
        return StageLedger.of(
            {k.removeprefix(f"{stage}/"): v for k, v in self.arrays.items() if k.startswith(f"{stage}/")}
        )

    def any(self, outcome: Outcome) -> np.ndarray:
        """Examples that some stage gave this outcome, bool ``[N]``."""
        return np.logical_or.reduce([self.outcome(s) == outcome for s in self.stages])


def read_ledger(run_dir: Path) -> Ledger:
    """The sealed ledger of a run; raises `InputError` when it is not there or damaged."""
    path = run_dir / "verdicts.safetensors"
    if not path.exists():
        raise InputError(f"{run_dir} has no verdicts.safetensors: the run is not sealed. Run its command again.")
    return Ledger.of(*read_arrays(path))
