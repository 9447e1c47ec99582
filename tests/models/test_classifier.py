"""Exact arithmetic: whatever the process allows, verdicts are made in full float32."""

import pytest
import torch

from robustsuite.models.classifier import exact_arithmetic

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
