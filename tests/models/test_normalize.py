"""Normalisation as a layer, and probabilities as logits."""

import pytest
import torch
from torch import nn

from robustsuite.errors import InputError
from robustsuite.models.normalize import LogProbabilities, Normalize, with_normalization


def test_closed_form() -> None:
    x = torch.full((2, 3, 1, 1), 0.5)
    out = Normalize((0.5, 0.25, 0.0), (1.0, 0.5, 0.25))(x)
    assert out[0].flatten().tolist() == [0.0, 0.5, 2.0]


def test_it_adds_nothing_to_the_state_dict_and_passes_gradients() -> None:
    net = with_normalization(nn.Flatten(), (0.1,), (0.5,))
    assert net.state_dict() == {}
    x = torch.full((1, 1, 2, 2), 0.3, requires_grad=True)
    net(x).sum().backward()
    assert x.grad is not None
    assert x.grad.flatten().tolist() == [2.0] * 4


@pytest.mark.parametrize(
    ("mean", "std"), [((0.5,), (0.5, 0.5)), ((), ()), ((0.5,), (0.0,)), ((0.5,), (-1.0,)), ((float("nan"),), (1.0,))]
)
def test_wrong_constants(mean: tuple, std: tuple) -> None:
    with pytest.raises(InputError, match="normalisation needs"):
        Normalize(mean, std)


def test_the_number_of_channels_is_checked() -> None:
    with pytest.raises(InputError, match="1 channel, but 3"):
        with_normalization(nn.Flatten(), (0.5,) * 3, (0.5,) * 3, channels=1)


def test_log_probabilities_are_logits_of_the_same_probabilities() -> None:
    logits = torch.tensor([[1.0, -2.0, 0.5]])
    out = LogProbabilities(nn.Softmax(1))(logits)
    assert torch.allclose(out.softmax(1), logits.softmax(1), atol=1e-7)
    assert torch.isfinite(LogProbabilities(nn.Softmax(1))(torch.tensor([[0.0, 1000.0]]))).all()
