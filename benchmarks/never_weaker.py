"""Never weaker: `standard` beside pyautoattack's `standard` on many networks and seeds.

    python benchmarks/never_weaker.py [--data ../shared/data] [--seeds 3] [--n 200] [--only NAME] [--json FILE]

The networks are trained by the suite (kept in --out) or published. Prints one line for each network and seed: how many
examples each side breaks, passes, seconds; exits with 1 when the suite breaks fewer anywhere.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from peers import ours, theirs
from zoo import shared, trained

from robustsuite.evaluation.plan import cores
from robustsuite.evaluation.protocol import load_protocol


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data", type=Path)
    parser.add_argument("--out", default="benchmarks/.networks", type=Path)
    parser.add_argument("--seeds", default=3, type=int)
    parser.add_argument("--n", default=200, type=int, help="images for each network, 200 at most")
    parser.add_argument("--only", default="", help="part of a network's name")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(cores())
    entries = trained(args.data, args.out, args.n) + (
        shared(args.data, f"first:{args.n}") if args.data.is_dir() else []
    )
    head = f"{'network':22} {'seed':>4} {'clean':>6} {'broken: ours':>12} {'theirs':>7} {'passes: ours':>13}"
    print(f"{head} {'theirs':>12} {'ratio':>6} {'seconds: ours':>13} {'theirs':>7} {'ratio':>6}", flush=True)
    rows, weaker = [], 0
    for entry in entries:
        if args.only not in entry.name:
            continue
        loaded, data = entry.load()
        for seed in range(args.seeds):
            mine = ours(loaded, data, entry.threat, load_protocol("standard"), seed=seed)
            other = theirs(loaded, data, entry.threat, seed=seed)
            row = {"network": entry.name, "threat": str(entry.threat), "n": len(data), "seed": seed}
            row |= {"robustsuite": mine[-1], "pyautoattack": other[-1], "clean": mine[0]["accuracy"]}
            rows.append(row)
            weaker += show(row)
    fewer = f"fewer in {weaker} of {len(rows)}" if weaker else f"at least as many in all {len(rows)}"
    print(f"`standard` breaks {fewer} cases.")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")
    sys.exit(weaker > 0)


def show(row: dict) -> bool:
    """Print one comparison; returns whether the suite was weaker."""
    mine, other, n = row["robustsuite"], row["pyautoattack"], row["n"]
    broken = [round(n * (row["clean"] - side["accuracy"])) for side in (mine, other)]
    passes = [side["forward"] + side["backward"] for side in (mine, other)]
    numbers = f"{row['network']:22} {row['seed']:4} {row['clean']:6.1%} {broken[0]:12} {broken[1]:7} {passes[0]:13,}"
    times = f"{mine['seconds']:13.1f} {other['seconds']:7.1f} {other['seconds'] / mine['seconds']:6.2f}"
    print(f"{numbers} {passes[1]:12,} {passes[0] / passes[1]:6.2f} {times}", flush=True)
    return broken[0] < broken[1]


if __name__ == "__main__":
    main()
