"""A training's epochs as a table and as curves."""

from pathlib import Path
from typing import Any

import pandas as pd

from robustsuite.errors import PrerequisiteError
from robustsuite.training.trained import Trained

ACCURACIES = {"clean_accuracy": "clean", "fgsm_accuracy": "under FGSM", "robust_accuracy": "under PGD-10"}


def table(trained: Trained) -> pd.DataFrame:
    """One row an epoch: number, each loss term's mean, accuracies on held-out examples, whether it is the kept one."""
    rows: list[dict[str, Any]] = []
    for epoch in trained.history:
        row = epoch.row()
        terms = {f"term_{name}": value for name, value in row.pop("terms").items()}
        rows.append({"epoch": row.pop("number"), **terms, **row, "kept": epoch.number == trained.best})
    return pd.DataFrame(rows)


def write_history(trained: Trained, path: Path) -> Path:
    """The table as CSV; raises `PrerequisiteError` when it cannot be written."""
    try:
        table(trained).to_csv(path, index=False)
    except OSError as error:
        raise PrerequisiteError(f"cannot write the epochs to {path}: {error.strerror or error}.") from error
    return path


def draw(trained: Trained, path: Path) -> Path:
    """Loss terms above, accuracies on held-out examples below, the kept epoch marked; a PNG."""
    from matplotlib.figure import Figure

    epochs = table(trained)
    figure = Figure(figsize=(7, 6), layout="constrained")
    losses, accuracies = figure.subplots(2, 1, sharex=True)
    names = [trained.defense, *(part["name"] for part in trained.modifiers)]
    losses.set_title(f"{' + '.join(names)}, {trained.data['name']}, {trained.threat}, seed {trained.settings['seed']}")
    for column in epochs.columns[epochs.columns.str.startswith("term_")]:
        losses.plot(epochs["epoch"], epochs[column], label=column.removeprefix("term_"))
    losses.set_ylabel("loss term (mean)")
    for column, label in ACCURACIES.items():
        measured = [100 * value if value is not None else float("nan") for value in _column(trained, column)]
        if any(value == value for value in measured):  # NaN is not itself
            accuracies.plot(epochs["epoch"], measured, marker=".", label=label)
    accuracies.set(xlabel="epoch", ylabel="held-out accuracy (%)", ylim=(0, 101))
    for axes in (losses, accuracies):
        axes.axvline(trained.best, color="0.7", linestyle="--", linewidth=1, label="kept")
        axes.grid(alpha=0.3)
        axes.legend(loc="best", fontsize="small")
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise PrerequisiteError(f"cannot write the curves to {path}: {error.strerror or error}.") from error
    return path


def _column(trained: Trained, name: str) -> list[float | None]:
    return [getattr(epoch, name) for epoch in trained.history]
