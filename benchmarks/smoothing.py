"""Randomized smoothing: samples saved and accuracy lost by early stops, their exact error, and speed.

    python benchmarks/smoothing.py [--data ../shared/data] [--parts savings,errors,speed,walltime] [--seed 0]

savings: the probabilities of Cohen et al.'s published CIFAR-10 runs (radius R gives p = Phi(R / sigma); an abstention
counts as p = 1/2, the dearest case), n = 100,000, failure probability 0.001. errors: how often each procedure claims
more than is true at p just below a radius, exact without early stops for lack of hope, and in 10,000 trials with all
stops. speed: samples a second of processor time, on one thread, beside the bare forward at the same batch. walltime:
CERTIFY as published, written plainly, beside every mode: what is saved in samples and in processor time.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy.stats import binomtest
from scipy.stats import norm as gaussian
from torch import Tensor, nn

from robustsuite.certification.smoothing import Smoothing
from robustsuite.certification.smoothing_bounds import LookBounds, make_bounds
from robustsuite.certification.smoothing_exact import crossing_probability
from robustsuite.certification.smoothing_stopping import GridStop
from robustsuite.models.allocator import keep_memory
from robustsuite.models.classifier import Classifier
from robustsuite.models.cnn_a import cnn_a
from robustsuite.models.resnet import resnet18
from robustsuite.models.small_cnn import small_cnn
from robustsuite.models.smoothed import proportion_upper_tail
from robustsuite.models.smoothing_noises import GAUSSIAN
from robustsuite.noise import Noise
from robustsuite.threat import ThreatModel

N, N0, ALPHA, FUTILITY, COPIES = 100_000, 100, 0.001, 0.001, 20
GRID = np.arange(0, 4.01, 0.25)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data", type=Path)
    parser.add_argument("--parts", default="savings,errors,speed,walltime")
    parser.add_argument("--seed", default=0, type=int)
    args = parser.parse_args()
    torch.set_num_threads(1)
    parts: dict[str, Callable[[], None]] = {
        "savings": lambda: savings(args.data, args.seed),
        "errors": lambda: errors(args.seed),
        "speed": speed,
        "walltime": walltime,
    }
    for name in args.parts.split(","):
        parts[name]()


def savings(data: Path, seed: int) -> None:
    """Losses are paired: CERTIFY on the very votes that the procedure would have gone on to."""
    for sigma in (0.12, 0.25, 0.5, 1.0):
        tails, right = published(data, sigma)
        tails, right = np.repeat(tails, COPIES), np.repeat(right, COPIES)
        wanted = np.minimum(gaussian.sf(GRID / sigma), np.nextafter(0.5, 0))
        fixed = proportion_upper_tail(play(make_bounds("fixed", N, ALPHA, 0.0), wanted, tails, seed)[2], N, ALPHA)
        accuracy = np.array([((fixed <= t) & right).mean() for t in wanted])
        grid, wanted = GRID[accuracy > 0], wanted[accuracy > 0]
        print(f"\nsigma {sigma}: {len(tails) // COPIES} images, each drawn {COPIES} times; certified accuracy in %")
        print(f"{'procedure':>16} {'samples':>8} {'saved':>6}  " + " ".join(f"{r:6.2f}" for r in grid))
        show("fixed", np.full(len(tails), N), 100 * accuracy[accuracy > 0])
        for name in ("staged", "anytime", *(f"radius {r:g}" for r in grid)):
            mode, _, radius = name.partition(" ")
            asked = wanted[grid == float(radius)] if radius else wanted
            best, used, votes = play(make_bounds(mode, N, ALPHA, asked[0]), asked, tails, seed + 1)
            fixed = proportion_upper_tail(votes, N, ALPHA)
            lost = [((best <= t) & right).mean() - ((fixed <= t) & right).mean() for t in asked]
            row = np.full(len(grid), np.nan)
            row[grid == float(radius) if radius else slice(None)] = 100 * np.array(lost)
            show(name, used, row)


def show(name: str, used: np.ndarray, row: np.ndarray) -> None:
    cells = " ".join("      " if np.isnan(v) else f"{v:6.2f}" for v in row)
    print(f"{name:>16} {used.mean() + N0:8.0f} {(N + N0) / (used.mean() + N0):5.1f}x  {cells}", flush=True)


def published(data: Path, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """``1 - p`` of every image of a published run, and whether its class is right."""
    log = data / "smoothing/cifar10/resnet110" / f"noise_{sigma:.2f}" / "test" / f"sigma_{sigma:.2f}"
    predict, radius, correct = np.genfromtxt(log, skip_header=1, usecols=(2, 3, 4)).T
    return np.where(predict < 0, 0.5, gaussian.sf(radius / sigma)), (predict >= 0) & (correct == 1)


def play(bounds: LookBounds, wanted: np.ndarray, tails: np.ndarray, seed: int) -> tuple[np.ndarray, ...]:
    """The procedure on independent votes of known probabilities: smallest bounds, samples used, and all N votes."""
    generator = np.random.Generator(np.random.Philox(seed))
    stop = GridStop(bounds, wanted, FUTILITY, len(tails))
    votes, used = np.zeros(len(tails), np.int64), np.zeros(len(tails), np.int64)
    active = np.arange(len(tails))
    for look, now in enumerate(bounds.times):
        more = now - (bounds.times[look - 1] if look else 0)
        votes += more - generator.binomial(more, tails)
        used[active] = now
        active = active[~stop(active, look, votes[active])]
    return stop.best, used, votes


def errors(seed: int) -> None:
    print(f"\nerror of a claim at p just below the radius's, failure probability {ALPHA}, 10,000 trials")
    print(f"{'procedure':>16} {'p':>8} {'exact':>10} {'of alpha':>8} {'trials':>7} {'p-value':>8}")
    for z in (0.05, 0.5, 1.0, 2.0, 3.0):
        tail = float(gaussian.sf(z))
        for mode in ("fixed", "staged", "radius", "anytime"):
            bounds = make_bounds(mode, N, ALPHA, tail)
            limits = np.array([limit(bounds, look, tail) for look in range(len(bounds.times))])
            exact = crossing_probability(bounds.times, limits, tail)
            best, _, _ = play(bounds, np.array([tail]), np.full(10_000, tail), seed)
            wrong = int((best <= tail).sum())
            chance = binomtest(wrong, 10_000, ALPHA, alternative="greater").pvalue
            print(f"{mode:>16} {1 - tail:8.5f} {exact:10.2e} {exact / ALPHA:8.2f} {wrong:7d} {chance:8.3f}", flush=True)
            assert exact <= ALPHA
            assert chance > 1e-4


def limit(bounds: LookBounds, look: int, tail: float) -> int:
    """The most failures at a look for which the bound is at or below ``tail``; -1 when there is none."""
    low, high = -1, int(bounds.times[look])
    while low < high:
        middle = (low + high + 1) // 2
        claims = float(bounds.tails(np.array([bounds.times[look] - middle]), look)[0]) <= tail
        low, high = (middle, high) if claims else (low, middle - 1)
    return low


def speed() -> None:
    keep_memory()  # as the evaluator does for its own
    print(f"\n{'network':>18} {'batch':>6} {'forward us':>11} {'certify us':>11} {'share':>6} {'noise us':>9}")
    for name, net, shape, batch, chunks in (
        ("resnet18 3x32x32", resnet18(), (3, 32, 32), 64, 10),
        ("resnet18 width 16", resnet18(width=16), (3, 32, 32), 64, 60),
        ("small_cnn 1x28x28", small_cnn(10, (1, 28, 28)), (1, 28, 28), 256, 80),
        ("cnn_a 3x32x32", cnn_a(10, (3, 32, 32)), (3, 32, 32), 256, 80),
        ("small_cnn 1x8x8", small_cnn(), (1, 8, 8), 1024, 80),
    ):
        model = Classifier(net, num_classes=10, input_shape=shape)
        certifier = Smoothing(0.25, n0=batch, n=chunks * batch, batch=batch, mode="fixed")
        many, draws = torch.rand(batch, *shape), torch.arange(batch)
        keyed = Noise(0, "speed").at(torch.zeros_like(draws))
        call = (model, many[:1], torch.zeros(1, dtype=torch.int64), ThreatModel.parse("L2:0.25"))
        whole = partial(certifier.certify, *call, Noise(0, "speed").at(torch.arange(1)))
        before = model.passes.forward
        whole()
        rows = model.passes.forward - before
        works = partial(repeat, partial(model.logits, many), rows // batch), whole
        times = np.array([[seconds(work) for work in works] for _ in range(5)])  # in turn
        bare, took = 1e6 * times.min(0) / (rows // batch * batch, rows)
        made = 1e6 * seconds(partial(repeat, partial(GAUSSIAN.sample, keyed, shape, draws), 20)) / 20 / batch
        share = np.median(times[:, 0] / times[:, 1]) * rows / (rows // batch * batch)
        print(f"{name:>18} {batch:6d} {bare:11.1f} {took:11.1f} {share:6.3f} {made:9.1f}", flush=True)


def repeat(work: Callable[[], object], times: int) -> None:
    for _ in range(times):
        work()


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def walltime() -> None:
    """A random network whose mean logits are 0 on noisy images, so that its probabilities spread."""
    shape, n, batch, images, sigma = (3, 32, 32), 4000, 64, 16, 0.25
    keep_memory()
    torch.manual_seed(0)
    net = resnet18(width=16).eval()
    model = Classifier(net, num_classes=10, input_shape=shape)
    x = torch.rand(images, *shape)
    bias = net.get_parameter("linear.bias")
    bias -= model.logits(x + sigma * torch.randn(x.shape)).mean(0)
    y, threat = torch.zeros(images, dtype=torch.int64), ThreatModel.parse("L2:0.1")
    plain = seconds(lambda: [certify_as_published(net, image, sigma, N0, n, ALPHA, batch) for image in x[:4]]) / 4
    print(f"\nCERTIFY, plain: {n + N0} samples and {plain:.2f} s an image")
    for mode in ("fixed", "staged", "radius", "anytime"):
        certifier = Smoothing(sigma, n0=N0, n=n, batch=batch, mode=mode)
        start = time.process_time()
        found = certifier.certify(model, x, y, threat, Noise(0, "wall").at(torch.arange(images)))
        took = (time.process_time() - start) / images
        assert found.forward is not None
        saved, faster = (n + N0) * images / int(found.forward.sum()), plain / took
        print(f"{mode:>10}: {saved:6.2f}x fewer samples, {faster:6.2f}x faster: {faster / saved:.2f} of it", flush=True)


def certify_as_published(
    net: nn.Module, x: Tensor, sigma: float, n0: int, n: int, alpha: float, batch: int
) -> tuple[int, float]:
    """Cohen et al. 2019, CERTIFY, one image at a time."""

    def sample(total: int) -> Tensor:
        counts = torch.zeros(10, dtype=torch.int64)
        while total > 0:
            size = min(batch, total)
            total -= size
            with torch.no_grad():
                answers = net(x.repeat(size, 1, 1, 1) + torch.randn(size, *x.shape) * sigma).argmax(1)
            counts += torch.bincount(answers, minlength=10)
        return counts

    top = int(sample(n0).argmax())
    votes = int(sample(n)[top])
    lower = binomtest(votes, n, alternative="greater").proportion_ci(1 - alpha, method="exact").low
    return (top, sigma * float(gaussian.ppf(lower))) if lower > 0.5 else (-1, 0.0)


if __name__ == "__main__":
    main()
