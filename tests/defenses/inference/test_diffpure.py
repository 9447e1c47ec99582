"""Diffusion purification: the process against its closed forms, full gradients, and a score that was trained."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from robustsuite.attacks.pgd import PGD
from robustsuite.data.dataset import Dataset
from robustsuite.data.digits import digits
from robustsuite.defenses import diffpure
from robustsuite.defenses.diffpure import DiffPure
from robustsuite.errors import ContractError, InputError, UsageError
from robustsuite.models.classifier import margins
from robustsuite.models.keyed import Draws
from robustsuite.models.purified import GaussianScore, NoiseScore, Purifier, beta, signal_share
from robustsuite.noise import Noise, fork_global
from robustsuite.threat import ThreatModel

SCORES = """
import torch
from torch import nn

class Predictor(nn.Module):
    # The unit noise in pixels N(0, 0.5^2), at a time in thousandths; a channel more than needed.
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x, t):
        t = t[0] / 1000
        kept = torch.exp(-0.1 * t - 19.9 * t**2 / 2)
        noise = (1 - kept).sqrt() * x / (kept * 0.25 + 1 - kept)
        return torch.cat([self.scale * noise, noise], 1)

def predictor():
    return Predictor()

def flat():
    return Flat()

class Flat(nn.Module):
    def forward(self, x, t):
        return x.flatten(1)
