"""The registered networks: sizes, shapes, names."""

import importlib

import pytest
import torch

from robustsuite.errors import InputError
from robustsuite.models import factory, robustbench
from robustsuite.registry import ARCHITECTURES

MNIST, CIFAR, DIGITS = (1, 28, 28), (3, 32, 32), (1, 8, 8)


@pytest.mark.parametrize(
    ("name", "shape", "params"),
    [
        ("cnn_a", MNIST, 166_406),
        ("cnn_a", CIFAR, 214_918),
        ("conv_small", MNIST, 89_606),
        ("conv_small", CIFAR, 125_318),
        ("madry_tiny", MNIST, 52_506),
        ("mlp_b", MNIST, 89_610),
        ("mlp", MNIST, 118_282),
        ("small_cnn", DIGITS, 26_090),
        ("small_cnn", MNIST, 40_490),
        ("resnet18", CIFAR, 11_173_962),
        ("preactresnet18", CIFAR, 11_172_170),
        ("wrn28_10", CIFAR, 36_479_194),
        ("wrn34_10", CIFAR, 46_160_474),
        ("aol_mlp", DIGITS, 85_002),
        ("aol_cnn", DIGITS, 26_090),
        ("sll_mlp", DIGITS, 59_530),
        ("sll_cnn", DIGITS, 33_018),
        ("cnn3", DIGITS, 9_930),
        ("cnn3", MNIST, 24_330),
        ("cnn5", DIGITS, 84_826),
        ("cnn5", CIFAR, 1_068_154),
        ("cnn7", CIFAR, 17_192_650),
        ("cnn7", MNIST, 13_259_338),
    ],
)
def test_parameters_and_output(name: str, shape: tuple, params: int) -> None:
    net = factory.build(name, {}, num_classes=10, input_shape=shape).eval()
    assert sum(p.numel() for p in net.parameters()) == params
    assert net(torch.zeros(2, *shape)).shape == (2, 10)


def test_every_architecture_is_tested_above() -> None:
    tested = {"cnn_a", "conv_small", "madry_tiny", "mlp_b", "mlp", "small_cnn", "resnet18", "preactresnet18"}
    tested |= {"cnn3", "cnn5", "cnn7", "aol_mlp", "aol_cnn", "sll_mlp", "sll_cnn", "wrn28_10", "wrn34_10"}
    built_in = {e.name for e in ARCHITECTURES if e.origin.startswith("robustsuite.")}
    assert built_in == tested


@pytest.mark.parametrize("name", ["resnet18", "preactresnet18"])
def test_a_narrow_residual_network_takes_other_classes(name: str) -> None:
    net = factory.build(name, {"width": 4}, num_classes=3, input_shape=CIFAR).eval()
    assert net(torch.zeros(1, *CIFAR)).shape == (1, 3)


def test_without_its_last_normalisation_a_preact_net_has_the_older_names() -> None:
    net = factory.build("preactresnet18", {"width": 4, "final_bn": False}, num_classes=10, input_shape=CIFAR)
    assert not any(name.startswith("bn.") for name in net.state_dict())
    assert {n.split(".")[0] for n in net.state_dict()} == {"conv1", "layer1", "layer2", "layer3", "layer4", "linear"}


def test_a_residual_block_is_the_formula() -> None:
    from robustsuite.models.resnet import BasicBlock

    block = BasicBlock(2, 2, 1).eval()
    x = torch.linspace(-1, 1, 32).view(1, 2, 4, 4)
    inner = torch.relu(block.bn1(block.conv1(x)))
    assert torch.equal(block(x), torch.relu(block.bn2(block.conv2(inner)) + x))


def test_small_cnn_refuses_images_that_are_too_small() -> None:
    with pytest.raises(InputError, match="at least 4x4"):
        factory.build("small_cnn", {}, num_classes=10, input_shape=(1, 3, 9))


