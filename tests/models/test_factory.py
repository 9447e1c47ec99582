"""User factories: found, called with what they accept, and explained when they fail."""

from pathlib import Path

import pytest
import torch
from torch import nn

from robustsuite.errors import InputError, UnknownNameError
from robustsuite.models import factory
from robustsuite.models.factory import build, fitting

SHAPE = (1, 8, 8)


@pytest.fixture
def write(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    def _write(body: str) -> str:
        # A name of its own for every test: modules stay imported for the whole session.
        path = tmp_path / f"net_{abs(hash(request.node.nodeid))}.py"
        path.write_text("import torch\nfrom torch import nn\n" + body)
        monkeypatch.chdir(tmp_path)
        return str(path)

    return _write


def make(arch: str, **params: object) -> nn.Module:
    return build(arch, params, num_classes=10, input_shape=SHAPE)


def test_arguments_are_those_the_signature_names(write) -> None:
    path = write(
        "def one(num_classes): return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))\n"
        "def both(input_shape, num_classes, width=3):\n"
        "    return nn.Sequential(nn.Conv2d(input_shape[0], width, 8), nn.Flatten(), nn.Linear(width, num_classes))\n"
        "def none(): return nn.Flatten()\n"
        "def rest(**kwargs): return nn.Linear(len(kwargs), 1)\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, num_classes): super().__init__(); self.k = num_classes\n"
        "ready = nn.Flatten()\n"
    )
    assert make(f"py:{path}:one")[1].out_features == 10
    assert make(f"py:{path}:both", width=5)[0].out_channels == 5
    assert isinstance(make(f"py:{path}:none"), nn.Flatten)
    assert make(f"py:{path}:rest", a=1, b=2).in_features == 2
    assert make(f"py:{path}:Net", num_classes=7).k == 7
    assert isinstance(make(f"py:{path}:ready"), nn.Flatten)


def test_a_module_in_the_working_directory(write) -> None:
    path = Path(write("def small(num_classes): return nn.Linear(2, num_classes)\n"))
    assert make(f"py:{path.stem}:small").out_features == 10


def test_an_importable_module() -> None:
    assert make("py:torch.nn:Linear", in_features=2, out_features=3).out_features == 3


@pytest.mark.parametrize(
    ("body", "name", "message"),
    [
        ("def f(num_classes): raise RuntimeError('no weights\\nsecond line')", "f", "RuntimeError: no weights"),
        ("def f(): return 3", "f", "must return a torch.nn.Module, got int"),
        ("def build_net(): pass", "buid_net", "Did you mean build_net"),
        ("value = 3", "value", "is a int; a function or class"),
        ("import no_such_package", "f", "could not be imported: ModuleNotFoundError"),
        ("def f(:", "f", "could not be imported: SyntaxError"),
    ],
)
def test_failures_become_one_line(write, body: str, name: str, message: str) -> None:
    path = write(body)
    with pytest.raises(InputError, match=message) as caught:
        make(f"py:{path}:{name}")
    assert "second line" not in str(caught.value)


def test_an_unknown_parameter_is_named() -> None:
    with pytest.raises(InputError, match=r"no parameter 'widht'. Did you mean 'width'"):
        make("small_cnn", widht=3)


def test_a_parameter_of_the_wrong_type_is_reported() -> None:
    with pytest.raises(InputError, match=r"failed with .*width='wide'"):
        make("small_cnn", width="wide")


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("py:torch.nn", "not complete"),
        ("py:no.such.module:f", "could not be imported: ModuleNotFoundError"),
        ("py:nowhere/net.py:f", "does not exist"),
    ],
)
def test_references_that_lead_nowhere(arch: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(arch)


def test_an_unknown_architecture_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'resnet18'"):
        make("resnet-18")


def test_fitting_architectures_are_found_by_shape() -> None:
    state = build("conv_small", {}, num_classes=10, input_shape=(1, 28, 28)).state_dict()
    assert fitting(state, num_classes=10, input_shape=(1, 28, 28)) == ["conv_small"]
    assert fitting({"a": torch.zeros(3)}, num_classes=10, input_shape=(1, 28, 28)) == []


def test_the_users_code_is_hashed(write) -> None:
    import hashlib

    path = Path(write("def f(): return nn.Flatten()"))
    make(f"py:{path}:f")
    assert factory.source_sha256(f"py:{path}:f") == {path.name: hashlib.sha256(path.read_bytes()).hexdigest()}
    assert factory.source_sha256("resnet18") == {}