"""


def purifier(score: nn.Module, until: float, steps: int, seed: int = 0) -> Purifier:
    source = Draws()
    source.noise = Noise(seed, "test")
    return Purifier(score, until, steps, source)


def variances(until: float, steps: int, scale: float) -> list[float]:
    """Of a pixel with mean 0, step by step: the chain is linear and Gaussian."""
    kept, dt = signal_share(until), until / steps
    values = [kept * scale**2 + 1 - kept]
    for step in range(steps):
        t = until - step * dt
        share = signal_share(t)
        factor = 1 + dt * beta(t) * (0.5 - 1 / (share * scale**2 + 1 - share))
        values.append(factor**2 * values[-1] + beta(t) * dt)
    return values


def gain(until: float, steps: int, scale: float) -> float:
    """What a change of the input is multiplied by."""
    dt, product = until / steps, math.sqrt(signal_share(until))
    for step in range(steps):
        t = until - step * dt
        share = signal_share(t)
        product *= 1 + dt * beta(t) * (0.5 - 1 / (share * scale**2 + 1 - share))
    return product


def test_the_signal_share_solves_its_equation():
    assert signal_share(0.0) == 1
    assert signal_share(0.1) == pytest.approx(math.exp(-0.1095))
    for t in (0.05, 0.3, 0.9):
        slope = (math.log(signal_share(t + 1e-5)) - math.log(signal_share(t - 1e-5))) / 2e-5
        assert slope == pytest.approx(-beta(t), rel=1e-6)


def test_until_zero_is_the_identity(net, images):
    base = net.classifier()
    model = DiffPure(until=0.0, eot=1, draws=1).wrap(base)
    assert torch.equal(model.logits(images.x), base.logits(images.x))
    assert model.per_evaluation == 1


class Still(nn.Module):
    """The score at which a reverse step changes nothing but by its noise."""

    def forward(self, x, t):
        return -x / 2


def test_the_forward_process_has_its_mean_and_variance():
    until, x = 0.3, torch.full((4000, 1, 4, 4), 0.8)
    one = purifier(Still(), until, 1)
    z = 2 * one(x) - 1
    kept, added = signal_share(until), beta(until) * until
    assert float(z.mean()) == pytest.approx(math.sqrt(kept) * 0.6, abs=0.02)
    assert float(z.var()) == pytest.approx(1 - kept + added, rel=0.02)


@pytest.mark.parametrize("steps", [5, 50])
def test_with_the_exact_score_gaussian_images_stay_gaussian_images(steps):
    until, scale = 0.2, 0.5
    x = (1 + scale * Noise(1, "images").at(torch.arange(3000)).normal((1, 4, 4))) / 2
    made = 2 * purifier(GaussianScore(0.0, scale), until, steps)(x) - 1
    chain = variances(until, steps, scale)[-1]
    assert float(made.var()) == pytest.approx(chain, rel=0.02)
    assert abs(float(made.mean())) < 0.01
    if steps == 50:
        assert chain == pytest.approx(scale**2, rel=0.05)


def test_the_error_of_euler_steps_goes_down_with_their_size():
    errors = [abs(variances(0.1, steps, 0.5)[-1] - 0.25) for steps in (25, 50, 100, 200)]
    ratios = [a / b for a, b in pairwise(errors)]
    assert all(1.7 < ratio < 2.3 for ratio in ratios)


def test_checkpointed_gradients_are_those_of_the_closed_form_and_little_is_kept():
    until, steps = 0.1, 40
    x = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0)).double().requires_grad_(True)
    kept: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    score = Counted()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = purifier(score, until, steps)(x)
    assert score.calls == steps
    assert sum(kept) <= 3 * steps * x.numel()  # the inputs and draws of the steps alone
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert score.calls == 2 * steps
    torch.testing.assert_close(grad, torch.full_like(grad, gain(until, steps, 0.5)), rtol=1e-6, atol=0)


class Counted(nn.Module):
    """The Gaussian score behind layers that would keep a lot."""

    def __init__(self) -> None:
        super().__init__()
        self.score, self.calls = GaussianScore(0.0, 0.5), 0

    def forward(self, x, t):
        self.calls += 1
        for _ in range(30):
            x = x.exp().log()
        return self.score(x, t)


def test_draws_are_keyed_and_passes_counted(net, images):
    base = net.classifier()
    model = DiffPure(steps=4, eot=3, draws=2).wrap(base)
    assert (model.per_evaluation, model.per_decision) == (15, 10)
    noise = Noise(5, "test").at(images.ids)
    first, again = (model.decide(images.x, noise)[1] for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, model.decide(images.x, Noise(6, "test").at(images.ids))[1])
    base.passes.forward = 0
    model.gradient(images.x[:2], lambda z: z[:, 0])
    assert (base.passes.forward, base.passes.backward) == (2 * 15, 2 * 15)


def test_a_noise_predictor_of_ones_own_is_the_same_as_its_score(tmp_path, net, images):
    file = tmp_path / "scores.py"
    file.write_text(SCORES)
    own = DiffPure(f"py:{file}:predictor", predicts="noise", time_scale=1000.0, steps=5, eot=2, draws=2)
    assert len(own.score_sha256) == 64
    gaussian = DiffPure(steps=5, eot=2, draws=2)
    got, want = (d.wrap(net.classifier()).logits(images.x) for d in (own, gaussian))
    torch.testing.assert_close(got, want, atol=1e-3, rtol=1e-3)
    weights = tmp_path / "weights.pt"
    torch.save({"scale": torch.tensor(2.0)}, weights)
    other = DiffPure(own.score, str(weights), "noise", 1000.0, steps=5, eot=2, draws=2)
    assert not torch.allclose(other.wrap(net.classifier()).logits(images.x), want, atol=1e-2)
    with pytest.raises(InputError, match="is not the one"):
        DiffPure(own.score, str(weights), "noise", weights_sha256="0" * 64)
    with pytest.raises(ContractError, match="shape"):
        DiffPure(f"py:{file}:flat", eot=1, draws=1).wrap(net.classifier()).logits(images.x)


class Denoiser(nn.Module):
    """A small noise predictor for digits, which is told the time."""

    def __init__(self, width: int = 192) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(65, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 64)
        )

    def forward(self, x, t):
        return self.layers(torch.cat([x.flatten(1), t.view(-1, 1)], 1)).view_as(x)


def trained_denoiser() -> Denoiser:
    """Trained on digits to predict the noise at times up to 0.3 (denoising score matching)."""
    x, steps = 2 * digits("train").x - 1, 3000
    with fork_global(0, "test/denoiser"):
        net = Denoiser()
        optimiser = torch.optim.Adam(net.parameters())
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 5e-3, steps)
        for _ in range(steps):
            rows = torch.randint(len(x), (128,))
            t = 0.005 + 0.295 * torch.rand(128)
            kept = torch.exp(-0.1 * t - 19.9 * t**2 / 2).view(-1, 1, 1, 1)
            noise = torch.randn(128, 1, 8, 8)
            loss = ((net(kept.sqrt() * x[rows] + (1 - kept).sqrt() * noise, t) - noise) ** 2).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return net.eval().requires_grad_(False)


@pytest.mark.slow
def test_a_trained_score_stops_some_of_what_was_made_for_the_bare_network_and_less_of_what_was_made_for_it(
    net, images, clean, attacked, monkeypatch
):
    """What Lee and Kim (2023) say of purification: it looks robust until the attack goes through it."""
    denoiser = trained_denoiser()
    monkeypatch.setattr(diffpure, "build", lambda *args, **kwargs: denoiser)
    base = net.classifier()
    model = DiffPure("py:tests:denoiser", "", "noise", until=0.1, steps=8, eot=4, draws=8).wrap(base)
    before = clean(model, images)
    assert before > clean(base, images) - 0.1
    threat = ThreatModel.parse("Linf:0.1")
    attack, noise = PGD(steps=10, stop_when_fooled=False), Noise(0, "t").at(images.ids)
    x_adv = attack.run(base, images.x, images.y, threat, noise)
    transferred = clean(model, Dataset("adv", x_adv, images.y, images.ids, 10))
    alone = float((base.logits(x_adv).argmax(1) == images.y).float().mean())
    adaptive = attacked(model, images)
    assert transferred > alone + 0.05
    assert adaptive < transferred
    _, grad = model.gradient(images.x, lambda z: margins(z, images.y))
    assert bool(grad.flatten(1).any(1).all())


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        ({"until": 1.5}, "until"),
        ({"steps": 0}, "steps"),
        ({"predicts": "x0"}, "score or noise"),
        ({"score": "unet"}, "py:module"),
        ({"weights": "w.pt"}, "no weights"),
        ({"surrogate": "soft"}, "surrogate"),
    ],
)
def test_bad_parameters_are_refused(bad, word):
    with pytest.raises(UsageError, match=word):
        DiffPure(**bad)


def test_a_predictor_of_the_noise_gives_the_score_at_its_own_time():
    seen: list[float] = []

    class Seen(nn.Module):
        def forward(self, x, t):
            seen.append(float(t[0]))
            return torch.cat([x, x], 1)

    score = NoiseScore(Seen(), 999.0)(torch.ones(2, 1, 2, 2), torch.full((2,), 0.1))
    assert seen == [pytest.approx(99.9)]
    torch.testing.assert_close(score, torch.full((2, 1, 2, 2), -1 / math.sqrt(1 - signal_share(0.1))))
