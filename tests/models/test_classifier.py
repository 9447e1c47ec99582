"""Exact arithmetic: whatever the process allows, verdicts are made in full float32."""

import pytest
import torch
from torch import nn

from robustsuite.models.classifier import Classifier, exact_arithmetic

backends = torch.backends


def state() -> tuple[str, ...]:
    try:
        overall = torch.get_float32_matmul_precision()
    except RuntimeError:  # single backends were set
        overall = "mixed"
    parts = (backends.mkldnn.matmul, backends.mkldnn.conv, backends.cuda.matmul)
    return overall, *(part.fp32_precision for part in parts)


@pytest.fixture(autouse=True)
def _restored():
    yield
    backends.mkldnn.conv.fp32_precision = "none"
    for part in (backends.mkldnn.matmul, backends.cuda.matmul):
        part.fp32_precision = "ieee"
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("overall", ["highest", "high", "medium"])
@pytest.mark.parametrize("convolutions", ["none", "bf16"])
def test_reduced_precision_is_off_inside_and_as_it_was_after(overall, convolutions):
    torch.set_float32_matmul_precision(overall)
    backends.mkldnn.conv.fp32_precision = convolutions
    before = state()
    with exact_arithmetic():
        assert not set(state()) & {"bf16", "tf32", "high", "medium"}
    assert state() == before


def test_settings_that_torch_cannot_summarise():
    backends.mkldnn.matmul.fp32_precision = "bf16"
    backends.cuda.matmul.fp32_precision = "tf32"
    before = state()
    assert before[0] == "mixed"
    with exact_arithmetic():
        assert not set(state()) & {"bf16", "tf32"}
        with exact_arithmetic():
            pass
    assert state() == before


def test_odd_strides_of_a_single_channel_change_no_bit():
    """``[N,1,H,W]`` that was ``[N,H,W,1]`` counts as contiguous, keeps its strides, and would get another kernel."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.Flatten())
        model = Classifier(nn.Sequential(module, nn.Linear(32 * 49, 10)), num_classes=10, input_shape=(1, 28, 28))
        odd = torch.rand(100, 28, 28, 1).permute(0, 3, 1, 2).contiguous()
    plain = odd.flatten(1).view(100, 1, 28, 28)
    assert odd.stride() != plain.stride()
    assert torch.equal(model.logits(odd), model.logits(plain))
    assert torch.equal(model.gradient(odd, margin)[1], model.gradient(plain, margin)[1])


def margin(logits: torch.Tensor) -> torch.Tensor:
    return logits[:, 0] - logits[:, 1]
