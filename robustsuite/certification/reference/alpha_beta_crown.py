"""Verdicts of alpha-beta-CROWN, a program of its own that is handed the network and one property an image."""

import hashlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from torch import Tensor

from robustsuite.certification.base import Certificates, Certifier
from robustsuite.certification.reference import onnx_graph, vnnlib
from robustsuite.errors import InputError, PrerequisiteError, UsageError
from robustsuite.models.classifier import Classifier, fooled
from robustsuite.noise import ExampleNoise
from robustsuite.registry import register_certifier
from robustsuite.results.provenance import git_state
from robustsuite.threat import ThreatModel

ENVIRONMENT = "ROBUSTSUITE_ABCROWN"
_UNSAT, _SAT = ("unsat", "holds"), ("sat", "violated")  # the second of each: VNN-COMP's words of 2021
_SECTIONS = ("attack", "bab", "general", "solver")
_COMPARED = 4  # images on which the exported network is compared


@register_certifier(
    "reference:alpha-beta-crown", norms=("Linf",), kind="deterministic", paper="Wang et al. 2021, arXiv:2103.06624"
)
@dataclass(frozen=True)
class AlphaBetaCrown(Certifier):
    """alpha-beta-CROWN, run once for each image: the network as ONNX, the ball within [0,1] as VNN-LIB.

    ``command`` is the path of its ``abcrown.py``, or a command such as ``/opt/env/bin/python /opt/abcrown.py``; empty
    stands for ROBUSTSUITE_ABCROWN, then for ``abcrown.py`` or ``abcrown`` on PATH, which keeps paths out of the record.
    ``config`` is a YAML file of its own that tunes the search. It is told to stop after ``timeout`` seconds an image,
    and killed when it takes ``startup`` seconds beyond, so that what it reaches depends on the machine. ``device`` is
    ``cpu``, ``cuda`` or ``auto``: the model's.

    Only its word ``unsat`` certifies. Whatever else happens leaves the image undecided and is told in a warning; the
    counterexample of ``sat`` is tried on the model first. The program works in float32 and does not widen bounds by
    what that may be wrong by, and the guarantee says so, and whose word it is. ``program`` and ``config_sha256`` are
    filled in from what is there. Raises `PrerequisiteError` without the program or onnx, `InputError` for a network
    that cannot be exported and for a program or config that is not the recorded one.
    """

    command: str = ""
    config: str = ""
    timeout: float = 60.0
    startup: float = 60.0
    device: str = "auto"
    program: str = ""
    config_sha256: str = ""

    cost = (4, 0)

    def __post_init__(self) -> None:
        if not (0 < self.timeout < float("inf") and 0 <= self.startup < float("inf")):
            raise UsageError(f"timeout must be > 0 and startup >= 0, got {self.timeout} and {self.startup}.")
        if self.device not in ("auto", "cpu", "cuda"):
            raise UsageError(f"device must be auto, cpu or cuda, got '{self.device}'.")
        with suppress(PrerequisiteError):
            self._pin("program", identity(find(self.command)))
        if self.config:
            self._pin("config_sha256", read_config(Path(self.config)))

    def certify(
        self, model: Classifier, x: Tensor, y: Tensor, threat: ThreatModel, noise: ExampleNoise
    ) -> Certificates:
        """Certificates at eps for the images that the model gets right."""
        reason = _refusal(model, threat)
        if reason:
            raise UsageError(reason)
        command = find(self.command)
        predicted = model.logits(x).argmax(1)
        right = (predicted == y).nonzero().flatten().tolist()
        radius = torch.zeros(y.shape, dtype=torch.float64, device=x.device)
        with tempfile.TemporaryDirectory(prefix="robustsuite-") as name:
            folder = Path(name)
            if right:
                onnx_graph.export(model, folder / "network.onnx")
                onnx_graph.check(model, folder / "network.onnx", x[right[:_COMPARED]])
            for i in right:
                row = slice(i, i + 1)
                proved, told = self._verdict(command, folder, model, x[row], y[row], threat)
                radius[i] = threat.radius * proved
                if told:
                    warnings.warn(f"alpha-beta-CROWN, image {int(noise.ids[i])}: {told}", RuntimeWarning, stacklevel=2)
        whose = self.program or identity(command)
        return Certificates(radius, predicted, f"deterministic in exact arithmetic (on the word of {whose})")

    def unsupported(self, model: Classifier, threat: ThreatModel) -> str | None:
        """Why the program is not there or cannot be handed this network, None where it can."""
        reason = _refusal(model, threat)
        if reason:
            return reason
        try:
            find(self.command)
            with tempfile.TemporaryDirectory(prefix="robustsuite-") as name:
                onnx_graph.export(model, Path(name) / "network.onnx")
                blank = torch.zeros(2, *model.input_shape, device=model.device)
                onnx_graph.check(model, Path(name) / "network.onnx", blank)
        except (PrerequisiteError, InputError) as error:
            return str(error)
        return None

    def _verdict(
        self, command: list[str], folder: Path, model: Classifier, x: Tensor, y: Tensor, threat: ThreatModel
    ) -> tuple[bool, str]:
        """Whether one image ``[1,...]`` is certified, and what there is to tell about it."""
        lower, upper = vnnlib.float32_box(x, threat.radius)
        asked = vnnlib.robustness_property(lower, upper, int(y), model.num_classes)
        (folder / "property.vnnlib").write_text(asked)
        device = model.device.type if self.device == "auto" else self.device
        word, rest = self._answer(command, folder, "cuda" if device == "cuda" else "cpu")
        if word in _UNSAT:
            return True, ""
        if word in _SAT:
            return False, _examined(vnnlib.counterexample(rest, tuple(x.shape)), rest, model, x, y, threat)
        return False, f"undecided, {rest}"

    def _answer(self, command: list[str], folder: Path, device: str) -> tuple[str, str]:
        """The program's word in small letters and what follows it; no word, and why, where it did not get to one."""
        config, results, log = folder / "none.yaml", folder / "results.txt", folder / "output.txt"
        config.write_text("{}\n")  # the program does not start without a file
        results.unlink(missing_ok=True)
        arguments = [
            *("--config", str(Path(self.config).resolve() if self.config else config)),
            *("--onnx_path", str(folder / "network.onnx"), "--vnnlib_path", str(folder / "property.vnnlib")),
            *("--results_file", str(results), "--save_adv_example"),
            *("--timeout", f"{self.timeout:g}", "--device", device),
        ]
        code = run([*command, *arguments], log, self.timeout + self.startup)
        if code is None:
            return "", f"it did not end within {self.timeout + self.startup:g} s and was killed."
        if code:
            return "", f"it ended with code {code} ({_last_line(log)})."
        if not results.is_file():
            return "", f"it wrote no results file ({_last_line(log)})."
        first, _, rest = results.read_text(errors="replace").strip().partition("\n")
        word = first.strip().lower()
        if word in _UNSAT or word in _SAT:
            return word, rest
        return "", f"its answer is {first.strip()[:40]!r}."

    def _pin(self, name: str, found: str) -> None:
        recorded = getattr(self, name)
        if recorded and found != recorded:
            raise InputError(f"{name} is not the one that was recorded: it is {found}, not {recorded}.")
        object.__setattr__(self, name, found)


