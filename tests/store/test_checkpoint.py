"""Checkpoints: whole or not at all, and read back by name as they were written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pluribus.core.errors import CheckpointError
from pluribus.core.schema import from_table, to_table
from pluribus.store.checkpoint import (
    PartManifest,
    begin,
    finish,
    load_optimizer,
    load_tensors,
    write_part,
)
from pluribus.store.manifest import latest, read_manifest, step_directory, verify

Tensors = dict[str, torch.Tensor]


def tensors(seed: int) -> tuple[Tensors, Tensors]:
    generator = torch.Generator().manual_seed(seed)
    flat = torch.randn(40, generator=generator)  # moments are often views into one buffer
    model = {f"w{seed}": torch.randn(4, 5, generator=generator).bfloat16().T}
    return model, {f"w{seed}.exp_avg": flat[:20], f"w{seed}.exp_avg_sq": flat[20:].view(4, 5)}


def save(root: Path, step: int, num_parts: int = 2) -> Path:
    final = step_directory(root, step)
    partial = begin(final)
    manifests = []
    for part in range(num_parts):
        manifest = write_part(partial, part, num_parts, *tensors(part))
        manifests.append(from_table(PartManifest, to_table(manifest), file="sent"))
    training = {"step": step, "tokens": 8 * step, "job_digest": "0" * 16}
    return finish(partial, final, manifests, config={}, tokenizer_path=None, training=training)


@pytest.mark.parametrize("num_parts", [1, 2])
def test_round_trip_by_name_with_dtype_and_shape(tmp_path: Path, num_parts: int) -> None:
    path = save(tmp_path, 100, num_parts)
    assert path.name == "step-00000100"
    for part in reversed(range(num_parts)):
        model, optimizer = tensors(part)
        for expected, read in (
            (model, load_tensors(path, [f"w{part}"])),
            (optimizer, load_optimizer(path, [f"w{part}"])),
        ):
            assert read.keys() == expected.keys()
            for name, value in read.items():
                assert value.dtype == expected[name].dtype
                assert torch.equal(value, expected[name])
    manifest = verify(path, deep=True)
    assert manifest.training == {"step": 100, "tokens": 800, "job_digest": "0" * 16}
    assert {entry.name for entry in manifest.files} | {"training.json"} == {
        file.name for file in path.iterdir()
    }
    assert (path / "model.safetensors.index.json").exists() is (num_parts > 1)


def test_a_torn_checkpoint_is_not_found(tmp_path: Path) -> None:
    assert latest(tmp_path / "nowhere") is None
    kept = save(tmp_path, 100)
    write_part(begin(step_directory(tmp_path, 300)), 0, 2, *tensors(0))  # the run died here
    assert latest(tmp_path) == kept
    newer = save(tmp_path, 200)
    assert latest(tmp_path) == newer
    part = newer / "model-00002-of-00002.safetensors"
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002\.safetensors.*bytes, not"):
        verify(newer)
    assert latest(tmp_path) == kept
    (kept / "training.json").unlink()
    assert latest(tmp_path) is None
    with pytest.raises(CheckpointError, match=r"has no training\.json"):
        read_manifest(kept)


def test_a_changed_byte_is_found_by_the_deep_check_only(tmp_path: Path) -> None:
    path = save(tmp_path, 100)
    part = path / "optimizer-00001-of-00002.safetensors"
    raw = bytearray(part.read_bytes())
    raw[-3] ^= 1
    part.write_bytes(raw)
    verify(path)
    with pytest.raises(CheckpointError, match=r"optimizer-00001-of-00002.*SHA-256 differs"):
        verify(path, deep=True)


def test_writing_a_step_again_replaces_it(tmp_path: Path) -> None:
    save(tmp_path, 100, 2)
    stale = begin(step_directory(tmp_path, 100))
    (stale / "model-00003-of-00003.safetensors").write_bytes(b"of a run with three parts")
    path = save(tmp_path, 100, 1)
    verify(path, deep=True)
    assert sorted(file.name for file in path.iterdir()) == [
        "config.json", "model.safetensors", "optimizer.safetensors", "training.json",
    ]  # fmt: skip
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    path = save(tmp_path, 100)
    with pytest.raises(CheckpointError, match="holds no tensor 'w9'"):
        load_tensors(path, ["w0", "w9"])
    with pytest.raises(CheckpointError, match=r"holds no tensor 'w9\.exp_avg'"):
        load_optimizer(path, ["w9"])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: is not there"):
        load_tensors(tmp_path, ["w0"])
    (path / "model-00001-of-00002.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(CheckpointError, match=r"model-00001-of-00002\.safetensors: is damaged"):
        load_tensors(path, ["w0"])


def test_an_index_that_leads_outside_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 100)
    index = path / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("model-00002", "../model-00002"))
    with pytest.raises(CheckpointError, match="not inside the checkpoint"):
        load_tensors(path, ["w1"])


def test_a_part_on_another_machines_disk_is_noticed(tmp_path: Path) -> None:
    final = step_directory(tmp_path, 1)
    here, there = begin(final), tmp_path / "another machine"
    there.mkdir()
    manifests = [write_part(here, 0, 2, *tensors(0)), write_part(there, 1, 2, *tensors(1))]
    with pytest.raises(CheckpointError, match="storage that every node mounts"):
        finish(here, final, manifests, config={}, tokenizer_path=None, training={"step": 1})
    assert not final.exists()
