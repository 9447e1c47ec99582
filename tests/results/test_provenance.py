import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from importlib.metadata import version
from pathlib import Path

import pytest

import robustsuite
from robustsuite.results import provenance as module


def git(folder, *arguments):
    identity = ["-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path):
    """A repository with a package in it."""
    package = tmp_path / "repo" / "suite"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    git(package.parent, "init", "-q")
    git(package.parent, "add", ".")
    git(package.parent, "commit", "-q", "-m", "first")
    return package


def test_git_state_of_a_checkout(checkout, monkeypatch):
    head = git(checkout, "rev-parse", "HEAD")
    assert module.git_state(checkout) == {"commit": head, "dirty": False}
    (checkout.parent / "notes.txt").write_text("outside the package")
    assert module.git_state(checkout) == {"commit": head, "dirty": False}
    monkeypatch.setenv("GIT_DIR", "/nowhere")  # as inside a hook
    (checkout / "new.py").write_text("")
    assert module.git_state(checkout) == {"commit": head, "dirty": True}


def test_an_installation_inside_another_repository_is_no_checkout(checkout):
    installed = checkout.parent / "venv" / "suite"
    installed.mkdir(parents=True)
    assert module.git_state(installed) == {"commit": None, "dirty": None}


def test_no_repository_and_no_git(tmp_path, checkout, monkeypatch):
    assert module.git_state(tmp_path) == {"commit": None, "dirty": None}
    monkeypatch.setenv("PATH", str(tmp_path))
    assert module.git_state(checkout) == {"commit": None, "dirty": None}


def test_provenance_names_versions_and_no_path():
    made = module.provenance({"threads": 1})
    assert made.suite_version == robustsuite.__version__
    assert made.determinism == {"threads": 1}
    assert made.packages["torch"] == version("torch")
    assert {"numpy", "scipy", "safetensors"} <= made.packages.keys()
    text = made.model_dump_json()
    assert str(Path(robustsuite.__file__).parent.parent) not in text
    assert str(Path.home()) not in text


def test_host_hides_the_name_and_is_in_utc():
    moment = datetime(2026, 5, 1, 1, 30, tzinfo=timezone(timedelta(hours=2)))
    made = module.host(device_name="cpu", stage_seconds={"fgsm": 0.5}, command="robustsuite eval", now=moment)
    assert made.created_utc == "2026-04-30T23:30:00Z"
    assert re.fullmatch("[0-9a-f]{64}", made.hostname_sha256)
    assert made.stage_seconds == {"fgsm": 0.5}
    assert made.cpu
    assert abs(datetime.now(UTC) - _created(module.host(device_name="cpu", stage_seconds={}))) < timedelta(minutes=1)


def _created(host):
    return datetime.strptime(host.created_utc, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)


def test_cpu_model(tmp_path):
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nmodel name\t: Fast CPU @ 3 GHz\nprocessor\t: 1\nmodel name\t: other\n")
    assert module.cpu_model(info) == "Fast CPU @ 3 GHz"
    assert module.cpu_model(tmp_path / "missing")


def test_results_import_no_torch():
    code = (
        "import sys; from robustsuite.results import migrations, provenance, records, schema, statistics, store\n"
        "provenance.provenance({}); statistics.interval(1, 2); records.json_schema(); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
