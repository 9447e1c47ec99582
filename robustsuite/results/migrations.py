"""Old records to the current schema: a chain of pure functions, one a version.

Each takes the body of version v and returns a new body of version v + 1 (`schema_version` included). A new version
needs its function here and a frozen record of the old one in the tests.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any

from robustsuite.errors import InputError
from robustsuite.results.schema import SCHEMA_VERSION

Migration = Callable[[dict[str, Any]], dict[str, Any]]

MIGRATIONS: dict[int, Migration] = {}


def migrate(
    body: dict[str, Any],
    source: str,
    migrations: Mapping[int, Migration] = MIGRATIONS,
    current: int = SCHEMA_VERSION,
) -> dict[str, Any]:
    """``body`` in the current version; ``source`` names it in errors.

    Raises `InputError` for a version that is newer than this suite, unknown, or not a number.
    """
    version = body.get("schema_version")
    if not isinstance(version, int) or isinstance(version, bool):
        raise InputError(f"{source}: 'schema_version' must be a whole number, got {version!r}; this is not a record.")
    if version > current:
        raise InputError(
            f"{source} has schema version {version}, this robustsuite reads up to {current}: upgrade robustsuite."
        )
    while version < current:
        if version not in migrations:
            raise InputError(f"{source} has schema version {version}, which no robustsuite ever wrote or can migrate.")
        try:
            body = migrations[version](copy.deepcopy(body))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise InputError(
                f"{source} is not a valid record of its schema version {version} ({type(error).__name__}: {error})."
            ) from error
        version += 1
    return body
