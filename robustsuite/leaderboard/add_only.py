"""What git says of a published folder: files that are published stay as they are."""

import subprocess
from pathlib import Path

from robustsuite.errors import InputError, PrerequisiteError
from robustsuite.leaderboard.published import ADD_ONLY

_SECONDS = 60
_DIFF = ("diff", "--no-ext-diff", "--no-renames", "-z")
_WORDS = {"M": "was changed", "D": "was deleted", "T": "became another kind of file"}


def changes(root: Path, ref: str) -> list[tuple[str, str]]:
    """(path, what became of it) of published files that are not as they were where ``ref`` and HEAD parted.

    Raises `InputError` when ``root`` is in no git checkout or ``ref`` is no commit of it.
    """
    listed = _git(root, *_DIFF, "--relative", "--name-status", _parted(root, ref), "--", *ADD_ONLY)
    parts = listed.split("\0")[:-1]
    return [
        (path, f"{_WORDS.get(kind, kind)}; what is published is never edited: say what is wrong with a correction")
        for kind, path in zip(parts[::2], parts[1::2], strict=True)
        if kind != "A"
    ]


def unchanged(folder: Path, ref: str) -> bool:
    """Whether nothing below ``folder`` differs from where ``ref`` and HEAD parted, new files included."""
    changed = _git(folder, *_DIFF, "--name-only", _parted(folder, ref), "--", ".")
    new = _git(folder, "ls-files", "--others", "--exclude-standard", "-z", "--", ".")
    return not changed and not new


def _parted(folder: Path, ref: str) -> str:
    commit = _git(folder, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}").strip()
    return _git(folder, "merge-base", commit, "HEAD").strip()


def _git(folder: Path, *arguments: str) -> str:
    # Neither the checkout's own programs nor its hooks are run: it is a stranger's.
    command = ["git", "-c", "core.fsmonitor=false", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PrerequisiteError(f"git cannot be run: {error}. --against needs it.") from error
    if done.returncode:
        said = " ".join(done.stderr.decode(errors="replace").split()) or "no such commit, or no common history"
        raise InputError(
            f"git {arguments[0]} failed in {folder} ({said}). --against takes a commit or branch that this checkout "
            "has: fetch it, with its history (in CI: fetch-depth 0)."
        )
    return done.stdout.decode(errors="replace")
