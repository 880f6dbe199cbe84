"""Reading and writing TOML and JSON: clear errors on the way in, atomic on the way out."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from pluribus.core.errors import ConfigError, MissingFileError


def read_text(path: str | os.PathLike[str]) -> str:
    """The UTF-8 text of a file.

    Raises:
        MissingFileError: no such file (names it and its nearest existing parent).
        ConfigError: not UTF-8, or a directory.
    """
    path = Path(path)
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        parent = next((p for p in path.resolve().parents if p.exists()), Path("/"))
        raise MissingFileError(
            "no such file", where=str(path), do=f"Check the path; {parent} exists."
        ) from None
    except IsADirectoryError:
        raise ConfigError(
            "is a directory, not a file", where=str(path), do="Name a file."
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"is not UTF-8 text (byte {error.start})", where=str(path), do="Name a text file."
        ) from None
    except PermissionError:
        raise ConfigError(
            "may not be read", where=str(path), do="Give yourself read permission."
        ) from None


def read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A TOML file as plain tables; ConfigError names the line of a syntax mistake."""
    try:
        return tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f"not valid TOML: {error}", where=str(path), do="Mend that line."
        ) from None


def read_json(path: str | os.PathLike[str]) -> Any:
    """A JSON file as plain values; ConfigError names the line of a syntax mistake."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"not valid JSON: {error}", where=str(path), do="Mend it, or write the file anew."
        ) from None


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Writes a file so that a reader, or a crash, sees the old content or the new, never a part.

    Raises:
        ConfigError: a directory, or in a folder that cannot be made or written to.
    """
    path = Path(path)
    if path.is_dir():
        raise ConfigError("is a directory, not a file", where=str(path), do="Name a file.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise ConfigError(
            f"cannot be written: {error.strerror} ('{error.filename}')", where=str(path),
            do="Name a file in a folder you may write to.",
        ) from None  # fmt: skip
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
    return path


def write_json(path: str | os.PathLike[str], value: Any) -> Path:
    """Writes plain values as indented JSON, atomically."""
    return write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def digest(value: Any) -> str:
    """The first 16 hex digits of the SHA-256 of a value's canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
