"""What a long call tells its caller while it runs; the library itself never prints."""

from typing import Protocol


class Progress(Protocol):
    """Callbacks of a run, in order: `start` a stage, `advance` it example by example, `end` it."""

    def start(self, stage: str, total: int) -> None:
        """A stage begins on ``total`` examples."""

    def advance(self, count: int, broken: int, certified: int) -> None:
        """``count`` more examples are finished, of which so many were broken or certified."""

    def end(self, stage: str, summary: str) -> None:
        """The stage is over."""


class Silent:
    """No progress output."""

    def start(self, stage: str, total: int) -> None:
        """Nothing."""

    def advance(self, count: int, broken: int, certified: int) -> None:
        """Nothing."""

    def end(self, stage: str, summary: str) -> None:
        """Nothing."""
