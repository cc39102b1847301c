"""Keywords that a request does not have, refused by name.

In: keywords, the records whose fields they may be. Out: nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from typing import Any

from crumb.errors import UsageError


def check_known(options: Mapping[str, Any], of: str, *records: Any) -> None:
    """Raises: UsageError for an option that none of these dataclasses has as a field."""
    names = [each.name for record in records for each in fields(record)]
    unknown = sorted(options.keys() - set(names))
    if unknown:
        near = get_close_matches(unknown[0], names, 1)
        do = f"Did you mean {near[0]}?" if near else None
        raise UsageError(f"no such setting of {of}", found=unknown[0], do=do)
