"""Training-time defenses at one budget, evaluated with the `standard` tier: the tables of the baselines.

    python benchmarks/defenses.py --out DIR [--seeds 3] [--only NAME,NAME] [--shard 0/2]
    python benchmarks/defenses.py --out DIR --table leaderboards/defenses/digits-linf-0.15
    python benchmarks/defenses.py --out DIR --setting mnist --images t10k-images-idx3-ubyte.gz

`digits` has every method. `mnist` has a handful, trained on 8,000 images of the test file and evaluated on 200 of the
others: at eps 0.3 training on FGSM's steps collapses.

Every method has the same network, epochs, batches and learning rate, and its own published hyper-parameters
(perturbation steps: 7 where it takes many); nothing is tuned for a method. A finished (method, seed) is a file in DIR
and is not done again. --table writes PATH.csv (a row a run) and PATH.md (a row a method: medians and ranges).
"""

import argparse
import ast
import inspect
import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from robustsuite.data.reference import load_data
from robustsuite.evaluation.evaluator import evaluate, prepare
from robustsuite.evaluation.protocol import load_protocol
from robustsuite.models.reference import ModelSpec, load_model
from robustsuite.registry import DEFENSES
from robustsuite.threat import ThreatModel
from robustsuite.training import make_composed, save_trained
from robustsuite.training.loop import train

ARCH = ("small_cnn", {"batch_norm": True})
RECIPE = {"lr": 0.1, "schedule": "one_cycle", "weight_decay": 5e-4}


@dataclass(frozen=True)
class Row:
    """One line of the table: a base, its modifiers and what differs from the published hyper-parameters."""

    base: str
    modifiers: tuple[str, ...] = ()
    params: dict[str, Any] = field(default_factory=dict)
    note: str = ""

    @property
    def name(self) -> str:
        return "+".join((self.base, *self.modifiers)) + (f" ({self.note})" if self.note else "")


@dataclass(frozen=True)
class Setting:
    """The data, threat model and budget that all rows of a table share."""

    title: str
    threat: str
    train: tuple[str, str]
    """Split and subset that is trained on."""
    test: tuple[str, str]
    epochs: int
    batch_size: int
    rows: tuple[Row, ...]
    remark: str

    @property
    def budget(self) -> dict[str, Any]:
        return RECIPE | {"epochs": self.epochs, "batch_size": self.batch_size}


