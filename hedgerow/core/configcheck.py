"""Checks a configuration before anything starts: first its shape, then what its keys say together.

Every refusal names the dotted key, the value found and what would be right.
"""

import difflib
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from msgspec import inspect

from hedgerow.core.config import Config
from hedgerow.core.configrules import contradictions
from hedgerow.core.errors import ConfigError

_AT = re.compile(r"(?P<what>.*?)(?: - at `\$\.?(?P<path>.*)`)?\Z", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<key>.*)`\Z", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(?P<key>.*)`\Z", re.DOTALL)
_STEP = re.compile(r"\[(?P<index>\d+)\]|(?P<name>[^.\[]+)")
_LONGEST_VALUE = 80


def parse_config(raw: Mapping[str, Any]) -> Config:
    """Return the checked configuration of plain tables, as TOML or JSON gives them.

    Raises ConfigError: for one unknown key, missing key or ill-typed value, or for all contradictions
    between keys at once, one per line.
    """
    for path, number in _floats("", raw):
        if not math.isfinite(number):
            raise ConfigError(
                f"{path}: {number} is not a finite number; leave the key out or set one"
            )
    try:
        config = msgspec.convert(raw, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(_explain(raw, str(error))) from None
    found = contradictions(config)
    if found:
        raise ConfigError("\n".join(found))
    return config


def _explain(raw: Mapping[str, Any], text: str) -> str:
    """Turn msgspec's sentence into ours: dotted key, value, fix."""
    match = _AT.fullmatch(text)
    if match is None:
        return text
    what, path = match["what"], match["path"] or ""
    if unknown := _UNKNOWN.fullmatch(what):
        return _explain_unknown(path, unknown["key"])
    if missing := _MISSING.fullmatch(what):
        return (
            f"{_join(path, missing['key'])}: is missing; it must be {_wanted(path, missing['key'])}"
        )
    value = repr(_value_at(raw, path))
    if len(value) > _LONGEST_VALUE:
        value = value[:_LONGEST_VALUE] + "..."
    return f"{path or 'configuration'}: {value} is not accepted; it must be {_wanted(path)}"


def _explain_unknown(path: str, key: str) -> str:
    table = _type_at(path)
    known = (
        [field.encode_name for field in table.fields]
        if isinstance(table, inspect.StructType)
        else []
    )
    close = difflib.get_close_matches(key, known, n=1)
    guess = f"did you mean {close[0]!r}? " if close else ""
    where = f"[{path}] has" if path else "the tables are"
    return f"{_join(path, key)}: is not a known key; {guess}{where} {', '.join(known)}"


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _steps(path: str) -> list[str | int]:
    return [int(m["index"]) if m["index"] else m["name"] for m in _STEP.finditer(path)]


def _value_at(raw: Any, path: str) -> Any:
    for step in _steps(path):
        raw = raw[step]
    return raw


def _type_at(path: str) -> inspect.Type:
    """Return the schema's type of a dotted key."""
    found: inspect.Type = inspect.type_info(Config)
    for step in _steps(path):
        if isinstance(found, inspect.StructType):
            found = next(field.type for field in found.fields if field.encode_name == step)
        elif isinstance(found, inspect.ListType):
            found = found.item_type
    return found


def _wanted(path: str, key: str = "") -> str:
    """Say in words what a key must hold."""
    return _describe(_type_at(_join(path, key) if key else path))


def _describe(kind: inspect.Type) -> str:
    match kind:
        case inspect.UnionType(types=types):
            return " or ".join(_describe(t) for t in types if not isinstance(t, inspect.NoneType))
        case inspect.LiteralType(values=values):
            return "one of " + ", ".join(repr(value) for value in values if value != "")
        case inspect.IntType():
            return "a whole number" + _bounds(kind)
        case inspect.FloatType():
            return "a number" + _bounds(kind)
        case inspect.BoolType():
            return "true or false"
        case inspect.StrType(pattern=str()):
            return "1 to 32 lower-case letters, digits or hyphens in quotes"
        case inspect.StrType():
            return "a text in quotes"
        case inspect.ListType(item_type=item):
            return f"a list, each entry {_describe(item)}"
        case _:
            return "a table"


def _bounds(kind: inspect.IntType | inspect.FloatType) -> str:
    """Word the bounds of a number; whole numbers above n start at n + 1."""
    parts = []
    if kind.gt is not None:
        parts.append(f"above {kind.gt:g}")
    if kind.ge is not None:
        parts.append(f"at least {kind.ge:g}")
    if kind.le is not None:
        parts.append(f"at most {kind.le:g}")
    return " " + " and ".join(parts) if parts else ""


def _floats(path: str, value: Any) -> Iterator[tuple[str, float]]:
    """Yield every float with its dotted key."""
    if isinstance(value, float):
        yield path, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _floats(_join(path, str(key)), inner)
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _floats(f"{path}[{index}]", inner)
