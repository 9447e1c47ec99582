"""Processes at one run."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from robustsuite.evaluation.executors import run_processes


def test_lines_and_codes_come_back_by_process():
    script = "import sys; sys.stderr.write(f'line {sys.argv[1]}\\n'); print('dropped'); sys.exit(int(sys.argv[1]))"
    lines: list[tuple[int, str]] = []
    codes = run_processes([[sys.executable, "-c", script, str(i)] for i in range(3)], lambda i, s: lines.append((i, s)))
    assert codes == [0, 1, 2]
    assert sorted(lines) == [(0, "line 0"), (1, "line 1"), (2, "line 2")]


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Tests that were started in the background inherit an ignored SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_ends_the_children():
    pids: list[int] = []
    script = "import os, sys, time; sys.stderr.write(f'{os.getpid()}\\n'); sys.stderr.flush(); time.sleep(600)"

    def report(index: int, line: str) -> None:
        pids.append(int(line))
        if len(pids) == 2:
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_processes([[sys.executable, "-c", script]] * 2, report)
    assert time.monotonic() - start < 60
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
