"""`robustsuite train`: train a model with a defense."""

import dataclasses
import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robustsuite.cli import console, values
from robustsuite.cli.loading import load_plugins
from robustsuite.cli.options import Config, Device, Json, Plugins, Seed, Threat
from robustsuite.errors import IncompleteError, InputError, PrerequisiteError, UsageError

if TYPE_CHECKING:
    from robustsuite.data.dataset import Dataset
    from robustsuite.training.trained import Trained

DIGITS_THREAT = "Linf:0.15"


def train(
    method: Annotated[str, typer.Argument(metavar="METHOD", help="A training-time defense: standard, pgd_at, ...")],
    data: Annotated[str, typer.Option("--data", "-d", metavar="DATA", help="A name (digits), a file or a folder.")],
    out: Annotated[str, typer.Option("-o", "--out", metavar="PATH", help="Where the checkpoint goes (.safetensors).")],
    arch: Annotated[str, typer.Option(metavar="NAME", help="An architecture, or py:module:factory.")] = "small_cnn",
    threat: Threat = None,
    modifiers: Annotated[
        str, typer.Option("--with", metavar="NAME,NAME", help="Modifiers of the method: awp, ema, label_smoothing, ...")
    ] = "",
    defense_param: Annotated[
        list[str],
        typer.Option("-D", "--defense-param", metavar="[PART.]KEY=VALUE", help="A parameter of method or modifier."),
    ] = [],  # noqa: B006  (typer's way to say: none given)
    defaults: Annotated[
        str | None, typer.Option(metavar="NAME", help="Published parameters for this data set: cifar10, mnist, ...")
    ] = None,
    model_param: Annotated[
        list[str], typer.Option("-M", "--model-param", metavar="KEY=VALUE", help="The architecture's parameter.")
    ] = [],  # noqa: B006
    split: Annotated[str, typer.Option(metavar="NAME", help="Which split to train on.")] = "train",
    subset: Annotated[str, typer.Option(metavar="SPEC", help="all, first:N, range:FROM:TO, ...")] = "all",
    epochs: Annotated[int | None, typer.Option(min=1)] = None,
    batch_size: Annotated[int | None, typer.Option(min=1)] = None,
    lr: Annotated[float | None, typer.Option(min=0, help="Largest learning rate.")] = None,
    optimizer: Annotated[str | None, typer.Option(metavar="sgd|adam|adamw")] = None,
    schedule: Annotated[
        str | None, typer.Option(metavar="NAME", help="one_cycle, cosine, cyclic, multistep, late_steps, constant.")
    ] = None,
    weight_decay: Annotated[float | None, typer.Option(min=0)] = None,
    setting: Annotated[
        list[str],
        typer.Option(
            "-S",
            "--setting",
            metavar="KEY=VALUE",
            help="Of the loop: momentum, nesterov, clip, decay_all, validation, compile, channels_last.",
        ),
    ] = [],  # noqa: B006
    precision: Annotated[str, typer.Option(metavar="fp32|bf16", help="Of forward passes.")] = "fp32",
    devices: Annotated[int, typer.Option(min=1, help="Processes, each on a device of its own; CPUs are shared.")] = 1,
    keep_last: Annotated[bool, typer.Option("--keep-last", help="Write the last epoch's weights too.")] = False,
    plot: Annotated[bool, typer.Option("--plot", help="Draw the curves into PATH.png.")] = False,
    seed: Seed = 0,
    device: Device = "auto",
    plugin: Plugins = [],  # noqa: B006
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Train with METHOD and write the checkpoint with the sidecar that eval needs.

    Killed at any moment, the same command goes on where it was and ends with the same weights.
    """
    from robustsuite.threat import ThreatModel
    from robustsuite.training.checkpoint import save_trained
    from robustsuite.training.loop import train as fit
    from robustsuite.training.method import make_trainable
    from robustsuite.training.store import Store
    from robustsuite.training.trained import DivergedError

    if threat is None and data != "digits":
        raise UsageError("--threat is missing: say what the attacker may do, such as --threat Linf:8/255 or L2:0.5.")
    model = ThreatModel.parse(threat or DIGITS_THREAT)
    load_plugins(plugin)
    names = [name.strip() for name in modifiers.split(",") if name.strip()]
    defense = make_trainable(method, names, values.pairs("-D", defense_param), defaults)
    if plot:
        _can_plot()
    examples = _training_data(data, split, subset)
    settings = {
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "optimizer": optimizer,
        "schedule": schedule,
        "weight_decay": weight_decay,
    }
    given: dict[str, Any] = {k: v for k, v in settings.items() if v is not None}
    given |= _settings(values.pairs("-S", setting), set(settings))
    place = values.device_of(device)
    arch_params = values.pairs("-M", model_param)
    store = Store(out, {})
    if store.path.exists():
        console.log(f"{store.path}: an earlier run of this training was stopped; going on from there.")
    label = "+".join([method, *names])
    try:
        with console.training(label) as progress:
            trained = fit(
                defense, arch, arch_params, examples, model, **given, precision=precision, seed=seed, device=place,
                devices=devices, progress=progress, keep_at=out,
            )  # fmt: skip
    except DivergedError as error:
        store.clear()
        if error.trained is None:
            raise
        path = save_trained(error.trained, out)
        raise IncompleteError(f"{error} It is saved as {path}.") from error
    if trained.rank:
        return
    path = save_trained(trained, out)
    last = save_trained(trained, path.with_suffix(".last.safetensors"), "last") if keep_last else None
    table, picture = _report(trained, path, plot)
    store.clear()
    after = f"robustsuite eval {path} --data {data} --threat {model} --tier standard"
    if as_json:
        body = {
            "checkpoint": str(path),
            "last": str(last) if last else None,
            "sidecar": str(path.with_suffix(".yaml")),
            "history_file": str(table),
            "plot": picture,
            "best_epoch": trained.best,
            "seconds": round(trained.seconds, 3),
            "passes": trained.passes,
            "robust_overfitting": trained.overfitting,
            "collapsed_at": trained.collapsed_at,
            "history": [epoch.row() for epoch in trained.history],
            "next": after,
        }
        console.emit(body)
        return
    console.say(f"Trained for {trained.seconds:.1f} s; epoch {trained.best} of {len(trained.history)} is kept.")
    for line in monitors(trained):
        console.say(line)
    files = [f"Checkpoint: {path}", f"Sidecar: {path.with_suffix('.yaml')}", f"Epochs: {table}"]
    files += [f"Last epoch: {last}"] * bool(last) + [f"Curves: {picture}"] * bool(picture)
    console.say("\n".join([*files, f"Next: {after}"]))


def monitors(trained: "Trained") -> list[str]:
    """What the held-out examples say of best and last epoch, and of the two kinds of overfitting."""
    best, last = trained.history[trained.best - 1], trained.history[-1]
    lines = []
    if best.clean_accuracy is not None:
        parts = [f"clean {best.clean_accuracy:.1%}"]
        if best.robust_accuracy is not None:
            parts.append(f"under PGD-10 {best.robust_accuracy:.1%}")
        if last.robust_accuracy is not None:
            parts.append(f"last epoch {last.robust_accuracy:.1%}")
        lines.append(f"On {trained.settings['validation']} held-out examples: {', '.join(parts)}.")
    if trained.collapsed_at is not None:
        epoch = trained.history[trained.collapsed_at - 1]
        lines.append(
            f"Catastrophic overfitting from epoch {trained.collapsed_at} on: {epoch.fgsm_accuracy:.1%} under FGSM, "
            f"{epoch.robust_accuracy:.1%} under PGD-10."
        )
    return lines


def _report(trained: "Trained", path: Path, plot: bool) -> tuple[Path, str | None]:
    """The epochs as a table beside the checkpoint, and as curves where wanted."""
    from robustsuite.training.history import draw, write_history

    table = write_history(trained, path.with_suffix(".epochs.csv"))
    return table, str(draw(trained, path.with_suffix(".png"))) if plot else None


def _can_plot() -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise PrerequisiteError("--plot needs matplotlib: pip install 'robustsuite[plot]'.") from error


def _settings(given: dict[str, Any], own: set[str]) -> dict[str, Any]:
    """Settings of the loop by name; raises `UsageError` for one that it does not have."""
    from robustsuite.training.settings import Settings

    known = {f.name for f in dataclasses.fields(Settings)} - {"seed", "precision"}
    for key in given:
        if key in own:
            raise UsageError(f"-S {key} has an option of its own: --{key.replace('_', '-')}.")
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise UsageError(f"the loop has no setting '{key}'.{hint} It has: {', '.join(sorted(known - own))}.")
    return given


def _training_data(reference: str, split: str, subset: str) -> "Dataset":
    from robustsuite.data.reference import load_data

    try:
        return load_data(reference, split=split, subset=subset)
    except InputError as error:
        if f"has no '{split}' split" not in str(error):
            raise
        # Nobody should train on what they will be tested on without having said so.
        remedy = "say --split test and choose with --subset what to train on, and other examples to test on."
        raise InputError(f"{reference} has no '{split}' split: {remedy}") from None
