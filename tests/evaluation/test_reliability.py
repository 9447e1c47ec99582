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


@pytest.fixture
def zygote():
    command = [sys.executable, str(Path(__file__).with_name("zygote.py"))]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    yield process
    process.stdin.close()
    process.wait(timeout=60)


def launch(zygote, runs: Path) -> int:
    zygote.stdin.write(f"{runs}\n")
    zygote.stdin.flush()
    return int(zygote.stdout.readline())


def status(zygote) -> int:
    """Reap the child: it stays a zombie until then, so that its pid can be signalled safely."""
    zygote.stdin.write("reap\n")
    zygote.stdin.flush()
    return int(zygote.stdout.readline())


def test_killed_and_resumed_runs_end_byte_identical(zygote, tmp_path, outcome_files):
    launch(zygote, tmp_path / "undisturbed")
    start = time.monotonic()
    assert status(zygote) == 0
    whole = time.monotonic() - start
    (directory,) = (tmp_path / "undisturbed").glob("[!.]*")
    want = outcome_files(directory)
    assert "record.json" in want
    moments = random.Random(0)
    kills = trial = 0
    stages_hit = set()
    while kills < KILLS:
        runs = tmp_path / f"trial-{trial}"
        trial += 1
        while True:
            pid = launch(zygote, runs)
            time.sleep(moments.uniform(0.0, 0.6 * whole))
            os.kill(pid, signal.SIGKILL)
            if status(zygote) == 0:  # it was faster than the signal
                break
            kills += 1
            stages_hit |= {path.parent.name for path in runs.rglob("ledger/*/*.safetensors")}
        assert outcome_files(runs / directory.name) == want
    assert {"clean", "fgsm", "square"} <= stages_hit  # the kills did fall into the run
