"""Denoised smoothing where the denoiser is affine, so that the exact radius is known."""

import pytest
import torch
from scipy import stats
from torch import nn

from robustsuite.certification.denoised import Denoised
from robustsuite.certification.smoothing import Smoothing
from robustsuite.errors import InputError, UsageError
from robustsuite.models.classifier import Classifier
from robustsuite.models.denoised import Wiener
from robustsuite.models.randomized import RandomizedClassifier
from robustsuite.models.sidecar import Sidecar, save_checkpoint
from robustsuite.models.smoothed import SmoothedClassifier
from robustsuite.noise import Noise
from robustsuite.registry import CERTIFIERS
from robustsuite.threat import ThreatModel

SHAPE = (1, 4, 4)
L2 = ThreatModel.parse("L2:0.25")
CODE = """
import torch
from torch import nn

class Shrink(nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.5))

    def forward(self, x):
        return 0.3 + self.gain * (x - 0.3)

class Predictor(nn.Module):
    def forward(self, x, t):
        return 0.5 * x

def shrink():
    return Shrink()

def predictor():
    return Predictor()
"""


@pytest.fixture
def code(tmp_path):
    file = tmp_path / "denoisers.py"
    file.write_text(CODE)
    return file


def half_space(offset=0.4):
    """Class 1 where the first pixel of the denoised image is above ``offset``."""
    layer = nn.Linear(16, 2)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[1, 0] = 1.0
        layer.bias.copy_(torch.tensor([0.0, -offset]))
    return Classifier(nn.Sequential(nn.Flatten(), layer), num_classes=2, input_shape=SHAPE)


def images(*first):
    x = torch.full((len(first), *SHAPE), 0.5)
    x[:, 0, 0, 0] = torch.tensor(first)
    return x


def certify(certifier, model, x, seed=0):
    noise = Noise(seed, "certify").at(torch.arange(len(x)))
    return certifier.certify(model, x, torch.zeros(len(x), dtype=torch.int64), L2, noise)


def test_an_affine_denoiser_moves_the_plane(code):
    # 0.3 + 0.5 (u - 0.3) > 0.4 where u > 0.5: the distance to that plane is the exact radius.
    certifier = Denoised(sigma=0.25, denoiser=f"py:{code}:shrink", n=20_000, mode="fixed")
    got = certify(certifier, half_space(), images(0.7, 0.9, 0.3))
    assert got.predicted.tolist() == [1, 1, 0]
    exact = torch.tensor([0.2, 0.4, 0.2]).double()
    assert bool((got.radius < exact).all())
    torch.testing.assert_close(got.radius, exact, rtol=0.09, atol=0.0)
    plain = certify(Smoothing(sigma=0.25, n=20_000, mode="fixed"), half_space(), images(0.7))
    assert float(plain.radius) > 0.22  # without the denoiser the plane is at 0.4, 0.3 away


def test_radii_are_too_large_no_oftener_than_declared(code):
    trials, alpha = 500, 0.05
    certifier = Denoised(
        sigma=0.5, denoiser=f"py:{code}:shrink", n=400, n0=40, failure_probability=alpha, batch=4000, mode="fixed"
    )
    got = certify(certifier, half_space(), images(*[0.8] * trials))
    wrong = int((got.radius > 0.3 + 1e-6).sum())
    assert stats.binomtest(wrong, trials, alpha, alternative="greater").pvalue > 1e-3
    assert wrong > 0


def test_weights_are_loaded_into_the_denoiser_and_pinned(code, tmp_path):
    sidecar = Sidecar(arch="mlp", num_classes=2, input_shape=SHAPE)
    path = save_checkpoint(tmp_path / "gain", {"gain": torch.tensor(0.25)}, sidecar)
    certifier = Denoised(sigma=0.25, denoiser=f"py:{code}:shrink", weights=str(path), n=2000)
    assert len(certifier.weights_sha256) == len(certifier.denoiser_sha256) == 64
    # The plane is at 0.3 + (0.4 - 0.3) / 0.25 = 0.7 now.
    assert certify(certifier, half_space(), images(0.5, 0.9)).predicted.tolist() == [0, 1]
    with pytest.raises(InputError, match="not the one that was recorded"):
        Denoised(sigma=0.25, denoiser=f"py:{code}:shrink", weights=str(path), weights_sha256="0" * 64)
    missing = Denoised(sigma=0.25, denoiser=f"py:{code}:shrink", weights=str(tmp_path / "none.pt"))
    with pytest.raises(InputError):
        missing.subject(half_space())


def test_a_diffusion_model_is_asked_once(code):
    certifier = Denoised(sigma=0.25, denoiser=f"py:{code}:predictor", diffusion="cosine", n=500)
    base = half_space()
    subject = certifier.subject(base)
    assert isinstance(subject, SmoothedClassifier)
    step = subject.base.module.denoiser
    assert step.t > 0
    x = images(0.7)
    x_t = step.signal * (2 * x - 1)
    expected = ((x_t - step.noise * 0.5 * x_t) / step.signal).clamp(-1, 1) / 2 + 0.5
    torch.testing.assert_close(subject.base.logits(x), base.logits(expected))


def test_the_filter_is_the_default_and_the_subject_is_smoothed_behind_it():
    base, certifier = half_space(), Denoised(sigma=0.25, n=2000, mode="fixed")
    subject = certifier.subject(base)
    assert certifier.subject(subject) is subject
    x = images(0.9, 0.2)
    assert torch.equal(subject.base.logits(x), base.logits(Wiener(0.25)(x)))
    assert torch.equal(certify(certifier, base, x).radius, certify(certifier, subject, x).radius)
    before = base.passes.forward
    subject.logits(x)
    assert base.passes.forward > before
    for other in (Smoothing(sigma=0.25).subject(base), Denoised(sigma=0.5).subject(base)):
        with pytest.raises(UsageError):
            certifier.subject(other)
    with pytest.raises(UsageError, match="base network"):
        certifier.subject(RandomizedClassifier(base))


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        ({"sigma": 0.0}, "sigma"),
        ({"n": 50}, "n0 <= n"),
        ({"denoiser": "median"}, "wiener, py:"),
        ({"weights": "a.pt"}, "neither weights"),
        ({"diffusion": "linear"}, "neither weights"),
        ({"denoiser": "py:a:b", "diffusion": "square"}, "linear or cosine"),
    ],
)
def test_bad_parameters_are_refused(bad, word):
    with pytest.raises(UsageError, match=word):
        Denoised(**{"sigma": 0.25, **bad})


def test_the_filter_is_for_images():
    flat = Classifier(nn.Linear(16, 2), num_classes=2, input_shape=(16,))
    assert "images" in (Denoised(sigma=0.25).unsupported(flat, L2) or "")
    assert Denoised(sigma=0.25).unsupported(half_space(), L2) is None
    assert CERTIFIERS.get("denoised").target is Denoised
