"""The adapter of alpha-beta-CROWN, beside a stand-in that speaks its command line and decides linear networks exactly.

With ROBUSTSUITE_ABCROWN set, the program itself is asked as well.
"""

import os
import re
import stat
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from robustsuite.certification.bab import BaB
from robustsuite.certification.reference.alpha_beta_crown import ENVIRONMENT, AlphaBetaCrown, find, identity
from robustsuite.errors import InputError, PrerequisiteError, UsageError
from robustsuite.models.classifier import Classifier, Facts
from robustsuite.models.normalize import with_normalization
from robustsuite.noise import Noise
from robustsuite.registry import CERTIFIERS
from robustsuite.testing import check_certifier
from robustsuite.threat import ThreatModel

SHAPE, CLASSES = (1, 2, 3), 3
THREAT = ThreatModel.parse("Linf:1/20")

# Its options, its results file and its counterexamples are those of complete_verifier/ in the release of December 2025.
STAND_IN = """
import argparse, os, re, subprocess, sys, time
from fractions import Fraction
import onnx, yaml
from onnx.numpy_helper import to_array

MODE = {mode!r}
parser = argparse.ArgumentParser()
for name in ("--config", "--onnx_path", "--vnnlib_path", "--results_file"):
    parser.add_argument(name, type=os.path.abspath, required=True)
parser.add_argument("--timeout", type=float, required=True)
parser.add_argument("--device", choices=["cpu", "cuda"], required=True)
parser.add_argument("--save_adv_example", action="store_true", required=True)
given = parser.parse_args()
for section, keys in yaml.safe_load(open(given.config)).items():
    for key in keys:
        if (section, key) != ("bab", "batch"):
            raise ValueError(f"Config key {{[section, key]}} not found!")
if MODE == "hang":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    open(__file__ + ".pids", "w").write(f"{{os.getpid()}} {{child.pid}}")
    time.sleep(60)
if MODE == "crash":
    open(given.results_file, "w").write("unsat")
    raise RuntimeError("CUDA out of memory")
if MODE == "killed":
    os.kill(os.getpid(), 9)
if MODE == "nothing":
    sys.exit(0)
if MODE in ("garbage", "timeout", "unknown", "", "holds", "violated", "UNSAT"):
    open(given.results_file, "wb").write(b"\\x80\\x04\\x95 pickle" if MODE == "garbage" else MODE.encode())
    sys.exit(0)

text = open(given.vnnlib_path).read()
read = lambda op: [Fraction(v) for v in re.findall(rf"\\({{op}} X_\\d+ ([\\d.]+)\\)", text)]
ends = {{op: read(op) for op in (">=", "<=")}}
pairs = [(int(a), int(b)) for a, b in re.findall(r"\\(and \\(>= Y_(\\d+) Y_(\\d+)\\)\\)", text)]
graph = onnx.load(given.onnx_path).graph
parts = {{i.name: to_array(i).tolist() for i in graph.initializer}}
if [n.op_type for n in graph.node] != ["Flatten", "Gemm"]:
    open(given.results_file, "w").write("timeout")  # it knows linear networks alone
    sys.exit(0)
weight, bias = (parts[name] for name in graph.node[1].input[1:])
answer = "unsat"
for j, label in pairs:
    rows = [Fraction(a) - Fraction(b) for a, b in zip(weight[j], weight[label])]
    worst = [high if row > 0 else low for row, low, high in zip(rows, ends[">="], ends["<="])]
    if sum(r * v for r, v in zip(rows, worst)) + Fraction(bias[j]) - Fraction(bias[label]) >= 0:
        if MODE == "outside":
            worst = [v + 1 for v in worst]
        if MODE == "harmless":
            worst = [(low + high) / 2 for low, high in zip(ends[">="], ends["<="])]
        lines = [f"(X_{{i}}  {{float(v)}})" for i, v in enumerate(worst)]
        lines = lines[1:] if MODE == "torn" else lines
        answer = "sat\\n(" + "\\n".join([*lines, "(Y_0  1.0)"]) + ")"
with open(given.results_file, "w") as file:
    file.write(answer)
"""


