"""Random JSON schemas of what clients ask for: objects, lists, choices, ranges, definitions.

In: a seed. Out: a schema whose every answer is of bounded length, so that a model of any skill
comes to an end: texts, lists and numbers have limits.
"""

from __future__ import annotations

import random
from typing import Any

WORDS = ("name", "age", "city", "tags", "price", "born", "ok", "kind", "note", "ids")
PATTERNS = ("[a-z]{2,6}", "[A-Z][0-9]{3}", "(red|green|blue)", "x-[0-9a-f]{4}")
FORMATS = ("date", "time", "uuid", "ipv4", "email")


def random_schema(seed: int) -> dict[str, Any]:
    """A schema; the same for a seed."""
    return _Maker(random.Random(seed)).whole()


class _Maker:
    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._definitions: dict[str, Any] = {}

    def whole(self) -> dict[str, Any]:
        if self._chance.random() < 0.3:
            self._definitions["part"] = self.schema(1)
        schema = self.object(3) if self._chance.random() < 0.8 else self.schema(3)
        return {**schema, "$defs": self._definitions} if self._definitions else schema

    def schema(self, depth: int) -> dict[str, Any]:
        makers = [self.string, self.integer, self.number, self.constant, self.simple]
        if depth > 0:
            makers += [
                lambda: self.object(depth - 1),
                lambda: self.array(depth - 1),
                lambda: self.either(depth - 1),
            ]
            if self._definitions:
                makers.append(lambda: {"$ref": "#/$defs/part"})
        return self._chance.choice(makers)()

    def object(self, depth: int) -> dict[str, Any]:
        names = self._chance.sample(WORDS, self._chance.randint(1, 5))
        required = [name for name in names if self._chance.random() < 0.7]
        return {
            "type": "object",
            "properties": {name: self.schema(depth) for name in names},
            "required": required,
            "additionalProperties": False,
        }

    def array(self, depth: int) -> dict[str, Any]:
        least = self._chance.randint(0, 2)
        return {
            "type": "array",
            "items": self.schema(depth),
            "minItems": least,
            "maxItems": least + self._chance.randint(0, 2),
        }

    def either(self, depth: int) -> dict[str, Any]:
        return {"anyOf": [self.schema(depth) for _ in range(self._chance.randint(2, 3))]}

    def string(self) -> dict[str, Any]:
        kind = self._chance.randint(0, 2)
        if kind == 0:
            return {"type": "string", "pattern": f"^{self._chance.choice(PATTERNS)}$"}
        if kind == 1:
            return {"type": "string", "format": self._chance.choice(FORMATS), "maxLength": 40}
        least = self._chance.randint(0, 4)
        return {"type": "string", "minLength": least, "maxLength": least + 12}

    def integer(self) -> dict[str, Any]:
        low = self._chance.randint(-1000, 1000)
        return {"type": "integer", "minimum": low, "maximum": low + self._chance.randint(0, 5000)}

    def number(self) -> dict[str, Any]:
        low = self._chance.randint(-10, 10)
        return {"type": "number", "minimum": low, "maximum": low + 10}

    def constant(self) -> dict[str, Any]:
        values = self._chance.sample(["red", "é", 'a"b', 3, True, None, 2.5], 3)
        return {"enum": values} if self._chance.random() < 0.7 else {"const": values[0]}

    def simple(self) -> dict[str, Any]:
        return {"type": self._chance.choice(["boolean", "null"])}
