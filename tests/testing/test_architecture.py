"""Architectures with a fault seeded into each."""

import pytest
import torch
from torch import nn

from robustsuite.errors import InputError
from robustsuite.testing import check_architecture


def net(outputs, channels=1, *tail):
    pool = [nn.AdaptiveAvgPool2d(4), nn.Flatten()]
    return nn.Sequential(nn.Conv2d(channels, 4, 3, padding=1), nn.ReLU(), *pool, nn.Linear(64, outputs), *tail)


def good(num_classes=10, input_shape=(1, 8, 8)):
    """A small network."""
    return net(num_classes, input_shape[0])


def ten_for_all(num_classes=10, input_shape=(1, 8, 8)):
    """Always ten logits."""
    return net(10, input_shape[0])


def eleven(num_classes=10, input_shape=(1, 8, 8)):
    """One logit too many."""
    return net(num_classes + 1, input_shape[0])


def softmax(num_classes=10, input_shape=(1, 8, 8)):
    """Probabilities."""
    return net(num_classes, input_shape[0], nn.Softmax(1))


def grey_alone(num_classes=10, input_shape=(1, 8, 8)):
    """Ignores the channels."""
    return net(num_classes, 1)


def refuses_colour(num_classes=10, input_shape=(1, 8, 8)):
    """Takes grey images and says so."""
    if input_shape[0] != 1:
        raise InputError("grey images only.")
    return net(num_classes, 1)


class BatchStatistics(nn.Module):
    def forward(self, x):
        return x - x.mean(0)


def sees_the_batch(num_classes=10, input_shape=(1, 8, 8)):
    """Normalises with the batch in eval mode too."""
    return nn.Sequential(BatchStatistics(), net(num_classes, input_shape[0]))


class Rounds(nn.Module):
    def forward(self, x):
        return x.round()


def no_gradient(num_classes=10, input_shape=(1, 8, 8)):
    """Rounds its images."""
    return nn.Sequential(Rounds(), net(num_classes, input_shape[0]))


BUILT = []


def own_generator(num_classes=10, input_shape=(1, 8, 8)):
    """Other weights each time."""
    BUILT.append(1)
    module = net(num_classes, input_shape[0])
    nn.init.normal_(module[0].weight, generator=torch.Generator().manual_seed(len(BUILT)))
    return module


class Loose(nn.Module):
    """Keeps a weight outside of the state dict."""

    def __init__(self):
        super().__init__()
        BUILT.append(1)
        self.gain = float(len(BUILT))

    def forward(self, x):
        return x * self.gain


def loose(num_classes=10, input_shape=(1, 8, 8)):
    """Has state that no checkpoint holds."""
    return nn.Sequential(Loose(), net(num_classes, input_shape[0]))


def not_a_module(num_classes=10, input_shape=(1, 8, 8)):
    """Returns a function."""
    return lambda x: x.flatten(1)[:, :num_classes]


def other_words(classes=10, shape=(1, 8, 8)):
    """Other parameter names."""
    return net(classes, shape[0])


def failures(plugin):
    return {f.name: f for f in check_architecture(plugin) if not f.ok}


@pytest.mark.parametrize("plugin", [good, refuses_colour])
def test_a_sound_architecture_passes(plugin):
    assert failures(plugin) == {}


@pytest.mark.parametrize(
    ("plugin", "finding", "words"),
    [
        (ten_for_all, "shapes and classes", "must be float [2, 2], got float32 [2, 10]"),
        (eleven, "output", "must be float [4, 10], got float32 [4, 11]"),
        (softmax, "output", "probabilities"),
        (grey_alone, "shapes and classes", "images [3, 8, 8] end in RuntimeError"),
        (sees_the_batch, "batch independence", "change by"),
        (no_gradient, "gradients", "no finite gradient reaches the images"),
        (own_generator, "repeatable initialisation", "other weights"),
        (loose, "state dict", "answers differently"),
        (not_a_module, "output", "must return an nn.Module, got function"),
        (other_words, "factory", "cannot be called with num_classes"),
    ],
)
def test_a_fault_is_found_and_named(plugin, finding, words):
    found = failures(plugin)
    assert finding in found, found
    assert words in found[finding].detail
    assert found[finding].remedy
