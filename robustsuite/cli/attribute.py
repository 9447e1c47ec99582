"""`robustsuite attribute`: attack a model's explanations where its answers stay as they are."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robustsuite.cli import console, values
from robustsuite.cli.loading import load_plugins, load_subject
from robustsuite.cli.options import Config, DataOptions, Device, Json, ModelOptions, Plugins, Seed, Threat, takes
from robustsuite.cli.running import inside_the_box
from robustsuite.errors import PrerequisiteError, UsageError

if TYPE_CHECKING:
    from robustsuite.evaluation.attribution import AttributionRobustness

_ATTACK = "Attack"


@dataclasses.dataclass(frozen=True)
class AttackOptions:
    """The attack on the attributions."""

    attribution: Annotated[
        str, typer.Option(metavar="gradient|integrated", help="Which maps.", rich_help_panel=_ATTACK)
    ] = "gradient"
    loss: Annotated[
        str,
        typer.Option(metavar="topk|mass_centre|targeted", help="What the attack is after.", rich_help_panel=_ATTACK),
    ] = "topk"
    k: Annotated[
        int | None, typer.Option("-k", "--top", min=1, help="Pixels compared (a tenth).", rich_help_panel=_ATTACK)
    ] = None
    region: Annotated[
        str | None,
        typer.Option(metavar="TOP,LEFT,BOTTOM,RIGHT", help="Where targeted brings mass to.", rich_help_panel=_ATTACK),
    ] = None
    steps: Annotated[int, typer.Option(min=1, rich_help_panel=_ATTACK)] = 300
    restarts: Annotated[int, typer.Option(min=1, help="Random starts.", rich_help_panel=_ATTACK)] = 1
    alpha: Annotated[str | None, typer.Option(metavar="A", help="Step size (eps/16).", rich_help_panel=_ATTACK)] = None
    points: Annotated[
        int, typer.Option(min=1, help="On the path of integrated gradients.", rich_help_panel=_ATTACK)
    ] = 50
    beta: Annotated[
        float, typer.Option(help="How sharp the softplus in place of ReLU is.", rich_help_panel=_ATTACK)
    ] = 10.0


@takes(ModelOptions, DataOptions, AttackOptions)
def attribute(
    model: ModelOptions,
    data: DataOptions,
    chosen: AttackOptions,
    threat: Threat = None,
    slots: Annotated[int | None, typer.Option(min=1, help="Examples worked on at once; changes the last bits.")] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", metavar="FILE.csv", help="One line an example.")] = None,
    seed: Seed = 0,
    device: Device = "auto",
    plugin: Plugins = [],  # noqa: B006  (typer's way to say: none given)
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Attack the explanations of MODEL's right answers on DATA, leaving the answers alone (IFIA).

    Says how far the maps before and after agree, next to what a random perturbation of the same size does to them.
    """
    from robustsuite.attacks.ifia import IFIA
    from robustsuite.evaluation.attribution import evaluate_attributions
    from robustsuite.threat import ThreatModel

    if threat is None:
        raise UsageError("--threat is missing: say what the attacker may do, such as --threat Linf:8/255 or L2:0.5.")
    ball = ThreatModel.parse(threat)
    given: dict[str, Any] = dataclasses.asdict(chosen) | {"region": _region(chosen.region)}
    given["alpha"] = values.number("--alpha", chosen.alpha) if chosen.alpha else None
    attack = IFIA(**given)
    subject = load_subject(model, data, values.device_of(device), load_plugins(plugin))
    inside_the_box(ball, subject.data.input_shape)
    found = evaluate_attributions(subject.classifier, subject.data, ball, attack, seed=seed, slots=slots)
    if out is not None:
        _write(found, out)
    passes = subject.classifier.passes
    body: dict[str, Any] = {
        "model": subject.part.name,
        "weights_sha256": subject.part.weights_sha256,
        "data": {"name": subject.data.name, "subset": subject.data.subset, "fingerprint": subject.data.fingerprint},
        "threat": str(ball),
        "attack": dataclasses.asdict(attack) | {"k": found.k},
        "seed": seed,
        "examples": found.examples,
        "attributed": len(found.ids),
        "random": _means(found, "random"),
        "attacked": _means(found, "attacked"),
        "blind": int(found.blind.sum()),
        "passes": {"forward": passes.forward, "backward": passes.backward},
        "file": str(out) if out else None,
    }
    if as_json:
        console.emit(body)
        return
    _show(body)


def _region(text: str | None) -> tuple[int, ...] | None:
    try:
        numbers = tuple(int(part) for part in text.split(",")) if text else None
    except ValueError:
        numbers = ()
    if numbers is not None and len(numbers) != 4:
        raise UsageError(f"--region wants four whole numbers, TOP,LEFT,BOTTOM,RIGHT in pixels; got '{text}'.")
    return numbers


def _means(found: "AttributionRobustness", side: str) -> dict[str, float]:
    return {name: float(column.mean()) for name, column in dataclasses.asdict(getattr(found, side)).items()}


def _write(found: "AttributionRobustness", path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        found.table().to_csv(path, index=False)
    except OSError as error:
        raise PrerequisiteError(f"cannot write the examples to {path}: {error.strerror or error}.") from error


def _show(body: dict[str, Any]) -> None:
    from rich.table import Table

    attack, attributed = body["attack"], body["attributed"]
    what = f"{attack['loss']} attack on {attack['attribution']} maps, {attack['steps']} steps, {body['threat']}"
    console.say(f"{body['model']} on {body['data']['name']}: {what}")
    console.say(f"{attributed} of {body['examples']} examples, those predicted rightly, and still so after the attack.")
    table = Table("mean", "random perturbation", "attack")
    names = {
        "top_k": f"top-{attack['k']} intersection",
        "kendall": "Kendall tau",
        "spearman": "Spearman rho",
        "centre_shift": "centre shift (pixels)",
    }
    for key, name in names.items():
        table.add_row(name, f"{body['random'][key]:.3f}", f"{body['attacked'][key]:.3f}")
    console.stdout().print(table)
    if body["blind"]:
        console.warn(
            f"the attack had no gradient to follow on {body['blind']} of {attributed} examples: the network has no "
            "curvature there, so these maps may be changed by what the attack does not find."
        )
    if body["file"]:
        console.say(f"Examples: {body['file']}")