SEVEN = {"steps": 7}
ROWS = (
    Row("standard"),
    Row("pgd_at", params=SEVEN),
    Row("trades", params=SEVEN),
    Row("mart", params=SEVEN),
    Row("alp", params=SEVEN),
    Row("pgd_at", ("awp",), SEVEN),
    Row("trades", ("awp",), SEVEN),
    Row("pgd_at", ("gairat",), SEVEN),
    Row("pgd_at", ("mail",), SEVEN),
    Row("pgd_at", ("fat",), SEVEN),
    Row("pgd_at", ("ema",), SEVEN),
    Row("pgd_at", ("swa",), SEVEN),
    Row("pgd_at", ("label_smoothing",), SEVEN),
    Row("fgsm_at"),
    Row("fgsm_rs"),
    Row("n_fgsm"),
    Row("gradalign"),
    Row("free_at"),
    Row("fast_bat"),
    Row("lbgat", params=SEVEN),
    Row("hat", params=SEVEN),
    Row("uiat", params=SEVEN),
    Row("ikl", params=SEVEN),
    Row("dkl", params=SEVEN),
    Row("rslad", params=SEVEN),
    Row("ard", params=SEVEN),
    Row("consistency_at", params=SEVEN),
    Row("generalist", params=SEVEN),
    Row("rst", params=SEVEN),
    Row("dm_at", ("ema",), SEVEN),
    Row("standard", ("mixup",)),
    Row("standard", ("manifold_mixup",)),
    Row("regmixup"),
    Row("standard", ("cutout",), {"size": 3}),
    Row("standard", ("label_smoothing",)),
    Row("standard", ("maxsup",)),
    Row("standard", ("sam",)),
    Row("pgd_at", ("sam",), SEVEN),
    Row("trades", ("awp", "ema", "label_smoothing"), SEVEN),
    Row("bat", params=SEVEN),
    Row("adv_comp_sum", params=SEVEN),
    Row("score", params=SEVEN),
    Row("arow", params=SEVEN),
    Row("cow", params=SEVEN),
    Row("weat", params=SEVEN),
    Row("beta_at", params=SEVEN),
    Row("beta_at", params=SEVEN | {"mu": 1.0}, note="smooth"),
    Row("done", params=SEVEN),
    Row("avmixup", params=SEVEN),
    Row("cure", params=SEVEN),
    Row("arrest", params=SEVEN),
    Row("dhat", params=SEVEN),
    Row("srst_awr", params=SEVEN),
    Row("rss"),
    Row("pag"),
    Row("graddiv"),
    Row("pgd_at", ("adr",), SEVEN),
    Row("pgd_at", ("adr", "awp"), SEVEN),
    Row("pgd_at", ("hr",), SEVEN),
    Row("pgd_at", ("rwp",), SEVEN),
    Row("trades", ("rwp",), SEVEN),
    Row("pgd_at", ("dom",), SEVEN),
    Row("pgd_at", ("fomo",), SEVEN),
    Row("pgd_at", ("gor",), SEVEN),
    Row("pgd_at", ("igr",), SEVEN),
    Row("fgsm_rs", ("lap",)),
    Row("fgsm_rs", ("aaer",)),
    Row("n_fgsm", ("aaer",)),
    Row("fgsm_at", ("elle",)),
    Row("fgsm_at", ("elle_a",)),
    Row("standard", ("amp",)),
)
HANDFUL = ("standard", "pgd_at", "trades", "fgsm_at", "fgsm_rs", "n_fgsm", "gradalign")
CROPPED = (
    "`consistency_at` crops, and cuts out half of each side, as its paper does with 32x32 images: of an 8x8 digit too "
    "little is left. At this eps and with so few epochs no method on single steps collapses."
)
SETTINGS = {
    "digits": Setting("digits", "Linf:0.15", ("train", "all"), ("test", "class-balanced:200"), 20, 64, ROWS, CROPPED),
    "mnist": Setting(
        "MNIST (8,000 images of the test set; tested on 200 of the other 2,000)",
        "Linf:0.3",
        ("test", "range:0:8000"),
        ("test", "range:8000:8200"),
        6,
        128,
        tuple(row for row in ROWS if row.name in HANDFUL),
        "",
    ),
}


def run(setting: Setting, source: str, row: Row, seed: int, out: Path) -> None:
    """Train and evaluate one row with one seed; what is known of it goes into a JSON file of its own."""
    path = out / f"{row.name.replace(' ', '_')}-{seed}.safetensors"
    done = path.with_suffix(".json")
    if done.exists():
        return
    threat = ThreatModel.parse(setting.threat)
    method = make_composed(row.base, row.modifiers, row.params)
    examples = load_data(source, split=setting.train[0], subset=setting.train[1])
    began = time.process_time()
    trained = train(method, *ARCH, examples, threat, seed=seed, keep_at=path, **setting.budget)
    seconds = time.process_time() - began
    save_trained(trained, path)
    path.with_name(path.name.removesuffix(".safetensors") + ".training.pt").unlink(missing_ok=True)
    data = load_data(source, split=setting.test[0], subset=setting.test[1])
    loaded = load_model(ModelSpec(str(path)), input_shape=data.input_shape, num_classes=data.num_classes)
    protocol = load_protocol("standard")
    prepared = prepare(loaded.classifier, loaded.part, data, threat, protocol, seed=seed)
    record = evaluate(prepared, out / "runs").record
    assert record is not None
    last = trained.history[-1]
    document = {
        "method": row.name,
        "seed": seed,
        "clean": record.metric("clean_accuracy").value,
        "robust": record.metric("robust_accuracy").value,
        "n": len(data),
        "best_epoch": trained.best,
        "best_minus_last": trained.overfitting,
        "collapsed_at": trained.collapsed_at,
        "fgsm_last": last.fgsm_accuracy,
        "pgd_last": last.robust_accuracy,
        "seconds": seconds,
        "passes": (trained.forward + trained.backward) / 2 / (len(data_of(trained)) * setting.epochs),
        "run": record.run_key,
    }
    done.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(document), flush=True)


def data_of(trained: Any) -> range:
    return range(trained.data["n"] - trained.settings["validation"])


