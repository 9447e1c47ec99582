"""SIGKILL at 20 random moments: what is resumed ends byte-identical to the undisturbed run."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

KILLS = 20
SHARE = 0.6  # of all blocks, the most that a child may finish before it is killed


@pytest.fixture
def zygote():
    command = [sys.executable, str(Path(__file__).with_name("zygote.py"))]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    yield process
    process.stdin.close()
    process.wait(timeout=60)


def ask(zygote, line: object) -> int:
    zygote.stdin.write(f"{line}\n")
    zygote.stdin.flush()
    return int(zygote.stdout.readline())


def status(zygote) -> int:
    """Reap the child: it stays a zombie until then, so that its pid can be signalled safely."""
    return ask(zygote, "reap")


def blocks(runs: Path) -> list[Path]:
    return list(runs.glob("*/ledger/*/*.safetensors"))


def watch(zygote, runs: Path, count: int) -> float:
    """Wait for ``count`` more blocks, or the child's end; the longest time that went by between two of them.

    Progress is counted, not timed: how long a run takes changes with whatever else the machine does.
    """
    there, last, longest = len(blocks(runs)), time.monotonic(), 0.0
    wanted = there + count
    while there < wanted and not ask(zygote, "peek"):
        found = len(blocks(runs))
        if found > there:
            longest, last, there = max(longest, time.monotonic() - last), time.monotonic(), found
        time.sleep(0.001)
    return longest


def test_killed_and_resumed_runs_end_byte_identical(zygote, tmp_path, outcome_files):
    ask(zygote, tmp_path / "undisturbed")
    spell = watch(zygote, tmp_path / "undisturbed", sys.maxsize)
    assert status(zygote) == 0
    (directory,) = (tmp_path / "undisturbed").glob("[!.]*")
    want, whole = outcome_files(directory), len(blocks(tmp_path / "undisturbed"))
    assert "record.json" in want
    moments = random.Random(0)
    kills = trial = 0
    stages_hit = set()
    while kills < KILLS:
        runs = tmp_path / f"trial-{trial}"
        trial += 1
        while True:
            pid = ask(zygote, runs)
            # Every second child gets on, so that each trial ends; the others may die before they write anything.
            count = moments.randint(kills % 2, int(SHARE * whole))
            spell = watch(zygote, runs, count) or spell
            time.sleep(moments.uniform(0.0, spell))  # somewhere in the work on the next one
            os.kill(pid, signal.SIGKILL)
            if status(zygote) == 0:  # it was faster than the signal
                break
            kills += 1
            stages_hit |= {path.parent.name for path in blocks(runs)}
        assert outcome_files(runs / directory.name) == want
    assert {"clean", "fgsm", "square"} <= stages_hit  # the kills did fall into the run