def test_weights_at_construction_are_the_same_every_time_and_leave_the_generator_alone() -> None:
    before = torch.random.get_rng_state()
    first, second = (factory.build("mlp_b", {}, num_classes=10, input_shape=MNIST) for _ in range(2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("name", ["small_cnn", "resnet18", "preactresnet18", "wrn28_10"])
@pytest.mark.parametrize("activation", ["silu", "softplus"])
def test_the_activation_is_a_parameter(name: str, activation: str) -> None:
    kinds = {"silu": torch.nn.SiLU, "softplus": torch.nn.Softplus}
    net = factory.build(name, {"activation": activation, "width": 2}, num_classes=10, input_shape=CIFAR)
    assert any(isinstance(module, kinds[activation]) for module in net.modules())
    assert not any(isinstance(module, torch.nn.ReLU) for module in net.modules())
    with pytest.raises(InputError, match="no activation 'gelu'; choose relu, silu, softplus"):
        factory.build(name, {"activation": "gelu"}, num_classes=10, input_shape=CIFAR)


def test_a_small_cnn_with_batch_norm_has_one_after_each_convolution() -> None:
    net = factory.build("small_cnn", {"batch_norm": True}, num_classes=10, input_shape=DIGITS)
    assert [type(m).__name__ for m in net][:3] == ["Conv2d", "BatchNorm2d", "ReLU"]
    assert sum(isinstance(m, torch.nn.BatchNorm2d) for m in net) == 3


def test_a_wide_resnet_has_a_depth_that_exists() -> None:
    with pytest.raises(InputError, match="depth of 6 n"):
        factory.build("wrn28_10", {"depth": 29}, num_classes=10, input_shape=CIFAR)


@pytest.mark.reference
@pytest.mark.skipif(not robustbench.installed(), reason="robustbench is not installed (extra 'reference')")
def test_a_wide_resnet_answers_as_robustbenchs_with_its_weights() -> None:
    robustbench._package()
    zoo = importlib.import_module("robustbench.model_zoo.architectures.wide_resnet")
    theirs = zoo.WideResNet(depth=10, widen_factor=2, num_classes=10).eval()
    ours = factory.build("wrn28_10", {"depth": 10, "width": 2}, num_classes=10, input_shape=CIFAR).eval()
    ours.load_state_dict({k: v for k, v in theirs.state_dict().items() if not k.startswith("sub_block1")})
    x = torch.rand(4, *CIFAR)
    with torch.no_grad():
        assert torch.allclose(ours(x), theirs(x), atol=1e-5)


@pytest.mark.parametrize("name", ["cnn3", "cnn5", "cnn7"])
def test_networks_of_certified_training_are_wide_or_narrow_with_batch_norm_or_without(name: str) -> None:
    kinds = [
        [
            type(m).__name__
            for m in factory.build(name, {"batch_norm": on, "width": 4}, num_classes=10, input_shape=DIGITS)
        ]
        for on in (True, False)
    ]
    assert [kind for kind in kinds[0] if not kind.startswith("BatchNorm")] == kinds[1]
    hidden = sum(kind in ("Conv2d", "Linear") for kind in kinds[1])
    assert hidden == int(name[-1])
    assert sum(kind.startswith("BatchNorm") for kind in kinds[0]) == hidden - 1  # after all but the logits
    with pytest.raises(InputError, match="at least 1"):
        factory.build(name, {"width": 0}, num_classes=10, input_shape=DIGITS)
    with pytest.raises(InputError, match="too small"):
        factory.build("cnn3", {}, num_classes=10, input_shape=(1, 2, 2))


def test_cnn7_is_the_network_that_the_splits_of_taps_count() -> None:
    from robustsuite.bounds.graph import trace

    net = factory.build("cnn7", {"width": 2, "hidden": 8}, num_classes=10, input_shape=CIFAR)
    assert len(trace(net).nodes) == 20  # and the normalisation: 10 + 11 = 4 + 17 = 21 in the paper's settings
