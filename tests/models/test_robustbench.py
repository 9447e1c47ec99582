import argparse
import base64
import builtins
import hashlib
import importlib.metadata as metadata
import sys
from pathlib import Path

import pytest
import torch

from robustsuite.errors import InputError, PrerequisiteError, UsageError
from robustsuite.models import robustbench
from robustsuite.models.reference import ModelSpec, load_model, spec_from_part

pytestmark = pytest.mark.reference
NAME = "robustbench:Wong2020Fast@cifar10/Linf"
SHAPE = (3, 32, 32)
X = torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def package():
    """robustbench; skips with the reason, and the command that mends it, where it does not work."""
    reason = robustbench.obstacle()
    if reason:
        pytest.skip(reason)
    return robustbench._package()


def checkpoint(folder: Path, content: object, name: str = "Wong2020Fast") -> Path:
    path = folder / "cifar10" / "Linf" / f"{name}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path


@pytest.fixture
def net(package):
    """A small network of the zoo (a PreActResNet-18) with weights of our own and moved statistics."""
    entry = next(
        m
        for d, by in package.model_zoo.model_dicts.items()
        if d.value == "cifar10"
        for t, m in by.items()
        if t.value == "Linf"
    )["Wong2020Fast"]
    torch.manual_seed(0)
    net = entry["model"]()
    net(X)
    return net.eval()


def load(tmp_path: Path, reference: str = NAME, **options: object):
    spec = ModelSpec(reference, model_dir=str(tmp_path), **options)
    return load_model(spec, input_shape=SHAPE, num_classes=10)


def test_a_checkpoint_laid_out_as_downloaded_gives_the_zoos_logits(net, tmp_path):
    checkpoint(tmp_path, {f"module.{k}": v for k, v in net.state_dict().items()})
    loaded = load(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded.classifier.logits(X), net(X))
    part = loaded.part
    assert (part.name, part.arch, part.format, part.trust_pickle) == ("Wong2020Fast", NAME, "robustbench", False)
    again = load_model(spec_from_part(part), input_shape=SHAPE, num_classes=10)
    assert again.part == part


def test_the_environment_says_where_checkpoints_lie(net, tmp_path, monkeypatch):
    checkpoint(tmp_path, net.state_dict())
    monkeypatch.setenv(robustbench.ENVIRONMENT, str(tmp_path))
    with torch.no_grad():
        assert torch.equal(robustbench.load(NAME)(X), net(X))


def test_the_global_generator_is_left_alone(net, tmp_path):
    checkpoint(tmp_path, net.state_dict())
    state = torch.random.get_rng_state()
    robustbench.load(NAME, model_dir=tmp_path)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_autoattack_is_lent_for_the_import_only(package):
    del package
    assert "autoattack" not in sys.modules
    assert "autoattack.state" not in sys.modules


def test_nothing_is_downloaded_and_the_message_says_where_and_how(package, tmp_path, monkeypatch):
    monkeypatch.setattr(package.utils, "download_gdrive_new", lambda *_: pytest.fail("it went to the network"))
    with pytest.raises(PrerequisiteError, match=r"cifar10/Linf/Wong2020Fast.pt.*gdown \S+ -O") as caught:
        load(tmp_path)
    assert robustbench.ENVIRONMENT in str(caught.value)
    assert not (tmp_path / "cifar10").exists()
    with pytest.raises(PrerequisiteError, match=r"Bai2024MixedNUTS.pt_m0.pt.*_m1.pt"):
        load(tmp_path, "robustbench:Bai2024MixedNUTS@cifar10/Linf")
    for name in ("Debenedetti2022Light_XCiT-S12@cifar10/Linf", "Standard_R50@imagenet/Linf"):
        with pytest.raises((PrerequisiteError, InputError), match="network"):
            load(tmp_path, f"robustbench:{name}")


def test_unknown_names_have_the_nearest_ones(package, tmp_path):
    del package
    with pytest.raises(InputError, match="Did you mean Wong2020Fast"):
        load(tmp_path, "robustbench:Wong2020fast@cifar10/Linf")
    with pytest.raises(InputError, match="no models for 'cifar10/L1'"):
        load(tmp_path, "robustbench:Wong2020Fast@cifar10/L1")