def find(command: str = "") -> list[str]:
    """The program as the start of a command line, files by their full paths.

    ``command``, else the environment variable ROBUSTSUITE_ABCROWN, else what is on PATH. A ``.py`` file is run by this
    Python. Raises `PrerequisiteError` where there is none.
    """
    named = command or os.environ.get(ENVIRONMENT, "") or shutil.which("abcrown.py") or shutil.which("abcrown") or ""
    try:
        parts = [named] if Path(named).is_file() else shlex.split(named)
    except ValueError as error:
        raise UsageError(f"'{named}' is not a command ({error}).") from error
    absent = [part for part in parts if part.endswith(".py") and not Path(part).is_file()]
    if parts and not Path(parts[0]).is_file() and shutil.which(parts[0]) is None:
        absent.append(parts[0])
    if absent or not parts:
        raise PrerequisiteError(
            "reference:alpha-beta-crown needs alpha-beta-CROWN, a program of its own "
            f"({f'{absent[0]} is not there' if absent else 'none is named and none is on PATH'}). Get "
            "github.com/Verified-Intelligence/alpha-beta-CROWN and set ROBUSTSUITE_ABCROWN to the path of its "
            "abcrown.py, or to a command: 'PYTHON ABCROWN.PY'."
        )
    parts = [str(Path(part).absolute()) if Path(part).is_file() else part for part in parts]
    return [sys.executable, *parts] if parts[0].endswith(".py") else parts


