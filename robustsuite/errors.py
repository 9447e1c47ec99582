"""One exception tree; every class carries the exit code that the command line returns for it."""

from typing import Any


class RobustsuiteError(Exception):
    """Base of every error that robustsuite raises on purpose: one paragraph saying what, why and what to do next."""

    exit_code = 1
    document: dict[str, Any] | None = None
    """What a program may want to know beside the message: the run as far as it is good."""


class UsageError(RobustsuiteError):
    """The command or the call was put together wrongly (conflicting options, a malformed spec)."""

    exit_code = 2


class InputError(RobustsuiteError):
    """Something that the user handed in is unusable: a checkpoint, a data set, a config, a record."""

    exit_code = 3


class UnknownNameError(InputError):
    """A name that no registry knows; the message suggests the nearest ones."""


class PrerequisiteError(RobustsuiteError):
    """Something that the task needs is not there: an extra, a data file, a device, disk space."""

    exit_code = 4


class IncompleteError(RobustsuiteError):
    """The run ended, but some examples have no verdict (a failed stage, shards still missing)."""

    exit_code = 5


class VerificationError(RobustsuiteError):
    """A claim did not hold when it was checked again."""

    exit_code = 6


class ContractError(RobustsuiteError):
    """A model or a plugin breaks the contract that it declares."""

    exit_code = 6


class DivergedBounds(RobustsuiteError):
    """Bounds of a network in training are no longer finite."""


class ContradictionError(VerificationError):
    """One stage certified an example that another stage broke: one of the two is wrong."""
