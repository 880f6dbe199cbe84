"""Strict reading of plain tables (from TOML or JSON) into frozen dataclasses.

A field's type annotation is its schema: ``int``, ``float``, ``str``, ``bool``, ``X | None``,
``Literal``, ``tuple[X, ...]``, fixed tuples, ``dict[str, X]``, and other dataclasses. An unknown
key is an error that offers the nearest known one; a field without default is required. The
dataclass checks its own values in ``__post_init__`` by raising `ConfigError`; the place is
added here.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from pluribus.core.errors import ConfigError, PluribusError, nearest, sentence

T = TypeVar("T")


def from_table(cls: type[T], table: Mapping[str, Any], *, file: str, at: str = "") -> T:
    """Builds ``cls`` from a table.

    Args:
        cls: a dataclass.
        table: keys and values as TOML or JSON gave them.
        file: the file they came from, for messages.
        at: the path of the table inside the file, e.g. ``pool[0]``.

    Raises:
        ConfigError: unknown or missing key, wrong type or value; names file, key and value.
    """
    if not isinstance(table, Mapping):
        raise ConfigError(
            f"expected a table, got {_shown(table)}", where=_where(file, at),
            do=f"Write a table with the keys {', '.join(_fields(cls))}.",
        )  # fmt: skip
    fields = _fields(cls)
    hints = _hints(cls)
    for key in table:
        if key not in fields:
            raise ConfigError(
                f"unknown key '{key}' (value {_shown(table[key])})", where=_where(file, at),
                do=f"{sentence(nearest(key, fields))} Remove or rename the key.",
            )  # fmt: skip
    values = {}
    for name, field in fields.items():
        place = f"{at}.{name}" if at else name
        if name in table:
            values[name] = _value(hints[name], table[name], file, place)
        elif _required(field):
            if type(None) in typing.get_args(hints[name]):
                values[name] = None  # `to_table` leaves such fields out
                continue
            raise ConfigError(
                f"missing key '{name}'", where=_where(file, at), do=f"Add `{name} = …`."
            )
    try:
        return cls(**values)
    except PluribusError as error:
        if not error.where:
            error.where = _where(file, at)
        raise


def to_table(value: Any) -> Any:
    """The inverse of `from_table`: plain dicts, lists and scalars; ``None`` fields are left out."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        pairs = ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
        return {name: to_table(item) for name, item in pairs if item is not None}
    if isinstance(value, Mapping):
        return {str(key): to_table(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_table(item) for item in value]
    return value


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


@functools.cache
def _fields(cls: type) -> dict[str, dataclasses.Field]:
    return {field.name: field for field in dataclasses.fields(cls) if field.init}


def _required(field: dataclasses.Field) -> bool:
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing


def _value(hint: Any, value: Any, file: str, at: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _union(hint, args, value, file, at)
    if origin is typing.Literal:
        if value not in args:
            options = [str(option) for option in args]
            raise ConfigError(
                f"'{value}' is not a value of '{at}'", where=_where(file, at),
                do=f"{sentence(nearest(str(value), options))} "
                f"Write one of: {', '.join(options)}.",
            )  # fmt: skip
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise _wrong(value, "a list", file, at)
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_value(args[0], v, file, f"{at}[{i}]") for i, v in enumerate(value))
        if len(value) != len(args):
            raise _wrong(value, f"a list of {len(args)}", file, at)
        return tuple(
            _value(a, v, file, f"{at}[{i}]")
            for i, (a, v) in enumerate(zip(args, value, strict=True))
        )
    if origin in (dict, Mapping) or hint is dict:
        if not isinstance(value, Mapping):
            raise _wrong(value, "a table", file, at)
        inner = args[1] if args else Any
        return {str(k): _value(inner, v, file, f"{at}.{k}") for k, v in value.items()}
    if dataclasses.is_dataclass(hint):
        return from_table(typing.cast(type, hint), value, file=file, at=at)
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if hint in (str, bool) and isinstance(value, hint):
        return value
    names = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}
    assert hint in names, f"schema has no rule for {hint}"
    raise _wrong(value, names[hint], file, at)


def _union(hint: Any, args: tuple, value: Any, file: str, at: str) -> Any:
    if value is None and type(None) in args:
        return None
    members = [arg for arg in args if arg is not type(None)]
    if len(members) == 1:
        return _value(members[0], value, file, at)
    errors = []
    for member in members:
        try:
            return _value(member, value, file, at)
        except ConfigError as error:
            # A table that was meant for this member tells its own mistake best.
            if dataclasses.is_dataclass(member) and isinstance(value, Mapping):
                raise
            errors.append(error)
    raise errors[0]


def _wrong(value: Any, expected: str, file: str, at: str) -> ConfigError:
    return ConfigError(
        f"'{at}' is {_shown(value)}", where=_where(file, at), do=f"Write {expected} instead."
    )


def _where(file: str, at: str) -> str:
    return f"{file} [{at}]" if at else file


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
