"""The traps of third-party packages, each simulated: what `doctor` says of it and which command mends it."""

import importlib.metadata as metadata

import pytest

from robustsuite.cli import doctor
from robustsuite.models import robustbench


@pytest.fixture
def world(monkeypatch):
    """Installed versions, requirements, importable modules and file lists as a test wants them."""
    versions = {"pyautoattack": "0.2.0", "robustbench": "1.1.1", "torchattacks": "3.5.1", "setuptools": "80.9.0"}
    versions |= {"timm": "1.0.9", "gdown": "5.1.0", "requests": "2.25.1"}
    modules = {"pkg_resources", "pyautoattack"}
    files = {
        "torchattacks": ["robustbench/__init__.py", "robustbench/data.py", "torchattacks/attack.py"],
        "altered": [],
    }

    def version(name: str) -> str:
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(metadata, "files", lambda name: files[name])
    monkeypatch.setattr(metadata, "requires", lambda name: ["torch>=1.7.1", "timm ==1.0.9", "gdown ==5.1.0"])
    monkeypatch.setattr(doctor, "find_spec", lambda name: name if name in modules else None)
    monkeypatch.setattr(robustbench, "altered_files", lambda: files["altered"])

    def lines():
        found = [*doctor._pyautoattack(), *doctor._torchattacks(), *doctor._robustbench()]
        return {line.name: line for line in found}

    lines.versions, lines.modules, lines.files = versions, modules, files
    return lines


def test_a_good_installation_has_no_warning(world):
    lines = world()
    assert {line.status for line in lines.values()} == {"ok", "info"}
    assert "2 files of the same names" in lines["robustbench is whole"].detail
    assert "lends it pyautoattack" in lines["robustbench needs autoattack"].detail
    assert "resume is not used" in lines["pyautoattack is not AutoAttack"].detail


def test_a_new_setuptools_is_told(world):
    world.modules.remove("pkg_resources")
    world.versions["setuptools"] = "84.2.1"
    line = world()["robustbench needs setuptools<81"]
    assert line.status == "warning"
    assert "84.2.1" in line.detail
    assert "pip install 'setuptools<81'" in line.detail


def test_a_missing_pyautoattack_is_told(world):
    del world.versions["pyautoattack"]
    assert world()["robustbench needs autoattack"].status == "warning"


def test_an_untested_pyautoattack_is_told(world):
    world.versions["pyautoattack"] = "0.3.0"
    assert world()["pyautoattack is not AutoAttack"].status == "warning"


def test_unmet_pins_are_told(world):
    world.versions["timm"] = "1.0.20"
    del world.versions["gdown"]
    line = world()["robustbench's pins"]
    assert line.status == "warning"
    assert "timm 1.0.20 (==1.0.9), gdown absent (==5.1.0)" in line.detail


def test_the_old_requests_that_torchattacks_asks_for_is_only_noted(world):
    world.versions["requests"] = "2.32.0"
    line = world()["torchattacks pins requests"]
    assert line.status == "info"
    assert "2.32.0" in line.detail


def test_overwritten_files_are_named_with_the_command_that_repairs_them(world):
    world.files["altered"] = ["robustbench/__init__.py", "robustbench/data.py"]
    line = world()["robustbench is overwritten"]
    assert line.status == "warning"
    assert "2 of its files are torchattacks' (robustbench/__init__.py, robustbench/data.py)" in line.detail
    assert "pip install --force-reinstall --no-deps robustbench==1.1.1" in line.detail
    del world.versions["torchattacks"]
    assert "changed or gone" in world()["robustbench is overwritten"].detail


def test_without_the_packages_there_is_nothing_to_say(world):
    world.versions.clear()
    assert world() == {}