@pytest.fixture
def stand_in(tmp_path):
    """Path of an abcrown.py that behaves in one of several ways."""
    pytest.importorskip("onnx", reason="onnx is not installed")

    def write(mode="exact"):
        path = tmp_path / "a folder" / "abcrown.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(STAND_IN.format(mode=mode))
        return f"'{path}'"

    return write


def linear(**facts):
    generator = torch.Generator().manual_seed(3)
    layer = nn.Linear(6, CLASSES)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(CLASSES, 6, generator=generator))
        layer.bias.copy_(-layer.weight.sum(1) / 2)
    return Classifier(nn.Sequential(nn.Flatten(), layer), num_classes=CLASSES, input_shape=SHAPE, facts=Facts(**facts))


def images(count, seed=4):
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


def certify(plugin, model, x, y=None, threat=THREAT):
    y = model.logits(x).argmax(1) if y is None else y
    return plugin.certify(model, x, y, threat, Noise(0, "s").at(100 + torch.arange(len(x))))


def smallest_margins(model, x, y, eps):
    """In closed form: every pixel at the end of its interval that is worst for the pair of classes."""
    weight, bias = (p.double() for p in model.module[1].parameters())
    low, high = ((x.double() + sign * eps).clamp(0, 1).flatten(1) for sign in (-1, 1))
    rows, offsets = weight[y].unsqueeze(1) - weight, bias[y].unsqueeze(1) - bias
    margins = (rows.clamp(min=0) * low.unsqueeze(1) + rows.clamp(max=0) * high.unsqueeze(1)).sum(2) + offsets
    return margins.scatter(1, y.view(-1, 1), float("inf")).amin(1)


def test_linear_networks_are_decided_as_the_closed_form_does(stand_in):
    model, x = linear(), images(10)
    y = model.logits(x).argmax(1)
    y[0] = (y[0] + 1) % CLASSES
    margins = smallest_margins(model, x, y, THREAT.radius)
    assert float(margins.abs().amin()) > 1e-3
    plugin = AlphaBetaCrown(command=stand_in())
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # every counterexample fools the model
        found = certify(plugin, model, x, y)
    assert found.predicted.tolist() == model.logits(x).argmax(1).tolist()
    assert found.radius.tolist() == (THREAT.radius * (margins > 0).double()).tolist()
    assert 2 < int((found.radius > 0).sum()) < 8
    assert re.fullmatch(
        r"deterministic in exact arithmetic \(on the word of alpha-beta-CROWN, script [0-9a-f]{12}\)", found.guarantee
    )
    assert plugin.unsupported(model, THREAT) is None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:alpha-beta-CROWN")
def test_the_contract_holds(stand_in):
    findings = check_certifier(CERTIFIERS.entries["reference:alpha-beta-crown"], {"command": stand_in()})
    assert [f for f in findings if not f.ok] == []


@pytest.mark.parametrize(
    ("mode", "cause"),
    [
        ("crash", r"ended with code 1 \(RuntimeError: CUDA out of memory\)"),
        ("killed", r"ended with code -9 \(no output\)"),
        ("nothing", r"wrote no results file"),
        ("garbage", r"its answer is .*pickle"),
        ("timeout", r"its answer is 'timeout'"),
        ("unknown", r"its answer is 'unknown'"),
        ("", r"its answer is ''"),
    ],
)
def test_whatever_is_no_verdict_leaves_the_image_undecided_and_is_told(stand_in, mode, cause):
    model, x = linear(), images(14)[6:7]
    assert float(smallest_margins(model, x, model.logits(x).argmax(1), THREAT.radius)) > 0
    with pytest.warns(RuntimeWarning, match=rf"alpha-beta-CROWN, image 100: undecided, .*{cause}"):
        found = certify(AlphaBetaCrown(command=stand_in(mode)), model, x)
    assert found.radius.tolist() == [0.0]


