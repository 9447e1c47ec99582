"""Several processes at one run: each does its shard in the shared directory, and whoever is last seals the record."""

import os
import subprocess
import threading
from collections.abc import Callable, Sequence

_GRACE_SECONDS = 10.0


def run_processes(commands: Sequence[Sequence[str]], report: Callable[[int, str], None]) -> list[int]:
    """Run all commands at once and return their exit codes; ``report(index, line)`` gets every line of their stderr.

    Their stdout is dropped. Whatever ends this call early (Ctrl-C, an error) ends the processes too; a run loses no
    more by that than its blocks in flight.
    """
    # Unbuffered, so that a line is reported when it is written.
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    processes: list[subprocess.Popen[str]] = []
    readers: list[threading.Thread] = []
    try:
        for index, command in enumerate(commands):
            process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                env=environment,
            )
            processes.append(process)
            readers.append(threading.Thread(target=_pass_on, args=(process, index, report), daemon=True))
            readers[-1].start()
        return [process.wait() for process in processes]
    finally:
        _end(processes)
        for reader in readers:
            reader.join(timeout=_GRACE_SECONDS)


def _pass_on(process: "subprocess.Popen[str]", index: int, report: Callable[[int, str], None]) -> None:
    assert process.stderr is not None
    with process.stderr:
        for line in process.stderr:
            report(index, line.rstrip("\n"))


def _end(processes: Sequence["subprocess.Popen[str]"]) -> None:
    alive = [process for process in processes if process.poll() is None]
    for process in alive:
        process.terminate()
    for process in alive:
        try:
            process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
