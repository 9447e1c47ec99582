"""`robustsuite certify`: evaluate a model with certifiers alone."""

from typing import Annotated

import typer

from robustsuite.cli.options import DataOptions, ModelOptions, RunOptions, takes
from robustsuite.cli.running import carry_out, choose_protocol, prepare_run


@takes(ModelOptions, DataOptions, RunOptions)
def certify(
    model: ModelOptions,
    data: DataOptions,
    run: RunOptions,
    ctx: typer.Context,
    certifier: Annotated[list[str], typer.Option(metavar="A,B", help="Which certifiers; see robustsuite ls.")],
) -> None:
    """Certify MODEL on DATA: eval with certifiers alone, such as --certifier smoothing -A sigma=0.25."""
    chosen = choose_protocol(None, None, [], certifier, run.stage_param)
    carry_out(prepare_run(model, data, run, chosen), run, ctx.obj)
