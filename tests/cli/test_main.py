"""Start-up, exit codes, errors."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import typer

from robustsuite import __version__
from robustsuite.cli import console, schema
from robustsuite.cli.main import EXIT_CODES, _judge
from robustsuite.errors import (
    ContractError,
    ContradictionError,
    IncompleteError,
    InputError,
    PrerequisiteError,
    UnknownNameError,
    UsageError,
    VerificationError,
)

HEAVY = ("torch", "numpy", "pandas", "scipy", "sklearn", "safetensors")


def test_help_imports_nothing_heavy_and_is_quick(capsys):
    script = (
        "import sys\n"
        "sys.argv = ['robustsuite', '--help']\n"
        "from robustsuite.cli.main import main\n"
        "try:\n    main()\nfinally:\n"
        f"    print('HEAVY', [m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)\n"
    )
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
        seconds.append(time.perf_counter() - start)
    with capsys.disabled():
        sys.stdout.write(f"[robustsuite --help: {min(seconds):.2f} s] ")
    assert done.returncode == 0
    assert "HEAVY []" in done.stderr
    assert min(seconds) < 2.0  # 0.25 s of work; machines that run tests are busy


def test_help_lists_every_exit_code(run):
    text = " ".join(run("--help").stdout.replace("│", " ").split())
    for code, meaning in EXIT_CODES.items():
        assert f"{code} {meaning}" in text


def test_version_and_module_entry(run):
    assert run("--version").stdout.strip() == f"robustsuite {__version__}"
    done = subprocess.run(
        [sys.executable, "-m", "robustsuite", "--version"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, f"robustsuite {__version__}")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("x"), 2),
        (InputError("x"), 3),
        (UnknownNameError("x"), 3),
        (PrerequisiteError("x"), 4),
        (IncompleteError("x"), 5),
        (VerificationError("x"), 6),
        (ContractError("x"), 6),
        (ContradictionError("x"), 6),
        (typer.BadParameter("x"), 2),
        (KeyboardInterrupt(), 130),
        (ValueError("x"), 1),
        (OSError(28, "No space left on device"), 4),
        (PermissionError(13, "Permission denied", "/x"), 4),
    ],
)
def test_every_error_has_its_code(error, code):
    assert _judge(error)[0] == code
    assert code in EXIT_CODES


def test_a_bug_gives_one_line_and_the_traceback_on_request(run, monkeypatch):
    def broken(document: object) -> None:
        raise ZeroDivisionError("oh no")

    monkeypatch.setattr(schema.console, "emit", broken)
    short = run("schema")
    assert short.exit_code == 1
    assert "ZeroDivisionError: oh no" in short.stderr
    assert "--debug" in short.stderr
    assert "Traceback" not in short.stderr
    long = run("schema", "--debug")
    assert long.exit_code == 1
    assert "Traceback" in long.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["evil"], 2, "Did you mean 'eval'?"),
        (["eval"], 2, "MODEL"),
        (["eval", "m.pt", "--data", "digits", "--tire", "smoke"], 2, "--tire"),
        (["eval", "m.pt", "--data", "digits"], 2, "--threat is missing"),
        (["eval", "m.pt", "--data", "digits", "--threat", "Linf:0.1"], 3, "no model 'm.pt'"),
        (["eval", "m.pt", "--data", "digitz", "--threat", "Linf:0.1"], 3, "Did you mean 'digits'?"),
        (["eval", "m.pt", "--data", "digits", "--threat", "Linf:0.1", "--tier", "smok"], 3, "Did you mean 'smoke'?"),
        (["eval", "m.pt", "--data", "digits", "--threat", "Linf:a"], 2, "not a number"),
        (["eval", "m.pt", "--data", "digits", "--threat", "Linf:0.1", "--device", "cuda:99"], 4, "no device cuda:99"),
        (["eval", "m.pt", "--data", "digits", "--threat", "Linf:0.1", "--device", "tpu"], 2, "--device"),
        (["eval", "m.pt", "--data", "digits", "--threat", "Linf:0.1", "--output", "logit"], 2, "--output"),
        (["verify", "nowhere"], 3, "nowhere"),
        (["board", "build", "nowhere"], 3, "nowhere"),
        (["show", "apgd"], 3, "apgd-ce"),
        (["ls", "atacks"], 2, "Did you mean 'attacks'?"),
        (["check", "nofile.py:X"], 3, "nofile.py"),
        (["train", "trade", "--data", "digits", "-o", "m"], 3, "Did you mean 'trades'"),
        (["train", "smoothing", "--data", "digits", "-o", "m"], 2, "smoothing"),
    ],
)
def test_errors_in_words_and_as_json(run, arguments, code, words):
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (code, "")
    assert words in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    as_json = run(*arguments, "--json")
    assert as_json.exit_code == code
    error = as_json.document["error"]
    assert error["exit_code"] == code
    assert words in " ".join(error["message"].split())
    assert error["type"]


def test_ctrl_c_ends_with_130_and_the_same_command_resumes(tmp_path: Path, checkpoint: Path):
    command = [sys.executable, "-m", "robustsuite", "eval", str(checkpoint), "--data", "digits", "--subset", "first:24"]
    command += ["--threat", "Linf:0.05", "--attack", "fgsm,pgd", "--threads", "1", "--device", "cpu"]
    slow = [*command, "-A", "pgd.steps=200000"]
    process = subprocess.Popen(
        slow,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Tests that were started in the background inherit an ignored SIGINT, and would pass it on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    seen = ""
    while "pgd: started" not in seen:
        line = process.stderr.readline()
        assert line, f"ended early: {seen}"
        seen += line
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    assert "interrupted: nothing finished is lost; the same command resumes." in err
    (run_dir,) = (p for p in (tmp_path / "runs").iterdir() if not p.name.startswith("."))
    assert (run_dir / "request.json").exists()
    assert any((run_dir / "ledger" / "fgsm").iterdir())
    assert not (run_dir / "record.json").exists()


def test_a_closed_pipe_is_no_error():
    done = subprocess.run(
        f"{sys.executable} -m robustsuite ls --json | head -c 20",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.startswith("{")
    assert "Traceback" not in done.stderr
    assert "error" not in done.stderr


def test_tables_are_not_squeezed_in_a_pipe(run):
    assert console.stdout().width >= 120


def test_completion_knows_the_commands():
    asked = {"_ROBUSTSUITE_COMPLETE": "complete_bash", "COMP_WORDS": "robustsuite ev", "COMP_CWORD": "1"}
    script = "from robustsuite.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, **asked}, capture_output=True, text=True, check=False
    )
    assert "eval" in done.stdout.split()


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_terminal_gets_bars(checkpoint, tmp_path):
    import pty

    controller, terminal = pty.openpty()
    drawn = bytearray()

    def read() -> None:
        with contextlib.suppress(OSError):  # what Linux says when the other end is closed
            while chunk := os.read(controller, 4096):
                drawn.extend(chunk)

    reader = threading.Thread(target=read)
    reader.start()
    command = [sys.executable, "-m", "robustsuite", "eval", str(checkpoint), "--data", "digits", "--subset", "first:24"]
    command += ["--threat", "Linf:0.1", "--tier", "smoke", "--threads", "1", "--json"]
    done = subprocess.run(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=terminal, text=True, check=False)
    os.close(terminal)
    reader.join(timeout=30)
    os.close(controller)
    text = drawn.decode(errors="replace")
    assert done.returncode == 0, text
    assert json.loads(done.stdout)["status"] == "complete"
    assert "started on" not in text
    assert "24/24" in text
