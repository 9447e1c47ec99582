"""`robustsuite doctor`: what is installed, what it can do, and the traps that are known. No network."""

import importlib.metadata as metadata
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import typer

from robustsuite.cli import console
from robustsuite.cli.options import Json, Plugins

_LEAST_FREE_GB = 2.0


@dataclass(frozen=True)
class Line:
    """One thing that was looked at."""

    name: str
    status: Literal["ok", "info", "warning", "missing"]
    detail: str


def doctor(plugin: Plugins = [], as_json: Json = False) -> None:  # noqa: B006  (typer's way to say: none given)
    """Look at this installation: versions, devices, threads, traps, data, disk. Exits with 4 if a part is missing."""
    lines = [*_python(), *_torch(), *_dependencies(), *_traps(), *_places(), *_plugins(plugin)]
    missing = [line for line in lines if line.status == "missing"]
    if as_json:
        console.emit({"ok": not missing, "checks": [asdict(line) for line in lines]})
    else:
        for line in lines:
            console.say(f"{line.status:<8} {line.name}: {line.detail}")
    if missing:
        raise typer.Exit(4)


def _python() -> Iterator[Line]:
    good = sys.version_info >= (3, 11)
    yield Line("python", "ok" if good else "missing", f"{platform.python_version()} (3.11 or newer is needed)")
    yield Line("system", "info", f"{platform.system()} {platform.release()}, {platform.machine()}")


def _torch() -> Iterator[Line]:
    try:
        import torch
    except Exception as error:  # a broken wheel may raise anything
        yield Line("torch", "missing", f"cannot be imported ({type(error).__name__}: {error}); reinstall it")
        return
    from robustsuite.evaluation.plan import cores

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    yield Line("device", "ok", ", ".join(gpus) if gpus else f"cpu (torch {torch.__version__} sees no GPU)")
    threads, there = torch.get_num_threads(), cores()
    set_by = ", ".join(f"{k}={os.environ[k]}" for k in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if k in os.environ)
    detail = f"{there} cores, torch would take {threads} threads{f' ({set_by})' if set_by else ''}; a run takes {there}"
    yield Line("threads", "ok" if threads <= there else "warning", f"{detail} unless --threads says otherwise")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _dependencies() -> Iterator[Line]:
    """What the package says that it needs, then its extras."""
    try:
        needs = metadata.requires("robustsuite") or []
    except metadata.PackageNotFoundError:
        yield Line("robustsuite", "missing", "not installed, its dependencies are unknown: pip install -e .")
        return
    for need in needs:
        name = re.split(r"[^\w.-]", need, maxsplit=1)[0]
        extra = re.search(r"extra == ['\"](.+?)['\"]", need)
        version = _version(name)
        if extra is None:
            yield Line(name, "ok" if version else "missing", version or f"not installed: pip install '{need}'")
        elif name != "robustsuite":
            detail = version or f"not installed (optional: pip install 'robustsuite[{extra[1]}]')"
            yield Line(f"{name} [{extra[1]}]", "ok" if version else "info", detail)


def _traps() -> Iterator[Line]:
    """Known conflicts, told from installed file lists: importing the packages could fail or run the wrong code."""
    yield from _torchvision()
    yield from _pyautoattack()
    yield from _torchattacks()
    yield from _robustbench()
    yield from _alpha_beta_crown()


def _torchvision() -> Iterator[Line]:
    vision, torch = _version("torchvision"), _version("torch")
    if vision is None:
        yield Line("torchvision", "info", "not installed; robustsuite does not need it")
        return
    wanted = next((r for r in metadata.requires("torchvision") or [] if r.startswith("torch")), "")
    pinned = wanted.partition("==")[2].strip(" ;()")
    same = not pinned or (torch or "").split("+")[0] == pinned.split("+")[0]
    builds = {v.partition("+")[2] or "default" for v in (vision, torch or "")}
    if same and len(builds) == 1:
        yield Line("torchvision", "ok", f"{vision} fits torch {torch}")
    else:
        remedy = "other packages that import it may fail with 'operator torchvision::nms does not exist'"
        yield Line("torchvision", "warning", f"{vision} wants {wanted or 'another torch'}, torch is {torch}: {remedy}")