def write(setting: Setting, out: Path, target: Path) -> None:
    runs = pd.DataFrame([json.loads(file.read_text()) for file in sorted(out.glob("*.json"))])
    order = {row.name: place for place, row in enumerate(setting.rows)}
    runs = runs.assign(order=runs["method"].map(order)).sort_values(["order", "seed"]).drop(columns="order")
    target.parent.mkdir(parents=True, exist_ok=True)
    runs.to_csv(target.with_name(f"{target.name}.csv"), index=False)
    lines = [
        f"# Training-time defenses on {setting.title}, {setting.threat}",
        "",
        f"Made by `benchmarks/defenses.py`: {ARCH[0]} with batch normalisation, {setting.epochs} epochs, batch "
        f"{setting.batch_size}, the published hyper-parameters of each method, nothing tuned; {runs['n'].iloc[0]} "
        "test images under the `standard` tier. Accuracies in %: median over the seeds (lowest to highest). Passes: "
        "forward and backward pairs for each example and epoch, as counted, without the networks that "
        "some methods train beforehand. Best - last: of the accuracy under PGD-10 on held-out training images. "
        "Collapsed: seeds in which FGSM leaves 20 points more than PGD-10 in some epoch. Seconds: of processor "
        "time for the whole training, one thread. Rests on: what a method was written from. Lines: of code in the "
        "files of the method and its modifiers.",
        "",
    ]
    lines += [setting.remark, ""] if setting.remark else []
    known = "fgsm_last" in runs and "pgd_last" in runs
    titles = ["method", "seeds", "clean", "robust (at most)", "best - last", "collapsed", "passes"]
    titles += ["said to cost", "seconds", "rests on", "lines"]
    titles += ["last epoch under FGSM", "and PGD-10"] if known else []
    lines += [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for name, rows in runs.groupby("method", sort=False):
        gap = rows["best_minus_last"].astype(float)
        cells = [
            str(name),
            str(len(rows)),
            spread(100 * rows["clean"]),
            spread(100 * rows["robust"]),
            f"{100 * gap.median():.1f}" if gap.notna().any() else "",
            f"{rows['collapsed_at'].notna().sum()} of {len(rows)}",
            f"{rows['passes'].median():.1f}",
            "; ".join(DEFENSES.get(part).facts.get("cost", "") for part in parts_of(name)),
            f"{rows['seconds'].median():.0f}" if "seconds" in rows and rows["seconds"].notna().any() else "",
            "; ".join(filter(None, (DEFENSES.get(part).facts.get("fidelity") for part in parts_of(name)))),
            str(sum(code_lines(part) for part in parts_of(name))),
        ]
        cells += [percent(rows[k].median()) for k in ("fgsm_last", "pgd_last")] if known else []
        lines.append(f"| {' | '.join(cells)} |")
    target.with_name(f"{target.name}.md").write_text("\n".join(lines) + "\n")


def parts_of(name: object) -> list[str]:
    """The registered names in a row's name."""
    return str(name).split(" (")[0].split("+")


def percent(share: float) -> str:
    return "" if math.isnan(share) else f"{100 * share:.1f}"


def code_lines(name: str) -> int:
    """Lines of a defense's file that are code: without docstrings, comments and blank lines."""
    source = Path(inspect.getfile(DEFENSES.get(name).target)).read_text()
    docs = {
        line
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    lines = enumerate(source.splitlines(), 1)
    return sum(bool(line.strip()) and not line.strip().startswith("#") and i not in docs for i, line in lines)


def spread(values: pd.Series) -> str:
    return f"{values.median():.1f} ({values.min():.1f} to {values.max():.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="")
    parser.add_argument("--shard", default="0/1")
    parser.add_argument("--table", type=Path)
    parser.add_argument("--setting", choices=SETTINGS, default="digits")
    parser.add_argument("--images", help="MNIST's t10k-images-idx3-ubyte.gz, its labels beside it")
    arguments = parser.parse_args()
    setting = SETTINGS[arguments.setting]
    if arguments.setting == "mnist" and not arguments.images:
        parser.error("--setting mnist needs --images")
    if arguments.table:
        write(setting, arguments.out, arguments.table)
        return
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    part, parts = map(int, arguments.shard.split("/"))
    for seed in range(arguments.seeds):
        for place, row in enumerate(setting.rows):
            if place % parts == part and (not arguments.only or row.name in arguments.only.split(",")):
                run(setting, arguments.images or "digits", row, seed, arguments.out)


if __name__ == "__main__":
    main()
