"""Training for certificates at one budget: natural, attacked and certified accuracy, the certifier named.

    python benchmarks/certified_training.py --out DIR [--seeds 3] [--only NAME,NAME] [--shard 0/2]
    python benchmarks/certified_training.py --out DIR --setting mnist-0.1 --images t10k-images-idx3-ubyte.gz
    python benchmarks/certified_training.py --out DIR --table leaderboards/defenses/certified-digits-linf-0.15

Every method has the same network, epochs, batches, learning rate and optimiser, and its own published
hyper-parameters (on `digits`: the defaults of its fields); nothing is tuned for a method. `mtl_ibp` is swept over its
coefficient. A finished (method, seed) is a file in DIR and is not done again; a training that was killed goes on.
--table writes PATH.csv (a row a run) and PATH.md (a row a method: medians and ranges).
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from defenses import Row, data_of, spread

from robustsuite.data.dataset import Dataset
from robustsuite.data.reference import load_data
from robustsuite.evaluation.evaluator import evaluate, prepare
from robustsuite.evaluation.protocol import load_protocol
from robustsuite.models.classifier import Classifier
from robustsuite.models.reference import ModelSpec, load_model
from robustsuite.noise import Noise
from robustsuite.registry import CERTIFIERS
from robustsuite.threat import ThreatModel
from robustsuite.training import make_composed, save_trained
from robustsuite.training.loop import train

ARCH = ("small_cnn", {"batch_norm": True})
RECIPE: dict[str, Any] = {"optimizer": "adam", "lr": 0.005, "schedule": "one_cycle", "weight_decay": 0.0, "clip": 10.0}
CERTIFIED_BY = ("ibp", "crown", "alpha-crown")  # the cheapest first; each looks at what those before it left
COEFFICIENTS = (0.0, 0.01, 0.03, 0.1, 0.3, 0.5, 0.7, 1.0)

ROWS = (
    Row("standard"),
    Row("pgd_at", params={"steps": 7}),
    Row("ibp"),
    Row("fast_ibp"),
    Row("crown_ibp"),
    Row("crown_ibp", params={"fusion": False}, note="no fusion"),
    Row("sabr"),
    Row("taps"),
    Row("staps"),
    Row("cc_ibp"),
    Row("exp_ibp"),
    Row("mtl_ibp"),
    *(Row("mtl_ibp", params={"coefficient": c}, note=f"{c:g}") for c in COEFFICIENTS),
)


@dataclass(frozen=True)
class Setting:
    """The data, threat model and budget that all rows of a table share; `defaults`: whose hyper-parameters."""

    title: str
    threat: str
    train: tuple[str, str]
    test: tuple[str, str]
    epochs: int
    batch_size: int
    defaults: str | None = None


def mnist(eps: str) -> Setting:
    return Setting(
        "MNIST (8,000 images of the test set; tested on 200 of the other 2,000)",
        f"Linf:{eps}",
        ("test", "range:0:8000"),
        ("test", "range:8000:8200"),
        20,
        128,
        f"mnist-{eps}",
    )


SETTINGS = {
    "digits": Setting("digits", "Linf:0.15", ("train", "all"), ("test", "class-balanced:200"), 40, 64),
    "mnist-0.1": mnist("0.1"),
    "mnist-0.3": mnist("0.3"),
}


def run(setting: Setting, source: str, row: Row, seed: int, out: Path, epochs: int) -> None:
    """Train, attack and certify one row with one seed; what is known of it goes into a JSON file of its own."""
    path = out / f"{row.name.replace(' ', '_')}-{seed}.safetensors"
    done = path.with_suffix(".json")
    if done.exists():
        return
    threat = ThreatModel.parse(setting.threat)
    method = make_composed(row.base, row.modifiers, row.params, setting.defaults)
    examples = load_data(source, split=setting.train[0], subset=setting.train[1])
    budget = RECIPE | {"epochs": epochs, "batch_size": setting.batch_size}
    began = time.process_time()
    trained = train(method, *ARCH, examples, threat, seed=seed, keep_at=path, **budget)
    seconds = time.process_time() - began
    save_trained(trained, path)
    path.with_name(path.name.removesuffix(".safetensors") + ".training.pt").unlink(missing_ok=True)
    data = load_data(source, split=setting.test[0], subset=setting.test[1])
    loaded = load_model(ModelSpec(str(path)), input_shape=data.input_shape, num_classes=data.num_classes)
    prepared = prepare(loaded.classifier, loaded.part, data, threat, load_protocol("standard"), seed=seed)
    record = evaluate(prepared, out / "runs").record
    assert record is not None
    robust = record.metric("robust_accuracy").value
    document = {
        "method": row.name,
        "seed": seed,
        "clean": record.metric("clean_accuracy").value,
        "robust": robust,
        **(proved := certified(loaded.classifier, data, threat, seed)),
        "width": robust - max(proved[name] for name in CERTIFIED_BY),
        "tightness": trained.history[-1].ibp_tightness,
        "n": len(data),
        "epochs": epochs,
        "seconds": seconds,
        "passes": (trained.forward + trained.backward) / 2 / (len(data_of(trained)) * epochs),
        "run": record.run_key,
    }
    if document["width"] < 0:
        raise RuntimeError(f"{row.name}, seed {seed}: more is certified than an attack leaves; one of them is wrong.")
    done.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(document), flush=True)


def certified(model: Classifier, data: Dataset, threat: ThreatModel, seed: int) -> dict[str, float]:
    """The share of images that each certifier or a cheaper one proves, and its seconds on what those left."""
    found: dict[str, float] = {}
    proved = torch.zeros(len(data), dtype=torch.bool)
    for name in CERTIFIED_BY:
        began, left = time.perf_counter(), (~proved).nonzero().squeeze(1)
        x, y, noise = data.x[left], data.y[left], Noise(seed, "certified").at(data.ids[left])
        certifier: Any = CERTIFIERS.get(name).target()
        proof = certifier.certify(model, x, y, threat, noise)
        proved[left] = (proof.radius >= threat.radius) & (proof.predicted == y)
        found |= {name: float(proved.double().mean()), f"{name} seconds": time.perf_counter() - began}
    return found


def write(setting: Setting, out: Path, target: Path) -> None:
    runs = pd.DataFrame([json.loads(file.read_text()) for file in sorted(out.glob("*.json"))])
    order = {row.name: place for place, row in enumerate(ROWS)}
    runs = runs.assign(order=runs["method"].map(order)).sort_values(["order", "seed"]).drop(columns="order")
    target.parent.mkdir(parents=True, exist_ok=True)
    runs.to_csv(target.with_name(f"{target.name}.csv"), index=False)
    base = runs.loc[runs["method"] == "standard", "seconds"].median()
    lines = [
        f"# Training for certificates on {setting.title}, {setting.threat}",
        "",
        f"Made by `benchmarks/certified_training.py`: {ARCH[0]} with batch normalisation, {runs['epochs'].iloc[0]} "
        f"epochs, batch {setting.batch_size}, Adam at {RECIPE['lr']:g}, each method's published hyper-parameters, "
        f"nothing tuned; {runs['n'].iloc[0]} test images, attacked under the `standard` tier and certified by "
        f"{', '.join(CERTIFIED_BY)}, each on what those before it left. "
        "Accuracies in %: median over the seeds (lowest to highest). Width: of the "
        "bracket, attacked minus the most that is certified. Tightness: of interval propagation after the last epoch. "
        "Time: of the processor in training, one thread, as a multiple of standard training's. Passes: forward and "
        "backward pairs for each example "
        "and epoch, as counted.",
        "",
    ]
    titles = ["method", "seeds", "natural", "attacked (at most)", *(f"certified by {name}" for name in CERTIFIED_BY)]
    titles += ["width", "tightness", "time", "passes"]
    lines += [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for name, rows in runs.groupby("method", sort=False):
        tightness = rows["tightness"].astype(float)
        cells = [str(name), str(len(rows))]
        cells += [spread(100 * rows[column]) for column in ("clean", "robust", *CERTIFIED_BY, "width")]
        cells += [f"{tightness.median():.3f}" if tightness.notna().any() else ""]
        times = rows["seconds"].dropna() / base
        cells += [f"{times.median():.1f}x" if len(times) else "", f"{rows['passes'].median():.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    target.with_name(f"{target.name}.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="")
    parser.add_argument("--shard", default="0/1")
    parser.add_argument("--table", type=Path)
    parser.add_argument("--setting", choices=SETTINGS, default="digits")
    parser.add_argument("--epochs", type=int, help="another number than the setting's, for all methods")
    parser.add_argument("--images", help="MNIST's t10k-images-idx3-ubyte.gz, its labels beside it")
    arguments = parser.parse_args()
    setting = SETTINGS[arguments.setting]
    if arguments.setting != "digits" and not arguments.images:
        parser.error(f"--setting {arguments.setting} needs --images")
    if arguments.table:
        write(setting, arguments.out, arguments.table)
        return
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    part, parts = map(int, arguments.shard.split("/"))
    jobs = [(row, seed) for seed in range(arguments.seeds) for row in ROWS]
    for place, (row, seed) in enumerate(jobs):
        if place % parts == part and (not arguments.only or row.name in arguments.only.split(",")):
            run(setting, arguments.images or "digits", row, seed, arguments.out, arguments.epochs or setting.epochs)


if __name__ == "__main__":
    main()
