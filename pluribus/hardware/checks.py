"""Range checks shared by the hardware dataclasses. The reader of the file adds the place."""

from __future__ import annotations

import math

from pluribus.core.errors import ConfigError


def check_positive(key: str, value: float) -> None:
    """Raises ConfigError unless ``value`` is finite and above zero."""
    if not (value > 0 and math.isfinite(value)):
        raise ConfigError(f"'{key}' is {value:g}", do="Write a number above 0.")


def check_not_negative(key: str, value: float) -> None:
    """Raises ConfigError unless ``value`` is finite and at least zero."""
    if not (value >= 0 and math.isfinite(value)):
        raise ConfigError(f"'{key}' is {value:g}", do="Write 0 or a number above it.")


def check_count(key: str, value: int) -> None:
    """Raises ConfigError unless ``value`` is at least one."""
    if value < 1:
        raise ConfigError(f"'{key}' is {value}", do="Write a whole number of at least 1.")
