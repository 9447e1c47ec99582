"""The app: its commands, and what becomes of errors."""

import errno
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperGroup

from robustsuite import __version__
from robustsuite.cli import (
    attribute,
    board,
    certify,
    check,
    console,
    demo,
    doctor,
    evaluate,
    listing,
    reproduce,
    schema,
    show,
    submit,
    train,
    verify,
)
from robustsuite.errors import RobustsuiteError

EXIT_CODES = {
    0: "ok",
    1: "a bug of robustsuite (--debug shows the traceback)",
    2: "usage: the command was put together wrongly",
    3: "bad input: a checkpoint, data set, config or record",
    4: "a prerequisite is missing: an extra, a device, disk space",
    5: "incomplete: a stage failed, the rest is finished and kept",
    6: "a verification or contract failed",
    130: "interrupted: nothing finished is lost, the same command resumes",
}
_FULL = (errno.ENOSPC, errno.EDQUOT)
# typer brings a copy of click or depends on it, by its version; this is the base of its usage errors in both.
_ClickError: Any = typer.BadParameter.__mro__[2]


class App(TyperGroup):
    """Errors become one paragraph on stderr (with ``--json`` a document on stdout) and an exit code."""

    def main(self, args: Sequence[str] | None = None, *more: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """Run a command line; like click's, it ends in SystemExit unless ``standalone_mode`` is off."""
        given = list(sys.argv[1:] if args is None else args)
        arguments = [a for a in given if a != "--debug"]
        if not standalone_mode:
            return super().main(arguments, *more, standalone_mode=False, obj=arguments, **extra)
        try:
            code = super().main(arguments, *more, standalone_mode=False, obj=arguments, **extra)
            sys.stdout.flush()
        except BaseException as error:
            if isinstance(error, SystemExit):
                raise
            code = _report(error, as_json="--json" in arguments, debug="--debug" in given)
        else:
            if code == 130:
                code = _report(KeyboardInterrupt(), as_json="--json" in arguments, debug=False)
        sys.exit(code or 0)


def _report(error: Any, *, as_json: bool, debug: bool) -> int:
    """Say what went wrong; the exit code."""
    if isinstance(error, BrokenPipeError):  # `robustsuite ls | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    code, message = _judge(error)
    if debug:
        traceback.print_exception(error)
    if as_json:
        problem = {"type": type(error).__name__, "message": message, "exit_code": code}
        console.emit((getattr(error, "document", None) or {}) | {"error": problem})
    elif isinstance(error, _ClickError):
        error.show()
    elif code == 130:
        console.log(message)
    else:
        console.stderr().print(f"error: {message}", soft_wrap=True, style="red")
    return code


def _judge(error: Any) -> tuple[int, str]:
    if isinstance(error, RobustsuiteError):
        return error.exit_code, str(error)
    if isinstance(error, _ClickError):
        return int(getattr(error, "exit_code", 2)), error.format_message()
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return 130, "interrupted: nothing finished is lost; the same command resumes."
    if isinstance(error, OSError) and error.errno in _FULL:
        return 4, "the disk is full. Free some space; nothing finished is lost, the same command resumes."
    if isinstance(error, PermissionError):
        return 4, f"no permission for {error.filename}. Choose another place, such as -o DIR."
    if type(error).__name__ == "OutOfMemoryError":
        return 4, "the device is out of memory. Give fewer --slots, or --device cpu."
    summary = (str(error).splitlines() or [""])[0]
    return 1, f"a bug of robustsuite: {type(error).__name__}: {summary}. Run it again with --debug for the traceback."


app = typer.Typer(
    cls=App,
    name="robustsuite",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: " + " · ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items()) + ".",
)


def _print_version(value: bool) -> None:
    if value:
        console.say(f"robustsuite {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", help="Print the version.", callback=_print_version, is_eager=True),
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error; goes anywhere in a command."),
) -> None:
    """Adversarial robustness, measured and checkable: evaluate, verify, and build leaderboards."""


_START, _WORK, _LOOK = "Start here", "Work", "Look"
app.command("demo", rich_help_panel=_START)(demo.demo)
app.command("doctor", rich_help_panel=_START)(doctor.doctor)
app.command("eval", rich_help_panel=_WORK)(evaluate.evaluate)
app.command("certify", rich_help_panel=_WORK)(certify.certify)
app.command("attribute", rich_help_panel=_WORK)(attribute.attribute)
app.command("verify", rich_help_panel=_WORK)(verify.verify)
app.command("train", rich_help_panel=_WORK)(train.train)
app.command("reproduce", rich_help_panel=_WORK)(reproduce.reproduce)
app.command("check", rich_help_panel=_WORK)(check.check)
app.command("submit", rich_help_panel=_WORK)(submit.submit)
app.add_typer(board.app, name="board", rich_help_panel=_WORK)
app.command("ls", rich_help_panel=_LOOK)(listing.ls)
app.command("show", rich_help_panel=_LOOK)(show.show)
app.command("schema", rich_help_panel=_LOOK)(schema.schema)


def main() -> None:
    """Entry point of the program."""
    app(prog_name="robustsuite")
