"""Two plots of a table of defenses: clean against robust accuracy with the Pareto front, and robustness against cost.

    python benchmarks/defense_plots.py leaderboards/defenses/digits-linf-0.15.csv

Writes a PNG beside the table: medians over the seeds. On the front lies what no other method surpasses in both; it
is named, and so is what is the most robust at its cost.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes

GREY, FRONT = "#8a8f98", "#b3261e"


def front(points: pd.DataFrame, by: str) -> pd.DataFrame:
    """The rows that no other surpasses in ``robust`` and is at least as good in ``by`` (larger is better)."""
    ordered = points.sort_values([by, "robust"], ascending=False)
    best = ordered["robust"].cummax().shift(fill_value=-1.0)
    return ordered[ordered["robust"] > best]


def draw(axes: Axes, points: pd.DataFrame, column: str, better: str, label: str) -> None:
    """All methods in grey, those on the front joined and named."""
    on_front = front(points, better).sort_values(column)
    axes.scatter(points[column], points["robust"], s=16, color=GREY, alpha=0.8, linewidths=0)
    axes.plot(on_front[column], on_front["robust"], color=FRONT, marker="o", markersize=4, linewidth=1)
    for place, (name, row) in enumerate(on_front.iterrows()):
        axes.annotate(
            str(name),
            (row[column], row["robust"]),
            textcoords="offset points",
            xytext=(-4, 6 + 9 * (place % 2)),
            ha="right",
            fontsize=7,
            color=FRONT,
        )
    axes.set_xlabel(label)
    axes.set_ylabel("robust accuracy, standard tier (%)")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("--least-clean", type=float, default=80.0, help="leave out what is less accurate (%%)")
    parser.add_argument("--least-robust", type=float, default=50.0, help="leave out what is less robust (%%)")
    arguments = parser.parse_args()
    runs = pd.read_csv(arguments.table)
    points = runs.groupby("method")[["clean", "robust", "passes"]].median()
    points[["clean", "robust"]] *= 100
    shown = (points["clean"] >= arguments.least_clean) & (points["robust"] >= arguments.least_robust)
    points = points[shown].assign(cheap=lambda p: -p["passes"])
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    draw(left, points, "clean", "clean", "clean accuracy (%)")
    draw(right, points, "passes", "cheap", "training cost (passes for each example and epoch, log scale)")
    right.set_xscale("log")
    right.set_xticks(ticks := [t for t in (1, 2, 3, 5, 10, 20, 50, 100) if t <= 1.5 * points["passes"].max()])
    right.set_xticklabels([str(t) for t in ticks])
    right.minorticks_off()
    title = arguments.table.stem.replace("-", " ")
    gone = f"{(~shown).sum()} below {arguments.least_clean:g} % clean or {arguments.least_robust:g} % robust not drawn"
    figure.suptitle(f"Training-time defenses, {title}: medians over seeds; {gone}", fontsize=9)
    figure.savefig(arguments.table.with_suffix(".png"), dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
