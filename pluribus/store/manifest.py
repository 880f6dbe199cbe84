"""What a checkpoint directory holds, and whether it is whole.

    step-00000100/
        config.json                        Hugging Face
        tokenizer.json, tokenizer_config.json
        model.safetensors                  or model-00001-of-00002.safetensors, … with
                                           model.safetensors.index.json
        optimizer.safetensors              or parts with an index, likewise
        residuals-00001-of-00004.safetensors  of ranks whose gradients cross a hop in fewer bits
        training.json                      step, versions, and every file's size and SHA-256

`pluribus.store.checkpoint` writes it under a hidden name, training.json last, and renames it. So
a directory without a training.json that matches its files is not a checkpoint of ours.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pluribus.core.errors import CheckpointError, PluribusError
from pluribus.core.io import read_json
from pluribus.core.schema import from_table

MANIFEST = "training.json"
VERSION = 1
_STEP = re.compile(r"step-(\d+)")

Kind = Literal["model", "optimizer", "residuals"]


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """One file of a checkpoint: its name in the directory, its size in bytes, its SHA-256."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """training.json.

    Attributes:
        training: what a resume needs beside the tensors; "step" at least.
        versions: of torch and of Pluribus.
    """

    training: dict[str, Any]
    versions: dict[str, str]
    files: tuple[FileEntry, ...]
    version: int = VERSION


def step_directory(root: str | os.PathLike[str], step: int) -> Path:
    """Where the checkpoint of a step lies: ``root/step-00000100``."""
    return Path(root) / f"step-{step:08d}"


def latest(root: str | os.PathLike[str]) -> Path | None:
    """The complete checkpoint of the highest step, or None. Damaged ones are passed over."""
    steps = {}
    for path in Path(root).glob("step-*"):
        if match := _STEP.fullmatch(path.name):
            steps[int(match[1])] = path
    for _, path in sorted(steps.items(), reverse=True):
        try:
            verify(path)
        except PluribusError:
            continue
        return path
    return None


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """A checkpoint's training.json.

    Raises:
        CheckpointError: there is none, or it is not one of this version.
    """
    path = Path(path)
    if not (path / MANIFEST).is_file():
        raise CheckpointError(
            f"is not a complete checkpoint: it has no {MANIFEST}",
            where=str(path),
            do="Resume from another step.",
        )
    table = read_json(path / MANIFEST)
    if not isinstance(table, dict) or table.get("version") != VERSION:
        raise CheckpointError(
            f"is not a {MANIFEST} of version {VERSION}",
            where=str(path / MANIFEST),
            do="Resume with the version of Pluribus that wrote it.",
        )
    return from_table(Manifest, table, file=str(path / MANIFEST))


def verify(path: str | os.PathLike[str], *, deep: bool = False) -> Manifest:
    """Checks a checkpoint against its training.json.

    Args:
        deep: also read every byte and compare SHA-256; otherwise sizes only.

    Raises:
        CheckpointError: names the first file that is missing or differs.
    """
    manifest = read_manifest(path)
    for entry in manifest.files:
        check_file(Path(path), entry, deep=deep)
    return manifest


def describe(path: Path) -> FileEntry:
    """A file's entry, once its bytes are on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return FileEntry(name=path.name, size=path.stat().st_size, sha256=sha256)


def weight_map(path: Path, kind: Kind) -> dict[str, str] | None:
    """Tensor name to file name from the index; None when a single file holds all.

    Raises:
        CheckpointError: the index is damaged or leads outside the directory.
    """
    index = path / f"{kind}.safetensors.index.json"
    if not index.is_file():
        return None
    table = read_json(index)
    names = table.get("weight_map") if isinstance(table, dict) else None
    if not isinstance(names, dict) or not all(isinstance(n, str) for n in names.values()):
        raise CheckpointError(
            "has no weight_map", where=str(index), do="Copy the checkpoint again."
        )
    for name in set(names.values()):
        _check_name(name, index)
    return names


def check_file(directory: Path, entry: FileEntry, *, deep: bool) -> None:
    """Checks one file as `verify` does."""
    _check_name(entry.name, directory / MANIFEST)
    path = directory / entry.name
    do = "Resume from another step, or copy the checkpoint again."
    shared = "All ranks must write to one directory, on storage that every node mounts."
    if not path.is_file():
        raise CheckpointError(
            "is missing from the checkpoint", where=str(path), do=f"{do} {shared}"
        )
    size = path.stat().st_size
    if size != entry.size:
        raise CheckpointError(
            f"has {size} bytes, not the {entry.size} that were written", where=str(path), do=do
        )
    if deep:
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != entry.sha256:
                raise CheckpointError(
                    "has other content than was written (SHA-256 differs)", where=str(path), do=do
                )


def _check_name(name: str, where: Path) -> None:
    if name != Path(name).name or name in ("", ".", ".."):
        raise CheckpointError(
            f"names the file '{name}', which is not inside the checkpoint",
            where=str(where),
            do="Do not use this checkpoint.",
        )