def _pyautoattack() -> Iterator[Line]:
    version = _version("pyautoattack")
    if version is None:
        return
    detail = "constructor and results differ from AutoAttack's, its resume is not used: reference:autoattack knows it"
    tested = version.startswith("0.2.")
    remedy = "" if tested else "; only 0.2 is tested: pip install 'pyautoattack<0.3'"
    yield Line("pyautoattack is not AutoAttack", "info" if tested else "warning", f"{version}: {detail}{remedy}")


def _torchattacks() -> Iterator[Line]:
    if _version("torchattacks") is None:
        return
    requests = _version("requests") or "absent"
    held = requests.startswith("2.25.")
    detail = f"torchattacks 3.5.1 asks for requests 2.25 (of 2020), here is {requests}; its attacks do not use it"
    yield Line("torchattacks pins requests", "info", detail if held else f"{detail}, whatever pip check says")


def _robustbench() -> Iterator[Line]:
    if _version("robustbench") is None:
        return
    from robustsuite.models import robustbench

    setuptools = _version("setuptools")
    if find_spec("pkg_resources") is None:
        detail = f"it imports pkg_resources, which setuptools {setuptools} no longer has: pip install 'setuptools<81'"
        yield Line("robustbench needs setuptools<81", "warning", detail)
    else:
        yield Line("robustbench needs setuptools<81", "ok", f"setuptools {setuptools} has the pkg_resources it imports")
    if find_spec("autoattack") is None:
        detail = "it imports a module 'autoattack' that PyPI does not have; robustsuite lends it pyautoattack"
        there = _version("pyautoattack") is not None
        yield Line("robustbench needs autoattack", "info" if there else "warning", detail)
    unmet = robustbench.unmet_pins()
    if unmet:
        wanted = "its pins are not met, models may load wrongly or not at all"
        yield Line("robustbench's pins", "warning", f"{', '.join(unmet)}: {wanted}: pip install robustbench==1.1.1")
    else:
        yield Line("robustbench's pins", "ok", "met (timm, gdown)")
    yield _own_files(robustbench.altered_files(), robustbench.REPAIR)


def _own_files(altered: list[str], remedy: str) -> Line:
    """torchattacks 3.5.1 ships a robustbench/ of 2022: the one installed last wins, and pip removes it with either."""
    theirs = {str(f) for f in metadata.files("torchattacks") or []} if _version("torchattacks") else set()
    if not altered:
        shared = sum(f.startswith("robustbench/") and f.endswith(".py") for f in theirs)
        return Line("robustbench is whole", "ok", f"although torchattacks ships {shared} files of the same names")
    whose = "torchattacks'" if theirs.issuperset(altered) else "changed or gone"
    shown = ", ".join(altered[:4]) + (", ..." if len(altered) > 4 else "")
    return Line("robustbench is overwritten", "warning", f"{len(altered)} of its files are {whose} ({shown}): {remedy}")


def _alpha_beta_crown() -> Iterator[Line]:
    from robustsuite.certification.reference.alpha_beta_crown import find, identity
    from robustsuite.errors import PrerequisiteError, UsageError

    try:
        yield Line("alpha-beta-CROWN", "ok", identity(find()))
    except (PrerequisiteError, UsageError) as error:
        yield Line("alpha-beta-CROWN", "info", f"optional: {error}")


def _places() -> Iterator[Line]:
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    status = "ok" if free >= _LEAST_FREE_GB else "warning"
    yield Line("disk", status, f"{free:.1f} GB free in the current directory")
    named = os.environ.get("ROBUSTSUITE_DATA")
    root = Path(named) if named else Path(__file__).resolve().parents[3] / "shared" / "data"
    if (root / "checkpoints").is_dir():
        yield Line("shared data", "ok", f"found at {root}")
    else:
        detail = "not found (only some tests want it; set ROBUSTSUITE_DATA to its folder)"
        yield Line("shared data", "warning" if named else "info", detail)


def _plugins(files: list[str]) -> Iterator[Line]:
    from robustsuite.registry import ENTRY_POINT_GROUP, FAILURES, load_entry_points, load_plugin_file

    for file in files:
        load_plugin_file(file)
    load_entry_points()
    there = len(metadata.entry_points(group=ENTRY_POINT_GROUP)) + len(files)
    for failure in FAILURES:
        yield Line("plugin", "warning", f"{failure.origin} fails to load: {failure.reason}")
    if not FAILURES:
        yield Line("plugins", "ok", f"{there} found, all load" if there else "none installed")
