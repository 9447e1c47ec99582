"""Attacks against exact answers: adversarial errors known between solver bounds, and images that ordinary PGD misses.

    python benchmarks/brackets.py [--data ../shared/data] [--runs DIR] [--workers 2] [--n 10000] [--skip-errors]

`mlp_b` networks on the MNIST test set under `standard`: the adversarial error must lie between what exact solvers have
proved. Then `strong` on 40 images that have a proven adversarial example at Linf 0.3 which PGD misses.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

BRACKETS = {"mlp_b_lpd_0.1": ("0.1", 14.35, 14.45), "mlp_b_adv_0.05": ("0.05", 6.11, 11.38)}
HARD = {
    "mnist_cnn_a_adv": ("mnist_cnn_a_adv.model", "cnn_a"),
    "mnist_madry_tiny": ("mnist_madry_tiny.pt", "madry_tiny"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data", type=Path)
    parser.add_argument("--runs", default="runs", type=Path)
    parser.add_argument("--workers", default=1, type=int)
    parser.add_argument("--n", default=10_000, type=int)
    parser.add_argument("--tail-sample", type=int, help="as of `robustsuite eval`: the tail on so many survivors only")
    parser.add_argument("--skip-errors", action="store_true", help="only the hard images")
    args = parser.parse_args()
    images = str(args.data / "mnist" / "t10k-images-idx3-ubyte.gz")
    for name, (eps, least, most) in {} if args.skip_errors else BRACKETS.items():
        model = [str(args.data / "checkpoints" / f"{name}.pth"), "--arch", "mlp_b"]
        sample = ["--tail-sample", str(args.tail_sample)] if args.tail_sample else []
        more = [*sample, "--subset", f"first:{args.n}", "--workers", str(args.workers), "--tier", "standard"]
        run = evaluate([*model, "--data", images, "--threat", f"Linf:{eps}", *more, "-o", str(args.runs)])
        error = 100 * (1 - metric(run, "robust_accuracy"))
        verdict = "inside" if least <= error <= most or args.n < 10_000 else "OUTSIDE"
        print(f"{name} at {eps}, {args.n} images: adversarial error {error:.2f} %, {verdict} [{least}, {most}]")
        print(f"   {run['run_dir']}", flush=True)
    hard = json.loads((args.data / "mnist" / "hard_indices.json").read_text())
    total = 0
    for name, (file, arch) in HARD.items():
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as ids:
            ids.write("\n".join(str(i) for i in hard[name]))
            ids.flush()
            model = [str(args.data / "checkpoints" / file), "--arch", arch, "--data", images]
            more = ["--subset", f"ids:{ids.name}", "--tier", "strong", "-o", str(args.runs)]
            run = evaluate([*model, *more, "--threat", "Linf:0.3"])
        count = len(hard[name])
        broken = count - round(count * metric(run, "robust_accuracy"))
        total += broken
        by = ", ".join(f"{s['name']} {s['n_broken']}" for s in run["stages"] if s["n_broken"])
        print(f"{name}: {broken} of {count} hard images broken ({by})", flush=True)
    print(f"strong breaks {total} of {sum(len(hard[name]) for name in HARD)} hard images.")


def evaluate(arguments: list[str]) -> dict:
    """`robustsuite eval` as a user runs it; its JSON document."""
    command = [sys.executable, "-m", "robustsuite", "eval", *arguments, "--json"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def metric(run: dict, name: str) -> float:
    return next(m["value"] for m in run["metrics"] if m["name"] == name)


if __name__ == "__main__":
    main()
