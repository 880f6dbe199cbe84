"""Checkpoints: written by several ranks, each its part, and read by tensor name.

One rank calls `begin`; every rank `write_part`, into a hidden directory beside the final one; one
rank `finish`, which adds the rest and renames it, so that a checkpoint is there whole or not at
all. Reading works on any Hugging Face directory too. Nothing is ever unpickled.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pluribus._version import __version__
from pluribus.core.errors import CheckpointError, nearest
from pluribus.core.io import write_json
from pluribus.core.schema import to_table
from pluribus.store.manifest import (
    MANIFEST,
    FileEntry,
    Kind,
    Manifest,
    check_file,
    describe,
    weight_map,
)
from pluribus.store.tokenizer import export_tokenizer

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, kw_only=True)
class TensorFile:
    """A file of tensors that one rank wrote.

    Attributes:
        tensor_bytes: of all its tensors, without the file's header.
        tensors: their names.
    """

    kind: Kind
    file: FileEntry
    tensor_bytes: int
    tensors: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class PartManifest:
    """What one rank wrote. `core.schema` turns it into plain values and back, to send it."""

    files: tuple[TensorFile, ...]


def begin(final: str | os.PathLike[str]) -> Path:
    """An empty hidden directory beside `final` for the parts; what a torn run left there is gone.

    One rank calls it before any rank writes.
    """
    final = Path(final)
    partial = final.parent / f".{final.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def write_part(
    directory: Path,
    part: int,
    num_parts: int,
    model: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
) -> PartManifest:
    """Writes one rank's tensors and waits until they are on the disk.

    Args:
        directory: from `begin`.
        part: from 0 to num_parts - 1.
        model: whole parameters by Hugging Face name, on any device. Each name is in one part;
            with tied embeddings that is ``model.embed_tokens.weight``, once.
        optimizer: AdamW's moments as ``{parameter}.exp_avg`` and ``{parameter}.exp_avg_sq``.

    Returns:
        What was written, for `finish`. An empty mapping writes no file.
    """
    assert 0 <= part < num_parts
    suffix = "" if num_parts == 1 else f"-{part + 1:05d}-of-{num_parts:05d}"
    kinds: tuple[tuple[Kind, Mapping[str, Tensor]], ...] = (
        ("model", model),
        ("optimizer", optimizer),
    )
    files = [_write(directory, kind, suffix, tensors) for kind, tensors in kinds if tensors]
    return PartManifest(files=tuple(files))


def write_residuals(
    directory: Path, rank: int, num_ranks: int, residuals: Mapping[str, Tensor]
) -> PartManifest:
    """Writes what one rank's codecs have not said yet (`comm.codecs.residuals`).

    They belong to this rank of this plan; see `load_residuals`.
    """
    assert num_ranks > 1
    named = {f"{rank}/{name}": tensor for name, tensor in residuals.items()}
    suffix = f"-{rank + 1:05d}-of-{num_ranks:05d}"
    return PartManifest(files=(_write(directory, "residuals", suffix, named),) if named else ())


def _write(directory: Path, kind: Kind, suffix: str, tensors: Mapping[str, Tensor]) -> TensorFile:
    path = directory / f"{kind}{suffix}.safetensors"
    save_file({name: _owned(tensor) for name, tensor in tensors.items()}, path, {"format": "pt"})
    return TensorFile(
        kind=kind,
        file=describe(path),
        tensor_bytes=sum(tensor.nbytes for tensor in tensors.values()),
        tensors=tuple(tensors),
    )


def finish(
    partial: Path,
    final: str | os.PathLike[str],
    manifests: Sequence[PartManifest],
    *,
    config: Mapping[str, Any],
    tokenizer_path: str | os.PathLike[str] | None,
    training: Mapping[str, Any],
) -> Path:
    """Makes the parts a checkpoint under its final name. One rank calls it, after all have written.

    Args:
        partial: from `begin`.
        manifests: every rank's, from `write_part`. Each tensor is in one of them.
        config: the model's Hugging Face config.
        tokenizer_path: a tokenizer.json to go along, with the tokenizer_config.json beside it.
        training: plain values for training.json; "step" at least.

    Raises:
        CheckpointError: a part is not there as written.
    """
    assert "step" in training
    final = Path(final)
    entries = []
    for tensor_file in (file for manifest in manifests for file in manifest.files):
        check_file(partial, tensor_file.file, deep=False)
        entries.append(tensor_file.file)
    for kind in ("model", "optimizer", "residuals"):
        index = _write_index(partial, kind, manifests)
        entries.extend([describe(index)] if index else [])
    entries.append(describe(write_json(partial / "config.json", config)))
    if tokenizer_path is not None:
        entries.extend(describe(path) for path in export_tokenizer(Path(tokenizer_path), partial))
    manifest = Manifest(
        training=dict(training),
        versions={"pluribus": __version__, "torch": version("torch")},
        files=tuple(entries),
    )
    write_json(partial / MANIFEST, to_table(manifest))
    _sync_directory(partial)
    # The same step may be reached again after a resume from an earlier one.
    replaced = final.parent / f".{final.name}.replaced"
    shutil.rmtree(replaced, ignore_errors=True)
    if final.exists():
        os.replace(final, replaced)
    os.replace(partial, final)
    _sync_directory(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)
    return final


def load_tensors(path: str | os.PathLike[str], names: Sequence[str]) -> dict[str, Tensor]:
    """The named parameters, on the CPU, with the shape and dtype they were saved with.

    Args:
        path: a checkpoint, or a Hugging Face directory with model.safetensors or its parts.

    Raises:
        CheckpointError: a tensor or file is not there, or a file is damaged.
    """
    return _load(Path(path), "model", names)


def load_optimizer(path: str | os.PathLike[str], names: Sequence[str]) -> dict[str, Tensor]:
    """The moments of the named parameters, under the names they were written with.

    Args:
        path: a checkpoint.
        names: parameters; each gives ``{name}.exp_avg`` and ``{name}.exp_avg_sq``.

    Raises:
        CheckpointError: a tensor or file is not there, or a file is damaged.
    """
    wanted = [f"{name}.{moment}" for name in names for moment in MOMENTS]
    return _load(Path(path), "optimizer", wanted)


def load_residuals(path: str | os.PathLike[str], rank: int) -> dict[str, Tensor]:
    """What `write_residuals` wrote of this rank; empty if nothing.

    Raises:
        CheckpointError: a file is damaged.
    """
    index = weight_map(Path(path), "residuals") or {}
    names = [name for name in index if name.startswith(f"{rank}/")]
    found = _load(Path(path), "residuals", names) if names else {}
    return {name.partition("/")[2]: tensor for name, tensor in found.items()}


def _write_index(partial: Path, kind: Kind, manifests: Sequence[PartManifest]) -> Path | None:
    files = [f for manifest in manifests for f in manifest.files if f.kind == kind]
    names = {name: file.file.name for file in files for name in file.tensors}
    assert len(names) == sum(len(f.tensors) for f in files), "a tensor was written twice"
    if [file.file.name for file in files] == [f"{kind}.safetensors"] or not files:
        return None
    total = sum(file.tensor_bytes for file in files)
    return write_json(
        partial / f"{kind}.safetensors.index.json",
        {"metadata": {"total_size": total}, "weight_map": dict(sorted(names.items()))},
    )


def _sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _owned(tensor: Tensor) -> Tensor:
    # safetensors refuses views into a larger buffer, which flat optimiser states are.
    tensor = tensor.detach().cpu().contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _load(path: Path, kind: Kind, names: Sequence[str]) -> dict[str, Tensor]:
    index = weight_map(path, kind)
    if index is None:
        return _read(path / f"{kind}.safetensors", names)
    by_file: dict[str, list[str]] = {}
    for name in names:
        if name not in index:
            raise _missing(name, index, path)
        by_file.setdefault(index[name], []).append(name)
    read: dict[str, Tensor] = {}
    for file, held in by_file.items():
        read.update(_read(path / file, held))
    return {name: read[name] for name in names}


def _read(path: Path, names: Sequence[str]) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            held = set(file.keys())
            for name in names:
                if name not in held:
                    raise _missing(name, held, path)
            return {name: file.get_tensor(name) for name in names}
    except FileNotFoundError:
        raise CheckpointError(
            "is not there",
            where=str(path),
            do="Name a checkpoint, or a Hugging Face directory with safetensors files.",
        ) from None
    except SafetensorError as error:
        raise CheckpointError(
            f"is damaged: {error}",
            where=str(path),
            do="Resume from another step, or copy it again.",
        ) from None


def _missing(name: str, held: Iterable[str], path: Path) -> Exception:
    return CheckpointError(
        f"holds no tensor '{name}'",
        where=str(path),
        do=f"Use a checkpoint of the same model ({nearest(name, held)}).",
    )
