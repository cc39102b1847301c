"""What each family says of a configuration that cannot be: a table for people.

In: the first tiny model of each family. Out: a line for each family and kind of mistake.
Run: python tests/architectures/refusals.py [model_type ...]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from test_wrong_configurations import base, keys, refusal, spelled

from crumb.architectures.family import Family
from crumb.architectures.registry import families


def mistakes(family: Family) -> Iterator[tuple[str, str]]:
    """Each kind of mistake, and the refusal."""
    hidden = keys(family, "hidden")
    usual = {key: value for key, value in base(family).items() if key not in hidden}
    yield "missing", refusal(usual)
    yield "null", refusal(spelled(family, "vocabulary", None))
    if "rope" in family.keys:
        yield "rope", refusal(spelled(family, "rope", {"rope_type": "spiral"}))
    if "groups" in family.keys:
        yield "groups", refusal(spelled(family, "groups", 7))
    if "experts" in family.keys:
        yield "experts", refusal(spelled(family, "used", 1000))
    elif "heads" in family.keys:
        yield "heads", refusal(spelled(family, "heads", 11) | {"head_dim": None})


if __name__ == "__main__":
    for name in sys.argv[1:] or families():
        for kind, told in mistakes(families()[name]):
            print(f"{name:12} {kind:8} {told or 'no mistake here'}")