def identity(command: list[str]) -> str:
    """The program by version and commit (``changed`` where files differ from it), else by the hash of its script."""
    script = next((Path(part) for part in command if part.endswith(".py")), None)
    if script is None:
        return "alpha-beta-CROWN of unknown version"
    folder = script.resolve().parent
    told = (folder / "__init__.py").read_text() if (folder / "__init__.py").is_file() else ""
    version = re.search(r"^__version__ = ['\"](.+?)['\"]", told, re.MULTILINE)
    named = f"alpha-beta-CROWN {version[1]}" if version else "alpha-beta-CROWN"
    state = git_state(folder)
    if state["commit"]:
        return f"{named}, commit {state['commit'][:12]}{', changed' if state['dirty'] else ''}"
    return f"{named}, script {_sha256(script)[:12]}"


def read_config(path: Path) -> str:
    """sha256 of a configuration; raises `InputError` where it is missing, no YAML, or changes what is asked."""
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"config {path} cannot be read ({type(error).__name__}); name a YAML file.") from error
    if not isinstance(content, dict):
        raise InputError(f"config {path} must hold sections, out of {', '.join(_SECTIONS)}.")
    foreign = sorted(str(section) for section in content if section not in _SECTIONS)
    if foreign:
        raise InputError(
            f"config {path} has {', '.join(foreign)}: network, images and property are the evaluation's, so that only "
            f"{', '.join(_SECTIONS)} may be set; take the rest out."
        )
    return _sha256(path)


def run(command: list[str], log: Path, seconds: float) -> int | None:
    """Run ``command`` in the folder of ``log``, which gets its output; its code, None where it took too long.

    Whatever it has started is gone when this returns.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=log.parent,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _refusal(model: Classifier, threat: ThreatModel) -> str | None:
    if threat.norm != "Linf":
        return f"VNN-LIB knows boxes, so that it can be asked about Linf alone, not {threat.norm}."
    if model.facts.randomized or type(model) is not Classifier:
        return "it verifies plain deterministic networks, and this model is wrapped or randomised."
    return None


def _examined(found: Tensor | None, text: str, model: Classifier, x: Tensor, y: Tensor, threat: ThreatModel) -> str:
    """What is wrong with a counterexample that an answer of ``sat`` came with; empty where it is one, or none came."""
    if found is None:
        return "not certified, and its counterexample is not whole." if text.strip() else ""
    lower, upper = vnnlib.float32_box(x, threat.radius)
    if bool(((found < lower.cpu()) | (found > upper.cpu())).any()):
        return "not certified, but its counterexample lies outside of the box that it was asked about."
    x_adv = x + threat.project(x, found.to(x) - x)
    if not bool(fooled(model.logits(x_adv), y)):
        return "not certified, but its counterexample does not fool the model in float32."
    return ""


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1].strip()[:200] if lines else "no output"


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