def test_a_program_that_hangs_is_killed_with_all_that_it_started(stand_in):
    started = time.monotonic()
    plugin = AlphaBetaCrown(command=stand_in("hang"), timeout=0.5, startup=3)
    with pytest.warns(RuntimeWarning, match=r"did not end within 3\.5 s and was killed"):
        found = certify(plugin, linear(), images(1))
    assert found.radius.tolist() == [0.0]
    assert time.monotonic() - started < 30
    for pid in Path(plugin.command.strip("'") + ".pids").read_text().split():
        for _ in range(50):
            if not alive(pid):
                break
            time.sleep(0.1)
        assert not alive(pid)


def alive(pid):
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize(("mode", "radius"), [("holds", THREAT.radius), ("UNSAT", THREAT.radius), ("violated", 0.0)])
def test_the_words_of_earlier_years_are_understood(stand_in, mode, radius):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert certify(AlphaBetaCrown(command=stand_in(mode)), linear(), images(1)).radius.tolist() == [radius]


@pytest.mark.parametrize(
    ("mode", "what"),
    [("outside", "lies outside of the box"), ("harmless", "does not fool the model"), ("torn", "is not whole")],
)
def test_a_counterexample_that_is_none_is_reported(stand_in, mode, what):
    model, x = linear(), images(14)
    y = model.logits(x).argmax(1)
    broken = (smallest_margins(model, x, y, THREAT.radius) < 0).nonzero()[:1, 0]
    with pytest.warns(RuntimeWarning, match=f"not certified, (but|and) its counterexample {what}"):
        found = certify(AlphaBetaCrown(command=stand_in(mode)), model, x[broken])
    assert found.radius.tolist() == [0.0]


def test_the_program_is_found_by_parameter_then_environment_then_path(stand_in, tmp_path, monkeypatch):
    script = Path(stand_in().strip("'"))
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PrerequisiteError, match=r"none is named.*ROBUSTSUITE_ABCROWN"):
        find()
    with pytest.raises(PrerequisiteError, match=r"gone/abcrown\.py is not there"):
        find(f"{sys.executable} gone/abcrown.py")
    with pytest.raises(PrerequisiteError, match="no-such-python is not there"):
        find(f"no-such-python '{script}'")
    with pytest.raises(UsageError, match="not a command"):
        find("python 'abcrown.py")
    entry = tmp_path / "abcrown"
    entry.write_text("#!/bin/sh\n")
    entry.chmod(entry.stat().st_mode | stat.S_IXUSR)
    assert find() == [str(entry)]
    assert identity(find()) == "alpha-beta-CROWN of unknown version"
    monkeypatch.setenv(ENVIRONMENT, f"{sys.executable} '{script}'")
    assert find() == [sys.executable, str(script)]
    monkeypatch.chdir(script.parent)
    assert find("abcrown.py") == [sys.executable, str(script)]


def test_without_the_program_or_onnx_it_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "abcrown.py"))
    plugin = AlphaBetaCrown()
    assert plugin.program == ""
    assert "ROBUSTSUITE_ABCROWN" in str(plugin.unsupported(linear(), THREAT))
    with pytest.raises(PrerequisiteError, match="Verified-Intelligence/alpha-beta-CROWN"):
        certify(plugin, linear(), images(1))
    (tmp_path / "abcrown.py").touch()
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert "pip install onnx" in str(AlphaBetaCrown().unsupported(linear(), THREAT))


def test_the_version_and_commit_of_the_program_are_recorded(tmp_path):
    script = tmp_path / "repository" / "complete_verifier" / "abcrown.py"
    script.parent.mkdir(parents=True)
    script.touch()
    (script.parent / "__init__.py").write_text("__version__ = '0.7.0'\n")
    assert re.fullmatch(r"alpha-beta-CROWN 0\.7\.0, script e3b0c44298fc", identity([sys.executable, str(script)]))
    git = ["git", "-C", str(tmp_path / "repository"), "-c", "user.name=n", "-c", "user.email=e"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "m"], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout[:12]
    named = f"alpha-beta-CROWN 0.7.0, commit {commit}"
    plugin = AlphaBetaCrown(command=f"'{script}'")
    assert plugin.program == named
    assert AlphaBetaCrown(command=f"'{script}'", program=named) == plugin
    script.write_text("pass\n")
    assert AlphaBetaCrown(command=f"'{script}'").program == f"{named}, changed"
    with pytest.raises(InputError, match="program is not the one that was recorded"):
        AlphaBetaCrown(command=f"'{script}'", program=named)


