"""Values out of files as plain JSON values: what can be written down, sent to another process and read there alike.

Knows no key of any row.
"""

from __future__ import annotations

import datetime
import decimal
from collections.abc import Mapping

_DEEPEST = 64


def plain(value: object, depth: int = 0) -> object:
    """Return a value in JSON's terms: times as ISO text, decimals as numbers, Arrow's maps and structs as mappings.

    Raises:
        ValueError: there is something in it that JSON has no word for (bytes), or it is nested too deep.
    """
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if depth == _DEEPEST:
        raise ValueError(f"values nested more than {_DEEPEST} deep")
    if isinstance(value, Mapping):
        return {str(key): plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        # A map of Arrow's arrives as pairs, which are the only tuples there are.
        if value and all(isinstance(item, tuple) for item in value):
            return {str(key): plain(item, depth + 1) for key, item in value}
        return [plain(item, depth + 1) for item in value]
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    raise ValueError(f"a value of type {type(value).__name__}; use text, numbers, lists and mappings")
