"""`robustsuite train`: train a model with a defense."""

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robustsuite.cli import console, values
from robustsuite.cli.loading import load_plugins
from robustsuite.cli.options import Config, Device, Json, Plugins, Seed, Threat
from robustsuite.errors import IncompleteError, InputError, UsageError

if TYPE_CHECKING:
    from robustsuite.data.dataset import Dataset

DIGITS_THREAT = "Linf:0.15"


def train(
    method: Annotated[str, typer.Argument(metavar="METHOD", help="A training-time defense: standard, pgd_at, ...")],
    data: Annotated[str, typer.Option("--data", "-d", metavar="DATA", help="A name (digits), a file or a folder.")],
    out: Annotated[str, typer.Option("-o", "--out", metavar="PATH", help="Where the checkpoint goes (.safetensors).")],
    arch: Annotated[str, typer.Option(metavar="NAME", help="An architecture, or py:module:factory.")] = "small_cnn",
    threat: Threat = None,
    defense_param: Annotated[
        list[str], typer.Option("-D", "--defense-param", metavar="KEY=VALUE", help="The defense's parameter.")
    ] = [],  # noqa: B006  (typer's way to say: none given)
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
        str | None, typer.Option(metavar="NAME", help="one_cycle, cosine, multistep, constant.")
    ] = None,
    weight_decay: Annotated[float | None, typer.Option(min=0)] = None,
    seed: Seed = 0,
    device: Device = "auto",
    plugin: Plugins = [],  # noqa: B006
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Train with METHOD and write the checkpoint with the sidecar that eval needs."""
    from robustsuite.threat import ThreatModel
    from robustsuite.training.checkpoint import save_trained
    from robustsuite.training.loop import train as fit
    from robustsuite.training.method import make_method
    from robustsuite.training.trained import DivergedError

    if threat is None and data != "digits":
        raise UsageError("--threat is missing: say what the attacker may do, such as --threat Linf:8/255 or L2:0.5.")
    model = ThreatModel.parse(threat or DIGITS_THREAT)
    load_plugins(plugin)
    defense = make_method(method, values.pairs("-D", defense_param))
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
    place = values.device_of(device)
    arch_params = values.pairs("-M", model_param)
    try:
        with console.training(method) as progress:
            trained = fit(
                defense, arch, arch_params, examples, model, **given, seed=seed, device=place, progress=progress
            )
    except DivergedError as error:
        if error.trained is None:
            raise
        path = save_trained(error.trained, out)
        raise IncompleteError(f"{error} It is saved as {path}.") from error
    path = save_trained(trained, out)
    after = f"robustsuite eval {path} --data {data} --threat {model} --tier standard"
    if as_json:
        history = [dataclasses.asdict(epoch) for epoch in trained.history]
        body = {"checkpoint": str(path), "sidecar": str(path.with_suffix(".yaml")), "best_epoch": trained.best}
        console.emit({**body, "seconds": round(trained.seconds, 3), "history": history, "next": after})
        return
    console.say(f"Trained for {trained.seconds:.1f} s; epoch {trained.best} of {len(trained.history)} is kept.")
    console.say(f"Checkpoint: {path}\nSidecar: {path.with_suffix('.yaml')}\nNext: {after}")


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
