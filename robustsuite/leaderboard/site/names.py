"""File names of pages: every id and key becomes one name that stays in its folder."""

import hashlib
import re
import unicodedata
from collections.abc import Sequence

_SAFE = re.compile(r"[a-z0-9][a-z0-9._-]{0,79}")


def file_names(ids: Sequence[str]) -> list[str]:
    """One name an id, in their order: the id itself where every file system takes it, else a safe part and a hash.

    No separator, no leading dot, and no two that differ only in case.
    """
    names: list[str] = []
    seen: set[str] = set()
    for identity in ids:
        name = identity if _SAFE.fullmatch(identity) and not identity.endswith(".") else _hashed(identity)
        number = 2
        while name in seen:
            name = f"{_hashed(identity)}-{number}"
            number += 1
        seen.add(name)
        names.append(name)
    return names


def _hashed(identity: str) -> str:
    plain = unicodedata.normalize("NFKD", identity).encode("ascii", "ignore").decode().lower()
    slug = re.sub(r"[^a-z0-9_-]+", "-", plain).strip("-_")[:60]
    digest = hashlib.sha256(identity.encode(errors="surrogatepass")).hexdigest()[:8]
    return f"{slug}-{digest}" if slug else digest
