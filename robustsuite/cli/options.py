"""Options that several commands share, as dataclasses that `takes` spreads over a command's signature."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from robustsuite.cli.config import read_config

_MODEL, _DATA, _RUN = "Model", "Data", "Run"

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")]
Plugins = Annotated[list[str], typer.Option("--plugin", metavar="FILE", help="Load a plugin file (repeatable).")]
Runs = Annotated[str, typer.Option("-o", "--out", metavar="DIR", help="The directory of runs.")]
Threat = Annotated[str | None, typer.Option(metavar="NORM:EPS", help="What the attacker may do: Linf:8/255, L2:0.5.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of all randomness.")]
Device = Annotated[str, typer.Option(metavar="auto|cpu|cuda:N", help="auto takes a GPU where there is one.")]
Config = Annotated[
    str | None,
    typer.Option(
        metavar="FILE.yaml",
        help="These options as YAML keys; what is typed here wins.",
        callback=read_config,
        is_eager=True,
    ),
]


def _option(panel: str, *names: str, help: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, **more)


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """Which model, and how to load it."""

    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A checkpoint, a folder with one and its sidecar, py:module:factory, or robustbench:NAME@DATA/THREAT.",
        ),
    ]
    arch: Annotated[
        str | None, _option(_MODEL, "--arch", metavar="NAME", help="An architecture, or py:module:factory.")
    ] = None
    model_param: Annotated[
        list[str], _option(_MODEL, "-M", "--model-param", metavar="KEY=VALUE", help="The architecture's parameter.")
    ] = dataclasses.field(default_factory=list)
    weights: Annotated[
        str | None, _option(_MODEL, "--weights", metavar="FILE", help="Weights for MODEL py:module:factory.")
    ] = None
    mean: Annotated[
        str | None,
        _option(_MODEL, "--mean", metavar="M,M,M", help="Normalisation: 0.49,0.48,0.44 or 125.3/255,...; one for all."),
    ] = None
    std: Annotated[str | None, _option(_MODEL, "--std", metavar="S,S,S", help="Normalisation, like --mean.")] = None
    strip_prefix: Annotated[
        str | None, _option(_MODEL, "--strip-prefix", metavar="P", help="Take this off every tensor's name.")
    ] = None
    match_by_order: Annotated[
        bool, _option(_MODEL, "--match-by-order", help="Pair tensors by position instead of by name.")
    ] = False
    output: Annotated[
        str, _option(_MODEL, "--output", metavar="logits|probabilities", help="What the model returns.")
    ] = "logits"
    wrap: Annotated[
        str | None, _option(_MODEL, "--wrap", metavar="NAME", help="An inference-time defense around it: jpeg, ...")
    ] = None
    wrap_param: Annotated[
        list[str], _option(_MODEL, "-W", "--wrap-param", metavar="KEY=VALUE", help="The wrap's parameter.")
    ] = dataclasses.field(default_factory=list)
    randomized: Annotated[bool, _option(_MODEL, "--randomized", help="Declare that the model is random.")] = False
    eot: Annotated[
        int | None,
        _option(_MODEL, "--eot", metavar="N", min=1, help="Draws of a random model per evaluation by an attack (20)."),
    ] = None
    trust_pickle: Annotated[
        bool, _option(_MODEL, "--trust-pickle", help="Run the code in the checkpoint; the record will say so.")
    ] = False
    model_dir: Annotated[
        str | None,
        _option(_MODEL, "--model-dir", metavar="DIR", help="Where robustbench's checkpoints lie (./models)."),
    ] = None


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """Which examples."""

    data: Annotated[
        str,
        _option(_DATA, "--data", "-d", metavar="DATA", help="A name (digits), .npz, .npy, IDX, or image folder."),
    ]
    split: Annotated[str | None, _option(_DATA, "--split", metavar="NAME", help="Which split; test if not said.")] = (
        None
    )
    subset: Annotated[
        str, _option(_DATA, "--subset", metavar="SPEC", help="all, first:N, stride:K, random:N@SEED, ids:FILE, ...")
    ] = "all"
    num_classes: Annotated[
        int | None, _option(_DATA, "--num-classes", metavar="K", min=2, help="If the labels do not tell.")
    ] = None


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """How to run, and what to print."""

    threat: Threat = None
    stage_param: Annotated[
        list[str],
        typer.Option("-A", "--stage-param", metavar="STAGE.PARAM=VALUE", help="Change a stage's parameter."),
    ] = dataclasses.field(default_factory=list)
    seed: Seed = 0
    slots: Annotated[
        int | None, _option(_RUN, "--slots", min=1, help="Examples worked on at once; part of the run's identity.")
    ] = None
    threads: Annotated[
        int | None, _option(_RUN, "--threads", min=1, help="CPU threads; part of the run's identity.")
    ] = None
    precision: Annotated[
        str,
        _option(_RUN, "--precision", metavar="float32|tf32|bf16", help="Of attacks' passes; verdicts are float32."),
    ] = "float32"
    channels_last: Annotated[
        bool, _option(_RUN, "--channels-last", help="Attack with the channels last in memory.")
    ] = False
    device: Device = "auto"
    shard: Annotated[
        str | None, _option(_RUN, "--shard", metavar="I/N", help="Do only every N-th block, from the I-th (from 0).")
    ] = None
    workers: Annotated[int, _option(_RUN, "--workers", min=1, help="Processes that share the blocks.")] = 1
    out: Runs = "runs"
    plugin: Plugins = dataclasses.field(default_factory=list)
    config: Config = None
    dry_run: Annotated[bool, _option(_RUN, "--dry-run", help="Print the plan, its passes and time; write nothing.")] = (
        False
    )
    as_json: Json = False


def takes(*groups: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Turn a command over option dataclasses (its last parameters) into one with all their fields as options.

    typer reads signatures, so the command gets the one that a person would have had to write by hand.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        def command(**values: Any) -> None:
            made = [group(**{f.name: values.pop(f.name) for f in dataclasses.fields(group)}) for group in groups]
            function(*made, **values)

        own = list(inspect.signature(function).parameters.values())[len(groups) :]
        spread = [_parameter(field) for group in groups for field in dataclasses.fields(group)]
        merged = sorted([*spread, *own], key=lambda p: p.default is not p.empty)
        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in merged]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        command.__doc__, command.__name__ = function.__doc__, function.__name__
        return command

    return decorate


def _parameter(field: "dataclasses.Field[Any]") -> inspect.Parameter:
    default: Any = inspect.Parameter.empty
    if field.default is not dataclasses.MISSING:
        default = field.default
    elif field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=field.type)