@pytest.mark.parametrize(
    "reference", ["robustbench:Standard", "robustbench:Standard@cifar10", "robustbench:S@mnist/Linf"]
)
def test_a_malformed_name_shows_the_form(reference, tmp_path):
    with pytest.raises(UsageError, match="robustbench:Wong2020Fast@cifar10/Linf"):
        load(tmp_path, reference)


def test_options_that_the_zoo_decides_are_refused(tmp_path):
    with pytest.raises(UsageError, match="leave out arch, mean, std"):
        load(tmp_path, arch="resnet18", mean=(0.5,) * 3, std=(0.5,) * 3)


def test_damaged_and_foreign_checkpoints_are_explained(net, tmp_path):
    path = checkpoint(tmp_path, {"fc.weight": torch.zeros(3)})
    with pytest.raises(InputError, match="is it the checkpoint of that name"):
        load(tmp_path)
    path.write_text("<html>quota exceeded</html>")
    with pytest.raises(InputError, match="HTML"):
        load(tmp_path)


def test_a_pickle_that_runs_code_must_be_trusted(net, tmp_path):
    checkpoint(tmp_path, {"state_dict": net.state_dict(), "arguments": argparse.Namespace(epochs=3)})
    assert load(tmp_path).part.trust_pickle is False
    checkpoint(tmp_path, {"state_dict": net.state_dict(), "extra": builtins.compile})
    with pytest.raises(InputError, match="--trust-pickle"):
        load(tmp_path)
    loaded = load(tmp_path, trust_pickle=True)
    assert loaded.part.trust_pickle is True
    with torch.no_grad():
        assert torch.equal(loaded.classifier.logits(X), net(X))


@pytest.fixture
def installation(tmp_path, monkeypatch):
    """A package of two files and its RECORD."""
    bodies = {"robustbench/__init__.py": b"new", "robustbench/data.py": b"data", "tests/config.py": b"stray"}

    class File(metadata.PackagePath):
        def locate(self) -> Path:
            return tmp_path / str(self)

    listed = []
    for name, body in bodies.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(body)
        file = File(name)
        digest = base64.urlsafe_b64encode(hashlib.sha256(body).digest()).rstrip(b"=").decode()
        file.hash, file.size = metadata.FileHash(f"sha256={digest}"), len(body)
        listed.append(file)
    listed.append(File("robustbench-1.1.1.dist-info/RECORD"))
    monkeypatch.setattr(metadata, "files", lambda name: listed)
    monkeypatch.setattr(metadata, "version", lambda name: "1.1.1")
    return tmp_path


def test_overwritten_files_are_told_by_their_content(installation):
    assert robustbench.altered_files() == []
    (installation / "robustbench/__init__.py").write_bytes(b"old")  # of the same length
    (installation / "tests/config.py").write_bytes(b"another package's tests")
    assert robustbench.altered_files() == ["robustbench/__init__.py"]
    (installation / "robustbench/data.py").unlink()
    assert len(robustbench.altered_files()) == 2
    with pytest.raises(PrerequisiteError, match=r"2 of robustbench's files.*force-reinstall --no-deps robustbench"):
        robustbench.load(NAME, model_dir=installation)


@pytest.mark.parametrize(("absent", "remedy"), [("pkg_resources", "setuptools<81"), ("pyautoattack", "robustsuite")])
def test_what_it_needs_is_named_with_the_command(absent, remedy, installation, monkeypatch):
    monkeypatch.setattr(robustbench, "find_spec", lambda name: None if name in (absent, "autoattack") else name)
    with pytest.raises(PrerequisiteError, match=f"{absent}.*pip install '{remedy}"):
        robustbench.load(NAME, model_dir=installation)


def test_without_the_package_the_extra_is_named(tmp_path, monkeypatch):
    def absent(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", absent)
    with pytest.raises(PrerequisiteError, match=r"robustsuite\[reference\]"):
        load(tmp_path)


def test_a_package_that_fails_at_import_is_reported(installation, monkeypatch):
    monkeypatch.setitem(sys.modules, "robustbench.utils", None)
    monkeypatch.setitem(sys.modules, "robustbench", None)
    monkeypatch.setattr(robustbench, "obstacle", lambda: None)
    with pytest.raises(PrerequisiteError, match="cannot be imported"):
        robustbench.load(NAME, model_dir=installation)