def test_a_config_tunes_the_search_and_nothing_else(stand_in, tmp_path):
    config, command, x = tmp_path / "search.yaml", stand_in(), images(1)
    config.write_text("bab:\n  batch: 3\n")
    plain, tuned = AlphaBetaCrown(command=command), AlphaBetaCrown(command=command, config=str(config))
    assert certify(tuned, linear(), x).radius.tolist() == certify(plain, linear(), x).radius.tolist()
    assert (plain.config_sha256, len(tuned.config_sha256)) == ("", 64)
    config.write_text("bab:\n  nonsense: 3\n")
    with pytest.warns(RuntimeWarning, match=r"ended with code 1 \(ValueError: Config key \['bab', 'nonsense'\]"):
        certify(AlphaBetaCrown(command=command, config=str(config)), linear(), x)
    with pytest.raises(InputError, match="config_sha256 is not the one that was recorded"):
        AlphaBetaCrown(command=command, config=str(config), config_sha256=tuned.config_sha256)
    # These would shrink the box, move the threshold or change the network.
    for text in ("specification:\n  rhs_offset: -1\n", "debug:\n  rescale_vnnlib_ptb: 0.1\n", "model: {}\n"):
        config.write_text(text)
        with pytest.raises(InputError, match="only attack, bab, general, solver may be set"):
            AlphaBetaCrown(command=command, config=str(config))
    for text in ("- a list\n", "", "a: [\n"):
        config.write_text(text)
        with pytest.raises(InputError, match="config"):
            AlphaBetaCrown(command=command, config=str(config))
    with pytest.raises(InputError, match="cannot be read"):
        AlphaBetaCrown(command=command, config=str(tmp_path / "absent.yaml"))


def test_what_it_cannot_be_asked_is_refused(stand_in):
    class Branching(nn.Module):
        def forward(self, x):
            flat = x.flatten(1)[:, :3]
            return flat if float(x.sum()) > 1 else -flat

    plugin = AlphaBetaCrown(command=stand_in())
    branching = Classifier(Branching(), num_classes=CLASSES, input_shape=SHAPE)
    assert "cannot be exported" in str(plugin.unsupported(branching, THREAT))
    with pytest.raises(InputError, match="cannot be exported"):
        certify(plugin, branching, images(4))
    for norm in ("L2", "L1"):
        threat = ThreatModel.parse(f"{norm}:0.1")
        assert f"Linf alone, not {norm}" in str(plugin.unsupported(linear(), threat))
        with pytest.raises(UsageError, match="Linf alone"):
            certify(plugin, linear(), images(1), threat=threat)
    assert "randomised" in str(plugin.unsupported(linear(randomized=True), THREAT))
    for bad in ({"timeout": 0}, {"timeout": float("nan")}, {"startup": -1}, {"device": "tpu"}):
        with pytest.raises(UsageError, match="must be"):
            AlphaBetaCrown(**bad)


def test_it_is_registered_for_linf_alone():
    entry = next(e for e in CERTIFIERS if e.name == "reference:alpha-beta-crown")
    assert entry.target is AlphaBetaCrown
    assert entry.facts["norms"] == ("Linf",)


@pytest.mark.reference
@pytest.mark.slow
@pytest.mark.skipif(ENVIRONMENT not in os.environ, reason="ROBUSTSUITE_ABCROWN is not set")
def test_the_program_itself_agrees_with_our_own_branch_and_bound():
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6, 3)]
    module = with_normalization(nn.Sequential(*layers), [0.4, 0.5], [0.2, 0.3])
    model = Classifier(module, num_classes=3, input_shape=(2, 6, 6))
    x = torch.rand(4, 2, 6, 6)[:2]
    threat = ThreatModel.parse("Linf:0.08")
    theirs = certify(AlphaBetaCrown(), model, x, threat=threat)
    ours = certify(BaB(domains=200), model, x, threat=threat)
    assert theirs.radius.tolist() == ours.radius.tolist()
    assert sorted(theirs.radius.tolist()) == [0.0, threat.radius]
