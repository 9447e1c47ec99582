"""Results go to stdout, everything else to stderr; bars on a terminal, one line a step elsewhere."""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # rich is imported where it is used: `--help` has to be quick
    from rich.console import Console
    from rich.progress import TaskID

    from robustsuite.evaluation.progress import Progress

_PIPE_WIDTH = 160
_HEARTBEAT_SECONDS = 60.0
_EPOCH_LINES = 4


def stdout() -> "Console":
    """Where results go. A pipe has no width, so tables are not squeezed into 80 columns there."""
    return _console(stderr=False)


def stderr() -> "Console":
    """Where logs, progress and errors go."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> "Console":
    from rich.console import Console

    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return Console(stderr=stderr, width=None if terminal else _PIPE_WIDTH, highlight=False, markup=False, emoji=False)


def emit(document: Mapping[str, Any]) -> None:
    """The one JSON document of a command with `--json`."""
    sys.stdout.write(json.dumps(document, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def say(text: str) -> None:
    """One line of a result."""
    stdout().print(text, soft_wrap=True)


def log(text: str) -> None:
    """One line about what is going on."""
    stderr().print(text, soft_wrap=True)


def warn(text: str) -> None:
    """One line about something that the user should know."""
    stderr().print(f"warning: {text}", soft_wrap=True, style="yellow")


@contextmanager
def progress() -> Iterator["Progress"]:
    """What the evaluator reports to: bars on a terminal, log lines in a file or a pipe."""
    if not sys.stderr.isatty():
        yield Lines()
        return
    bars = Bars()
    with bars.bars:
        yield bars


class Lines:
    """One line when a stage starts and one when it ends; in long stages one a minute."""

    def start(self, stage: str, total: int) -> None:
        """A stage begins."""
        self.total, self.done, self.broken, self.certified = total, 0, 0, 0
        self.began = self.spoken = time.monotonic()
        log(f"{stage}: started on {total} examples")
        self.stage = stage

    def advance(self, count: int, broken: int, certified: int) -> None:
        """More examples are finished."""
        self.done += count
        self.broken += broken
        self.certified += certified
        if time.monotonic() - self.spoken > _HEARTBEAT_SECONDS:
            self.spoken = time.monotonic()
            log(f"{self.stage}: {self.done} of {self.total}, {self._counts()}")

    def end(self, stage: str, summary: str) -> None:
        """The stage is over."""
        seconds = time.monotonic() - self.began
        note = f"; failed: {summary}" if summary else ""
        log(f"{stage}: ended after {seconds:.1f} s, {self.done} of {self.total}, {self._counts()}{note}")

    def _counts(self) -> str:
        return f"{self.broken} broken, {self.certified} certified"


class Bars:
    """A bar a stage."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self.bars = Progress(
            TextColumn("{task.description:<20}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[counts]}"),
            TimeElapsedColumn(),
            console=stderr(),
        )
        self.task: TaskID | None = None

    def start(self, stage: str, total: int) -> None:
        """A stage begins."""
        self.broken = self.certified = 0
        self.task = self.bars.add_task(stage, total=total, counts="")

    def advance(self, count: int, broken: int, certified: int) -> None:
        """More examples are finished."""
        assert self.task is not None
        self.broken += broken
        self.certified += certified
        self.bars.update(self.task, advance=count, counts=f"{self.broken} broken, {self.certified} certified")

    def end(self, stage: str, summary: str) -> None:
        """The stage is over."""
        assert self.task is not None
        self.bars.stop_task(self.task)
        if summary:
            self.bars.console.print(f"{stage} failed: {summary}")


@contextmanager
def training(label: str) -> "Iterator[Callable[[int, int, dict[str, Any]], None]]":
    """A training's progress callback: a bar on a terminal, a few lines elsewhere."""
    if not sys.stderr.isatty():
        yield _EpochLines(label)
        return
    from rich.progress import Progress

    with Progress(console=stderr()) as bars:
        task = bars.add_task(label, total=None)

        def report(done: int, total: int, info: dict[str, Any]) -> None:
            text = f"{label}, epoch {info['epoch']} of {info['epochs']}, loss {info['loss']:.3f}"
            bars.update(task, completed=done, total=total, description=text)

        yield report


class _EpochLines:
    def __init__(self, label: str) -> None:
        self.label, self.epoch, self.loss, self.epochs = label, 0, 0.0, 0

    def __call__(self, done: int, total: int, info: dict[str, Any]) -> None:
        if info["epoch"] != self.epoch and self.epoch and self.epoch % max(1, -(-info["epochs"] // _EPOCH_LINES)) == 0:
            self._speak()
        self.epoch, self.loss, self.epochs = info["epoch"], info["loss"], info["epochs"]
        if done == total:
            self._speak()

    def _speak(self) -> None:
        log(f"{self.label}: epoch {self.epoch} of {self.epochs}, loss {self.loss:.3f}")
