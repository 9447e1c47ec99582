"""`robustsuite check`: the contract suite on a plugin."""

import dataclasses
from typing import Annotated

import typer

from robustsuite.cli import console, values
from robustsuite.cli.loading import load_plugins
from robustsuite.cli.options import Json, Plugins
from robustsuite.errors import ContractError


def check(
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="FILE.py:NAME, package.module:NAME, or a registered name.")
    ],
    param: Annotated[
        list[str], typer.Option("-p", "--param", metavar="KEY=VALUE", help="A hyper-parameter to check it with.")
    ] = [],  # noqa: B006  (typer's way to say: none given)
    plugin: Plugins = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Run the contract suite on a plugin and say in words what is wrong. Exits with 6 when something is."""
    from robustsuite.testing import check_plugin

    load_plugins(plugin)
    entry, findings = check_plugin(target, values.pairs("--param", param))
    failed = sum(not f.ok for f in findings)
    if as_json:
        lines = [dataclasses.asdict(f) for f in findings]
        console.emit({"target": target, "name": entry.name, "ok": not failed, "findings": lines})
        raise typer.Exit(ContractError.exit_code if failed else 0)
    for finding in findings:
        console.say(str(finding))
    if failed:
        raise ContractError(f"{entry.name} breaks its contract: {failed} of {len(findings)} checks failed.")
    console.say(f"{entry.name} keeps its contract.")
