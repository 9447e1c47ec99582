"""Two published checkpoints, stage by stage, beside PyPI's pyautoattack: same model, data, device and threads.

    python benchmarks/published.py [--data ../shared/data] [--protocol standard] [--only mnist|cifar] [--json FILE]

Both sides start from the same loaded network in one process, one after the other.
"""

import argparse
import json
from pathlib import Path

import torch
from peers import ours, show, theirs
from zoo import shared

from robustsuite.evaluation.plan import cores
from robustsuite.evaluation.protocol import load_protocol

PUBLISHED = {
    "mnist_cnn_a_adv": "AutoAttack standard 76.5 % (clean 97.5 %)",
    "cifar_cnn_a_adv": "AutoAttack standard 50.0 % (clean 70.0 %)",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data", type=Path)
    parser.add_argument("--protocol", default="standard")
    parser.add_argument("--only", default="", help="part of a checkpoint's name")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(cores())
    results = {}
    for entry in shared(args.data):
        if entry.name not in PUBLISHED or args.only not in entry.name:
            continue
        loaded, data = entry.load()
        about = f"{entry.threat}, {len(data)} images, {cores()} threads"
        print(f"\n== {entry.name}, {about}. Published: {PUBLISHED[entry.name]}")
        pair = {
            "robustsuite": ours(loaded, data, entry.threat, load_protocol(args.protocol)),
            "pyautoattack": theirs(loaded, data, entry.threat),
        }
        for side, rows in pair.items():
            show(side, rows)
        ratio = pair["pyautoattack"][-1]["seconds"] / pair["robustsuite"][-1]["seconds"]
        print(f"\nseconds, pyautoattack / robustsuite: {ratio:.2f}")
        results[entry.name] = pair
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
