"""The ONNX file of a classifier: the same function, for every number of images, or a refusal."""

import importlib

import pytest
import torch
from torch import nn

from robustsuite.certification.reference import onnx_graph
from robustsuite.errors import InputError, PrerequisiteError
from robustsuite.models.classifier import Classifier
from robustsuite.models.normalize import with_normalization
from robustsuite.models.preactresnet import PreActResNet

SHAPE = (2, 8, 8)


class Viewed(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.norm = nn.Conv2d(2, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 1, 1), nn.BatchNorm2d(4)
        self.last = nn.Linear(64, 3)
        self.norm.running_mean.uniform_(-0.2, 0.2)

    def forward(self, x):
        x = torch.relu(self.norm(self.first(x)))
        x = torch.relu(x + self.second(x))
        return self.last(x.view(x.size(0), -1))


class Branching(nn.Module):
    def forward(self, x):
        flat = x.flatten(1)[:, :3]
        return flat if float(x.sum()) > 1 else -flat


def classifier(module, shape=SHAPE):
    return Classifier(module, num_classes=3, input_shape=shape)


def without(monkeypatch, *names):
    importing = importlib.import_module

    def missing(name, *rest):
        if name.partition(".")[0] in names:
            raise ImportError(f"No module named '{name}'")
        return importing(name, *rest)

    monkeypatch.setattr(importlib, "import_module", missing)


@pytest.fixture
def onnx():
    return pytest.importorskip("onnx", reason="onnx is not installed")


@pytest.mark.parametrize("evaluator", ["onnxruntime", "onnx.reference"])
@pytest.mark.parametrize("network", ["viewed", "preactresnet"])
def test_the_file_is_the_network_for_any_number_of_images(onnx, tmp_path, monkeypatch, evaluator, network):
    if evaluator == "onnx.reference":
        without(monkeypatch, "onnxruntime")
    else:
        pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    shape = SHAPE if network == "viewed" else (3, 16, 16)
    torch.manual_seed(1)
    module = Viewed() if network == "viewed" else PreActResNet(3, 3, 4, final_bn=True)
    model = classifier(with_normalization(module, [0.4] * shape[0], [0.2] * shape[0]), shape)
    path = tmp_path / "network.onnx"
    onnx_graph.export(model, path)
    for count in (1, 5):
        x = torch.rand(count, *shape)
        assert float((onnx_graph.logits(path, x) - model.logits(x)).abs().max()) < 1e-5
        onnx_graph.check(model, path, x)
    graph = onnx.load(path).graph
    assert [i.name for i in graph.input] == ["x"]
    assert [d.dim_value for d in graph.input[0].type.tensor_type.shape.dim][1:] == list(shape)
    assert next(model.module.parameters()).device == model.device


def test_another_function_is_found_out(onnx, tmp_path):
    model = classifier(Viewed())
    onnx_graph.export(model, tmp_path / "network.onnx")
    with torch.no_grad():
        model.module.last.bias[1] += 0.01
    with pytest.raises(InputError, match=r"another function.* 0\.01"):
        onnx_graph.check(model, tmp_path / "network.onnx", torch.rand(2, *SHAPE))
    (tmp_path / "network.onnx").write_bytes(b"not a graph")
    with pytest.raises(InputError, match="cannot be run"):
        onnx_graph.check(model, tmp_path / "network.onnx", torch.rand(2, *SHAPE))


def test_what_cannot_be_exported_is_refused(onnx, tmp_path):
    class Singular(nn.Module):
        def forward(self, x):
            return torch.linalg.svdvals(x).flatten(1)[:, :3]

    for module in (Branching(), Singular()):
        with pytest.raises(InputError, match="cannot be exported to ONNX"):
            onnx_graph.export(classifier(module), tmp_path / "network.onnx")


def test_without_onnx_it_says_what_to_install(monkeypatch, tmp_path):
    without(monkeypatch, "onnx")
    with pytest.raises(PrerequisiteError, match="pip install onnx"):
        onnx_graph.export(classifier(Viewed()), tmp_path / "network.onnx")
