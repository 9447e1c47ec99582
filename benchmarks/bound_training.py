"""Time per epoch of training on bounds as a multiple of standard training's, in one process, epoch by epoch in turns.

    python benchmarks/bound_training.py --images t10k-images-idx3-ubyte.gz [--arch cnn5] [--rounds 5] [--threads 2]

All methods train on the same 8,000 images for one epoch a round, at the full radius from the first step. IBP is timed
with the clean cross-entropy in the loss (kappa .5) and without (kappa 0), CROWN-IBP backward alone, with fusion and
without. In convolutions IBP is two passes beside the clean one, so a ratio of 3 with it, and of 2 without it in a
network without batch normalisation, is what arithmetic alone gives.
"""

import argparse
import statistics
import time
from typing import Any

import torch

from robustsuite.data.reference import load_data
from robustsuite.threat import ThreatModel
from robustsuite.training import make_method
from robustsuite.training.loop import train

IMAGES = 8000
FULL = {"warmup": 0.0, "ramp": 0.0}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "standard": ("standard", {}),
    "ibp, kappa .5": ("ibp", {**FULL, "kappa_start": 0.5, "kappa_end": 0.5}),
    "ibp, kappa 0": ("ibp", {**FULL, "kappa_start": 0.0, "kappa_end": 0.0}),
    "crown_ibp, fused": ("crown_ibp", {**FULL, "beta_start": 1.0, "beta_end": 1.0}),
    "crown_ibp, not fused": ("crown_ibp", {**FULL, "beta_start": 1.0, "beta_end": 1.0, "fusion": False}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True)
    parser.add_argument("--arch", default="cnn5")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-bn", action="store_true", help="without batch normalisation")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    data = load_data(arguments.images, split="test", subset=f"range:0:{IMAGES}")
    threat, params = ThreatModel.parse("Linf:0.1"), {"batch_norm": not arguments.no_bn}
    seconds: dict[str, list[float]] = {name: [] for name in METHODS}
    for turn in range(arguments.rounds + 1):
        for name, (method, settings) in METHODS.items():
            began = time.perf_counter()
            common = {"epochs": 1, "batch_size": arguments.batch, "lr": 1e-4, "optimizer": "adam", "validation": 0}
            made = make_method(method, settings)
            train(made, arguments.arch, params, data, threat, seed=turn, device=arguments.device, **common)
            if turn:  # the first of each warms up
                seconds[name].append(time.perf_counter() - began)
    print(f"{arguments.arch}, batch norm {not arguments.no_bn}, {arguments.threads} threads, batch {arguments.batch}:")
    for name, times in seconds.items():
        ratios = [mine / base for mine, base in zip(times, seconds["standard"], strict=True)]
        print(
            f"  {name:22} {statistics.median(times):.3f} s, {statistics.median(ratios):.2f}x "
            f"({min(ratios):.2f} to {max(ratios):.2f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
