"""`robustsuite schema`: the format of a record."""

from robustsuite.cli import console
from robustsuite.cli.options import Json


def schema(as_json: Json = True) -> None:
    """Print the JSON Schema of a record (always JSON)."""
    del as_json
    from robustsuite.results.records import json_schema

    console.emit(json_schema())
