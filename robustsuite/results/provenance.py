"""What made a run: the software (part of the record's content) and the machine (which may differ between runs)."""

import hashlib
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Any

import robustsuite
from robustsuite.registry import ENTRY_POINT_GROUP
from robustsuite.results.schema import Host, Provenance

PACKAGES = (
    "torch",
    "numpy",
    "scipy",
    "pandas",
    "pydantic",
    "safetensors",
    "scikit-learn",
    "pillow",
    "pyautoattack",
    "torchattacks",
    "robustbench",
)
_GIT_SECONDS = 10


def provenance(determinism: Mapping[str, Any]) -> Provenance:
    """The software of this process; ``determinism`` says how torch was set up (threads, TF32, algorithms)."""
    return Provenance(
        suite_version=robustsuite.__version__,
        git=git_state(),
        python=platform.python_version(),
        packages=package_versions(),
        determinism=dict(determinism),
    )


def git_state(package: Path | None = None) -> dict[str, Any]:
    """``commit`` and ``dirty`` of the source tree that the suite is installed from; both None when it is not one.

    Only a checkout of the suite itself counts: an environment that lies inside another project's repository says
    nothing about this code. Dirty means changed or new files in the package.
    """
    package = package or Path(robustsuite.__file__).resolve().parent
    unknown = {"commit": None, "dirty": None}
    top = _git(package, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != package.parent.resolve():
        return unknown
    commit, changes = _git(package, "rev-parse", "HEAD"), _git(package, "status", "--porcelain", "--", ".")
    if commit is None or changes is None:
        return unknown
    return {"commit": commit, "dirty": bool(changes)}


def _git(folder: Path, *arguments: str) -> str | None:
    """Output of a git command, or None when there is no git or it fails."""
    # A hook's GIT_DIR would point at another repository; asking for the status must not write the index.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")} | {"GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=_GIT_SECONDS,
            env=environment,
            check=False,
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def package_versions() -> dict[str, str]:
    """Versions of the installed packages that can move an outcome, plugins' packages included; none is imported."""
    plugins = {point.dist.name for point in entry_points(group=ENTRY_POINT_GROUP) if point.dist is not None}
    found: dict[str, str] = {}
    for name in (*PACKAGES, *sorted(plugins - set(PACKAGES))):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def host(
    *,
    device_name: str,
    stage_seconds: Mapping[str, float],
    command: str = "",
    executed_forward: int = 0,
    executed_backward: int = 0,
    wall_seconds: float = 0.0,
    now: datetime | None = None,
) -> Host:
    """The machine and the times of a run that ends ``now`` (UTC); the host's name goes in as a hash."""
    return Host(
        created_utc=(now or datetime.now(UTC)).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        command=command,
        hostname_sha256=hashlib.sha256(platform.node().encode()).hexdigest(),
        os=f"{platform.system()} {platform.release()}",
        cpu=cpu_model(),
        device_name=device_name,
        stage_seconds=dict(stage_seconds),
        executed_forward=executed_forward,
        executed_backward=executed_backward,
        wall_seconds=wall_seconds,
    )


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name, or its architecture where the system does not tell."""
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine() or "unknown"
