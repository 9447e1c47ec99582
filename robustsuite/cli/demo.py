"""`robustsuite demo`: train, attack, certify and rank small networks on the embedded digits."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robustsuite.cli import console, run_view
from robustsuite.cli.options import DataOptions, Json, ModelOptions, RunOptions, Seed
from robustsuite.cli.running import command_of, prepare_run

if TYPE_CHECKING:
    from robustsuite.evaluation.evaluator import Run
    from robustsuite.training.recipes import Recipe

# Measured on networks this small: a second thread saves a third on an idle machine and costs tenfold on a busy one.
_THREADS = 1


def demo(
    ctx: typer.Context,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="Where everything goes.")] = Path("demo"),
    subset: Annotated[str, typer.Option(metavar="SPEC", help="Which test digits, such as first:100.")] = "all",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Train small networks on digits, attack and certify each, and build a leaderboard, in about two minutes."""
    import torch

    from robustsuite.leaderboard.board import boards
    from robustsuite.leaderboard.export import build
    from robustsuite.leaderboard.site.pages import write_site
    from robustsuite.training.recipes import DIGITS

    torch.set_num_threads(_THREADS)
    results: dict[str, tuple[Path, Run]] = {}
    for recipe in DIGITS:
        path = _train(recipe, out, seed)
        results[recipe.name] = path, _evaluate(recipe, path, out, subset, seed, command_of(ctx.obj))
    records = [run.record for _, run in results.values() if run.record is not None]
    written = [*build(records, out / "board"), *write_site(boards(records), out / "site")]
    example, run = list(results.values())[-1]
    after = [
        f"robustsuite verify {shlex.quote(str(run.directory))}",
        f"robustsuite eval {shlex.quote(str(example))} --data digits --threat {DIGITS[-1].threat} --tier standard",
        "robustsuite eval YOUR.pt --arch NAME --data YOUR.npz --threat Linf:8/255",
    ]
    if as_json:
        runs = {
            n: run_view.document(r.record, r.directory, resumed=r.resumed) for n, (_, r) in results.items() if r.record
        }
        paths = {name: str(path) for name, (path, _) in results.items()}
        console.emit({"checkpoints": paths, "runs": runs, "files": [str(f) for f in written], "next": after})
        return
    _print_table({name: run for name, (_, run) in results.items()}, DIGITS[0].threat)
    console.say(f"Checkpoints: {out / 'checkpoints'}\nRuns: {out / 'runs'}\nTables: {out / 'board' / 'README.md'}")
    console.say(f"Leaderboard: open {out / 'site' / 'index.html'}")
    console.say("Next:\n" + "\n".join(f"  {line}" for line in after))


def _train(recipe: "Recipe", out: Path, seed: int) -> Path:
    from robustsuite.data.reference import load_data
    from robustsuite.training.checkpoint import save_trained

    with console.training(f"train {recipe.name}") as progress:
        trained = recipe.train(load_data(recipe.data, split="train"), seed=seed, progress=progress)
    return save_trained(trained, out / "checkpoints" / recipe.name)


def _evaluate(recipe: "Recipe", path: Path, out: Path, subset: str, seed: int, command: str) -> "Run":
    from robustsuite.evaluation.evaluator import evaluate
    from robustsuite.evaluation.protocol import load_protocol

    run = RunOptions(threat=recipe.threat, seed=seed, threads=_THREADS, device="cpu")
    protocol = load_protocol("standard")
    data = DataOptions(data=recipe.data, subset=subset)
    prepared = prepare_run(ModelOptions(model=str(path)), data, run, protocol)
    console.log(f"evaluate {recipe.name}")
    with console.progress() as progress:
        return evaluate(prepared, out / "runs", progress=progress, command=command)


def _print_table(runs: "dict[str, Run]", threat: str) -> None:
    from rich import box
    from rich.table import Table

    table = Table(title=f"digits, {threat}", box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
    table.add_column("training")
    for title in ("clean", "attacked (at most)", "certified (at least)", "n", "seconds"):
        table.add_column(title, justify="right")
    for name, run in runs.items():
        if run.record is None:
            continue
        names = ("clean_accuracy", "robust_accuracy", "certified_accuracy")
        cells = [run_view.percent(run.record.metric(m)) for m in names]
        table.add_row(name, *cells, str(run.record.request.data.n), f"{run.record.host.wall_seconds:.1f}")
    console.stdout().print(table)
