"""Reading numbers out of a config.json, with messages that name the file, the key and the value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pluribus.core.errors import UnsupportedModelError


@dataclass(frozen=True)
class Config:
    """The keys and values of one config.json.

    A key that is absent or null takes the default that Hugging Face documents for the family;
    a key without such a default is required. Where families changed a key's name over time,
    the first of several names that is present counts.

    Attributes:
        values: the parsed file.
        file: what to call it in messages.
    """

    values: Mapping[str, Any]
    file: str

    def integer(self, *keys: str, default: int | None = None, minimum: int = 1) -> int:
        """A whole number of at least ``minimum``.

        Raises:
            UnsupportedModelError: absent without default, of another type, or too small.
        """
        value = self.optional_integer(*keys, default=default, minimum=minimum)
        if value is None:
            raise self.error(
                keys[0], f"missing key '{keys[0]}'", f"Add `{keys[0]}`; the family has no default."
            )
        return value

    def optional_integer(
        self, *keys: str, default: int | None = None, minimum: int = 1
    ) -> int | None:
        """As `integer`, but None is a value: a null key is None where ``default`` is None."""
        key = next((k for k in keys if self.values.get(k) is not None), None)
        if key is None:
            return default
        value = self.values[key]
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise self.error(
                key, f"'{key}' is {value!r}", f"Write a whole number of at least {minimum}."
            )
        return value

    def flag(self, key: str, default: bool) -> bool:
        """A truth value.

        Raises:
            UnsupportedModelError: of another type.
        """
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(key, f"'{key}' is {value!r}", "Write true or false.")
        return value

    def integers(self, key: str) -> tuple[int, ...]:
        """A list of whole numbers, empty when absent.

        Raises:
            UnsupportedModelError: of another type.
        """
        value = self.values.get(key) or []
        if not isinstance(value, list) or not all(type(item) is int for item in value):
            raise self.error(key, f"'{key}' is {value!r}", "Write a list of whole numbers.")
        return tuple(value)

    def divided(self, total_key: str, total: int, by_key: str, by: int) -> int:
        """``total / by`` where it must be whole.

        Raises:
            UnsupportedModelError: it is not; names both keys and values.
        """
        if total % by:
            raise self.error(
                total_key,
                f"'{total_key}' {total} is not divisible by '{by_key}' {by}",
                "Mend one of the two numbers.",
            )
        return total // by

    def error(self, key: str, what: str, do: str) -> UnsupportedModelError:
        """The error of a key, to be raised."""
        return UnsupportedModelError(what, where=f"{self.file} [{key}]", do=do)
