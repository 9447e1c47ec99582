import numpy as np
import pytest
import torch
from torch import nn

from robustsuite.attacks.reference.autoattack import AutoAttack
from robustsuite.data.dataset import Dataset
from robustsuite.errors import InputError, UsageError
from robustsuite.evaluation.benchmark import benchmark
from robustsuite.evaluation.protocol import custom_protocol, load_protocol, with_params
from robustsuite.models import robustbench
from robustsuite.models.classifier import Classifier
from robustsuite.noise import Noise
from robustsuite.results.records import load_record
from robustsuite.threat import ThreatModel

PGD = with_params(custom_protocol(["pgd"], []), {"steps": 10})


def network(classes: int = 10) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(72, classes)
    )


@pytest.fixture
def examples():
    """A network, twenty images, and its own answers as labels, but for three."""
    net = network().eval()
    x = torch.rand(20, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = net(x).argmax(1)
    y[[3, 7, 15]] = (y[[3, 7, 15]] + 1) % 10
    return net, x, y


def test_clean_accuracy_is_that_of_the_first_examples(examples):
    net, x, y = examples
    assert benchmark(net, 10, (x, y), eps=8 / 255, protocol=PGD)[0] == 0.8
    assert benchmark(net, 10_000, (x, y), eps=8 / 255, protocol=PGD)[0] == 0.85


@pytest.mark.reference
def test_clean_accuracy_is_robustbenchs(examples):
    if reason := robustbench.obstacle():
        pytest.skip(reason)
    net, x, y = examples
    theirs = robustbench._package().utils.clean_accuracy(net, x, y, batch_size=7)
    assert benchmark(net, dataset=(x, y), eps=1 / 255, protocol=PGD)[0] == pytest.approx(theirs, abs=1e-7)


@pytest.mark.reference
@pytest.mark.parametrize(("norm", "eps"), [("Linf", 4 / 255), ("L2", 0.25)])
def test_robust_accuracy_is_that_of_autoattack(norm, eps, examples):
    """What robustbench's benchmark() computes: AutoAttack standard, then the accuracy on what it returns."""
    pytest.importorskip("pyautoattack")
    net, x = network(classes=4).eval(), examples[1][:8]
    model = Classifier(net, num_classes=4, input_shape=(3, 8, 8))
    y = model.logits(x).argmax(1)
    y[3] = (y[3] + 1) % 4
    threat, noise = ThreatModel.parse(f"{norm}:{eps}"), Noise(0, "oracle").at(torch.arange(8))
    x_adv = AutoAttack(n_queries=200).run(model, x, y, threat, noise)
    theirs = float((model.logits(x_adv).argmax(1) == y).float().mean())
    standard = with_params(load_protocol("standard"), {"square.n_queries": 200})
    clean, robust = benchmark(net, dataset=(x, y), threat_model=norm, eps=eps, protocol=standard)
    assert clean == 7 / 8
    assert 0 < robust < clean
    assert robust == pytest.approx(theirs)


def test_the_callers_network_comes_back_as_it_was(examples):
    net, x, y = examples
    net.train()
    benchmark(net, 4, (x, y), eps=1 / 255, protocol=PGD)
    assert all(m.training for m in net.modules())
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


def test_a_kept_run_resumes_and_carries_the_name(examples, tmp_path, monkeypatch):
    net, x, y = examples
    options = {"eps": 8 / 255, "protocol": PGD, "batch_size": 5, "model_name": "mine"}
    first = benchmark(net, 10, (x, y), runs=tmp_path / "kept", **options)
    (path,) = (tmp_path / "kept").glob("*/record.json")
    record = load_record(path)
    assert (record.request.model.name, record.request.slots, record.request.threat.eps) == ("mine", 5, "8/255")
    written = path.stat().st_mtime_ns
    assert benchmark(net, 10, (x, y), runs=tmp_path / "kept", **options) == first
    assert path.stat().st_mtime_ns == written
    monkeypatch.chdir(tmp_path)
    benchmark(net, 10, (x, y), to_disk=True, **options)
    assert len(list((tmp_path / "runs").glob("*/record.json"))) == 1


def test_another_forward_pass_over_the_same_tensors_is_another_run(examples, tmp_path):
    net, x, y = examples

    class Shifted(nn.Sequential):
        def forward(self, v: torch.Tensor) -> torch.Tensor:
            return super().forward(1 - v)

    shifted = Shifted(*net)
    for model in (net, shifted):
        benchmark(model, 10, (x, y), eps=1 / 255, protocol=PGD, runs=tmp_path, model_name="same")
    assert len(list(tmp_path.glob("*/record.json"))) == 2


def test_data_by_name_in_the_data_directory(examples, tmp_path):
    net, x, y = examples
    np.savez(tmp_path / "toy.npz", x_test=x.permute(0, 2, 3, 1).numpy(), y_test=y.numpy())
    expected = benchmark(net, 10, (x, y), eps="8/255", protocol=PGD)
    assert benchmark(net, 10, "toy.npz", data_dir=tmp_path, eps="8/255", protocol=PGD) == expected
    assert benchmark(net, 100, "toy.npz", data_dir=tmp_path, eps=8 / 255, protocol=PGD)[0] == 0.85
    data = Dataset("toy", x, y, torch.arange(20), 10)
    assert benchmark(net, 10, data, eps="8/255", protocol=PGD) == expected
    with pytest.raises(InputError, match="no data set 'cifar10'"):
        benchmark(net, data_dir=tmp_path, eps="8/255")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "needs eps"),
        ({"threat_model": "corruptions"}, "none of Linf, L2, L1"),
        ({"eps": 0.1, "log_path": "log"}, "runs=DIR"),
        ({"eps": 0.1, "aa_state_path": "state.json"}, "runs=DIR"),
        ({"eps": 0.1, "preprocessing": "Res256Crop224"}, r"images in \[0,1\]"),
        ({"eps": 0.1, "corruptions_data_dir": "c"}, "no threat model"),
        ({"eps": 0.1, "model": [nn.Flatten(), nn.Flatten()]}, "one torch.nn.Module"),
        ({"eps": 0.1, "n_examples": 0}, "at least one"),
    ],
)
def test_arguments_without_a_meaning_here_say_what_to_use(arguments, message, examples):
    net, x, y = examples
    with pytest.raises(UsageError, match=message):
        benchmark(**({"model": net, "dataset": (x, y)} | arguments))
