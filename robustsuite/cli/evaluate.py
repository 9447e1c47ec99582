"""`robustsuite eval`: evaluate a model."""

from typing import Annotated

import typer

from robustsuite.cli.options import DataOptions, ModelOptions, RunOptions, takes
from robustsuite.cli.running import carry_out, choose_protocol, prepare_run


@takes(ModelOptions, DataOptions, RunOptions)
def evaluate(
    model: ModelOptions,
    data: DataOptions,
    run: RunOptions,
    ctx: typer.Context,
    tier: Annotated[
        str | None, typer.Option(metavar="NAME", help="smoke, quick (the default), standard: how hard to try.")
    ] = None,
    protocol: Annotated[str | None, typer.Option(metavar="NAME|FILE.yaml", help="A protocol of your own.")] = None,
    attack: Annotated[list[str], typer.Option(metavar="A,B", help="Only these attacks.")] = [],  # noqa: B006
    certifier: Annotated[list[str], typer.Option(metavar="A,B", help="Only these certifiers.")] = [],  # noqa: B006
) -> None:
    """Evaluate MODEL on DATA: clean, robust and certified accuracy.

    The directory of the run is its checkpoint: the same command resumes it, and recalls it once it is finished.
    """
    chosen = choose_protocol(tier, protocol, attack, certifier, run.stage_param)
    carry_out(prepare_run(model, data, run, chosen), run, ctx.obj)
