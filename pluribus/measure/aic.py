"""Operator tables from the measurements that `aiconfigurator-core` ships (NVIDIA, Apache-2.0).

Only its data files are read; none of its code runs.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pluribus.core.errors import MeasureError
from pluribus.core.units import DTYPE_BYTES
from pluribus.hardware.chip import Chip
from pluribus.hardware.cluster import Cluster
from pluribus.measure.shapes import Shaped, decode_shapes, job_shapes
from pluribus.model.model import Model
from pluribus.predict.operator_tables import Table
from pluribus.spec.job import Job
from pluribus.spec.operator_table import OperatorTable
from pluribus.spec.profile import Profile

# Its name of a chip's folder. An A800 computes as an A100 does and an H800 as an H100; only
# their links differ, so their collectives are left out.
SYSTEMS: Mapping[str, str] = {
    "nvidia-a100-80g": "a100_sxm",
    "nvidia-a800-80g": "a100_sxm",
    "nvidia-h100-80g": "h100_sxm",
    "nvidia-h800-80g": "h100_sxm",
    "nvidia-h200-141g": "h200_sxm",
    "nvidia-b200-180g": "b200_sxm",
    "nvidia-b300-288g": "b300_sxm",
    "nvidia-gb200-186g": "gb200",
    "nvidia-gb300-288g": "gb300",
    "nvidia-l40s-48g": "l40s",
    "nvidia-rtx-pro-6000": "rtx_pro_6000_server",
    "intel-arc-pro-b60": "b60",
}
_DECODE_BATCHES = (1, 4, 16, 64, 256)
_DECODE_CONTEXTS = (256, 1024, 4096, 16384)
_SLOWER_LINKS = ("nvidia-a800-80g", "nvidia-h800-80g")

BACKENDS = ("vllm", "sglang", "trtllm")
_DTYPES = {
    "bfloat16": "bf16",
    "float16": "fp16",
    "half": "fp16",
    "fp8": "fp8",
    "fp8_block": "fp8",
    "int8": "int8",
}
_COLLECTIVES = {"alltoall": "all_to_all"}

Row = Mapping[str, Any]
Point = tuple[tuple[str, str], tuple[int, ...]]  # (operator, precision), shape


def aic_tables(
    chip: str, backends: Iterable[str] = BACKENDS, data: Path | None = None
) -> tuple[OperatorTable, ...]:
    """Every table the package has of a chip, whole.

    Of several kernels for one shape the quickest counts, as a tuned library would choose; of
    several loads of experts the quickest too, which is the balanced one where it was measured.

    Args:
        chip: chip key.
        backends: serving programs that were measured; the first that has an operator is taken,
            in its newest version.
        data: the package's folder of measurements; found where the package is installed.

    Raises:
        MeasureError: the package, or pyarrow to read it, is not installed.
    """
    folder = (data or aic_folder() / "data") / SYSTEMS.get(chip, "none")
    tables = []
    for parts, read in _FILES.items():
        for backend in backends if "*" in parts[0] else (None,):
            path = _newest(folder, parts[0].replace("*", backend or ""), parts[1])
            if path is None:
                continue
            if parts[0].startswith("comm") and chip in _SLOWER_LINKS:
                break
            best: dict[Point, float] = {}
            for row in _rows(path):
                point = read(row)
                if point:
                    best[point] = min(best.get(point, float("inf")), row["latency"] * 1e-3)
            tables += _tables(chip, best, f"aiconfigurator-core {_version()}, {_label(path)}")
            break
    return tuple(_merged(tables))


def fill_profile(
    profile: Profile, cluster: Cluster, job: Job, model: Model
) -> tuple[Profile, tuple[str, ...]]:
    """A profile with tables for every chip of the cluster that the package has measured.

    Of each table the rows are kept that estimates of the job's operators are made from, at
    every micro-batch size and tensor-parallel degree, and those of decoding with its model:
    estimates are as good as with the whole table, which has 100,000 rows.

    Args:
        profile: its other facts stay as they are; tables of these chips are replaced.

    Returns:
        The profile, and the keys of the cluster's chips that the package has not measured.
    """
    found: dict[str, tuple[OperatorTable, ...]] = {}
    unknown = []
    chips = {pool.chip.key: pool.chip for pool in cluster.pools}
    for key, chip in chips.items():
        degrees = {
            1 << power
            for pool in cluster.pools
            if pool.chip.key == key
            for power in range(pool.chips_per_node.bit_length())
        }
        wanted = (
            *job_shapes(
                model,
                job.plan.micro_batch_sizes,
                job.train.sequence_length,
                sorted(degrees),
                DTYPE_BYTES[job.train.precision],
            ),
            *decode_shapes(model, _DECODE_BATCHES, _DECODE_CONTEXTS, sorted(degrees)),
        )
        tables = aic_tables(key)
        if tables:
            near = (_near(table, chip, wanted) for table in tables)
            found[key] = tuple(table for table in near if table is not None)
        else:
            unknown.append(key)
    kept = tuple(table for table in profile.operators if table.chip not in found)
    filled = tuple(table for tables in found.values() for table in tables)
    return replace(profile, operators=kept + filled), tuple(unknown)


def _near(table: OperatorTable, chip: Chip, wanted: Iterable[Shaped]) -> OperatorTable | None:
    """The rows that estimates of the wanted shapes are made from; collectives whole."""
    if not table.precision:
        return table
    whole = Table(table, chip)
    shapes = {
        near for kind, shape in wanted if kind == table.operator for near in whole.near(shape)
    }
    if not shapes:
        return None
    rows = [(shape, table.rows[shape]) for shape in shapes]
    return OperatorTable.of_rows(
        table.chip, table.operator, table.precision, rows, source=table.source
    )


def aic_folder() -> Path:
    """Where the package keeps its measurements.

    Raises:
        MeasureError: it is not installed.
    """
    missing = [n for n in ("aiconfigurator_core", "pyarrow") if not importlib.util.find_spec(n)]
    if missing:
        raise MeasureError(
            f"{' and '.join(missing).replace('_', '-')} is not installed",
            do="Install the measurements: pip install 'pluribus[aic]'.",
        )
    found = importlib.util.find_spec("aiconfigurator_core")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / "systems"


def _version() -> str:
    return version("aiconfigurator-core")


def _newest(folder: Path, place: str, file: str) -> Path | None:
    """The file of the newest version folder under a place that has it."""
    found = (folder / place).glob(f"*/{file}.parquet")
    return max(found, key=lambda path: _version_key(path.parent.name), default=None)


def _version_key(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text))


def _label(path: Path) -> str:
    return " ".join((*path.parts[-4:-1], path.stem))


def _rows(path: Path) -> Iterator[Row]:
    import pyarrow.parquet as parquet  # an optional package

    columns = parquet.read_table(path).to_pydict()
    names = list(columns)
    for values in zip(*columns.values(), strict=True):
        yield dict(zip(names, values, strict=True))


def _tables(chip: str, best: Mapping[Point, float], source: str) -> Iterator[OperatorTable]:
    kinds: dict[tuple[str, str], list[tuple[tuple[int, ...], float]]] = {}
    for (kind, shape), seconds in best.items():
        kinds.setdefault(kind, []).append((shape, seconds))
    for (operator, precision), rows in kinds.items():
        yield OperatorTable.of_rows(chip, operator, precision, rows, source=source)


def _merged(tables: Iterable[OperatorTable]) -> Iterator[OperatorTable]:
    """Tables of one operator as one; the quicker of two rows of one shape counts."""
    groups: dict[tuple[str, str], list[OperatorTable]] = {}
    for table in tables:
        groups.setdefault((table.operator, table.precision), []).append(table)
    for (operator, precision), group in groups.items():
        best: dict[tuple[int, ...], float] = {}
        for table in group:
            for shape, seconds in table.rows.items():
                best[shape] = min(best.get(shape, float("inf")), seconds)
        source = "; ".join(table.source for table in group)
        yield OperatorTable.of_rows(group[0].chip, operator, precision, best.items(), source=source)


def _gemm(row: Row) -> Point | None:
    dtype = _DTYPES.get(row["gemm_dtype"])
    return (("gemm", dtype), (row["m"], row["n"], row["k"])) if dtype else None


def _attention(row: Row) -> Point | None:
    dtype = _DTYPES.get(row["attn_dtype"])
    if row.get("window_size") or not dtype or row["kv_cache_dtype"] != row["attn_dtype"]:
        return None
    heads = row["num_heads"]
    shape = (row["batch_size"], heads, row["num_key_value_heads"] or heads)
    return ("attention", dtype), (*shape, row["head_dim"], row["isl"])


def _decode_attention(row: Row) -> Point | None:
    dtype = _DTYPES.get(row["kv_cache_dtype"])
    if row.get("window_size") or not dtype:
        return None
    heads = row["num_heads"]
    shape = (row["batch_size"], heads, row["num_key_value_heads"] or heads)
    return ("decode_attention", dtype), (*shape, row["head_dim"], row["isl"] + row["step"])


def _latent_attention(row: Row) -> Point | None:
    dtype = _DTYPES.get(row["mla_dtype"])
    if row["kv_cache_dtype"] != row["mla_dtype"] or not dtype:
        return None
    heads = row["num_heads"]
    return ("attention", dtype), (row["batch_size"], heads, heads, 192, row["isl"])


def _latent_decode(row: Row) -> Point | None:
    dtype = _DTYPES.get(row["kv_cache_dtype"])
    if not dtype:
        return None
    shape = (row["batch_size"], row["num_heads"], 1, 576, row["isl"] + row["step"])
    return ("decode_attention", dtype), shape


def _experts(row: Row) -> Point | None:
    dtype = _DTYPES.get(row["moe_dtype"])
    if not dtype:
        return None
    experts = row["num_experts"] // row["moe_ep_size"]
    pairs = row["num_tokens"] * row["topk"] / row["moe_ep_size"]
    width = row["inter_size"] // row["moe_tp_size"]
    if pairs < 1 or width < 1:
        return None
    return ("experts", dtype), (round(pairs), row["hidden_size"], width, experts)


def _collective(row: Row) -> Point:
    # Sizes are in elements; for an all-gather those of the gathered whole.
    dtype = row.get("nccl_dtype") or row["allreduce_dtype"]
    num_bytes = int(row["message_size"] * DTYPE_BYTES[_DTYPES[dtype]])
    operator = _COLLECTIVES.get(row["op_name"], row["op_name"])
    return (operator, ""), (row["num_gpus"], num_bytes)


_FILES: dict[tuple[str, str], Callable[[Row], Point | None]] = {
    ("gemm/*", "gemm_perf"): _gemm,
    ("attention/*", "context_attention_perf"): _attention,
    ("attention/*", "generation_attention_perf"): _decode_attention,
    ("mla/*", "context_mla_perf"): _latent_attention,
    ("mla/*", "generation_mla_perf"): _latent_decode,
    ("moe/*", "moe_perf"): _experts,
    ("comm/nccl", "nccl_perf"): _collective,
    ("comm/oneccl", "oneccl_perf"): _collective,
    ("comm/*", "custom_allreduce_perf"): _collective,
}
