"""Reads published measured runs: a CSV row becomes a model, a pool, a layout and a program."""

from __future__ import annotations

import csv
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pluribus.hardware.catalogue import load_catalogue
from pluribus.hardware.chip import Chip
from pluribus.hardware.pool import Pool
from pluribus.model.model import Model
from pluribus.predict.regular import Layout
from pluribus.predict.software import FSDP, MEGATRON, MEGATRON_2021, Software

# Public configs of models whose rows give no sizes (their config.json on Hugging Face).
_DEEPSEEK_V3 = {
    "model_type": "deepseek_v3", "hidden_size": 7168, "intermediate_size": 18432,
    "moe_intermediate_size": 2048, "num_hidden_layers": 61, "num_attention_heads": 128,
    "num_key_value_heads": 128, "n_routed_experts": 256, "n_shared_experts": 1,
    "num_experts_per_tok": 8, "first_k_dense_replace": 3, "q_lora_rank": 1536,
    "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "vocab_size": 129280, "moe_layer_freq": 1,
}  # fmt: skip
_MIXTRAL = {
    "model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "num_local_experts": 8, "num_experts_per_tok": 2, "vocab_size": 32000,
}  # fmt: skip
_QWEN3_MOE = {
    "model_type": "qwen3_moe", "hidden_size": 2048, "intermediate_size": 6144, "head_dim": 128,
    "moe_intermediate_size": 768, "num_hidden_layers": 48, "num_attention_heads": 32,
    "num_key_value_heads": 4, "num_experts": 128, "num_experts_per_tok": 8, "vocab_size": 151936,
}  # fmt: skip
_NAMED = {
    r"deepseek.?v3": _DEEPSEEK_V3,
    r"mixtral.?8x7b": _MIXTRAL,
    r"qwen3.?30b": _QWEN3_MOE,
    r"qwen3.?235b": {
        **_QWEN3_MOE, "hidden_size": 4096, "intermediate_size": 12288,
        "moe_intermediate_size": 1536, "num_hidden_layers": 94, "num_attention_heads": 64,
    },
}  # fmt: skip

# Network of one chip in Gbit/s and chips per node where a row does not say: the vendor's
# reference system.
_SYSTEMS = {
    "V100": (50.0, 16), "A100": (200.0, 8), "A800": (200.0, 8), "H100": (400.0, 8),
    "H800": (400.0, 8), "H200": (400.0, 8), "B200": (400.0, 8), "B300": (800.0, 8),
    "GB200": (400.0, 64), "GB300": (800.0, 64),
}  # fmt: skip

_PRECISIONS = {"fp16": "fp16", "mxfp8": "fp8", "nvfp4": "fp8", "fp8": "fp8", "float8": "fp8"}


class UnusableError(Exception):
    """Why a row cannot be predicted."""


@dataclass(frozen=True)
class Row:
    """One published run.

    Attributes:
        group: its source, within its file.
        cluster: rows that may calibrate one another.
        seconds: None where only memory is known.
        memory_gb: peak of a chip as published, infinite where it ran out.
        flags: why it may be wrong or only nearly what we predict.
    """

    group: str
    cluster: str
    model: Model
    pool: Pool
    layout: Layout
    sequence_length: int
    precision: str
    software: Software
    seconds: float | None
    memory_gb: float | None
    flags: tuple[str, ...]


def read_rows(path: str | Path) -> list[dict[str, str]]:
    """The rows as strings, with the name of their file."""
    with open(path, newline="", encoding="utf-8") as file:
        return [{**row, "file": Path(path).stem} for row in csv.DictReader(file)]


def parse_row(row: Mapping[str, str]) -> Row:
    """Builds what `predict` needs.

    Raises:
        UnusableError: it is not fully specified, or its chip is not in the catalogue.
    """
    flags: list[str] = []
    tp, pp = _whole(row, "tp"), _whole(row, "pp")
    dp, chips = _whole(row, "dp"), _whole(row, "n_gpu")
    missing = [k for k, v in (("tp", tp), ("pp", pp), ("dp", dp), ("n_gpu", chips)) if v is None]
    sequence, batch = _whole(row, "seq"), _whole(row, "global_batch")
    missing += [k for k, v in (("seq", sequence), ("global_batch", batch)) if v is None]
    if missing:
        raise UnusableError(f"no {', '.join(missing)}")
    told = " ".join(row.get(k) or "" for k in ("peak_mem_gb", "iter_time_s", "note"))
    out = bool(re.search(r"\bOOM\b|out of memory", told, re.I))
    if _number(row, "iter_time_s") is None and _number(row, "peak_mem_gb") is None and not out:
        raise UnusableError("neither time nor memory")
    micro = _whole(row, "micro_batch")
    if micro is None:
        micro = 1
        flags.append("no micro-batch given, taken as 1")
    text = " ".join(row.get(k) or "" for k in ("model", "note", "table"))
    if re.search(r"lora|sft", text, re.I):
        flags.append("fine-tuning, predicted as pretraining")
    if re.search(r"nvfp4", row.get("precision") or "", re.I):
        flags.append("4-bit, predicted as 8-bit at twice the rate")
    recompute = re.match(r"none|selective|full", row.get("recompute") or "")
    virtual = _whole(row, "vpp") or 1
    schedule = "interleaved" if virtual > 1 and pp > 1 else "1f1b"
    for name, kind in (("ZB-1p", "zb-h1"), ("ZB-2p", "zb-h2"), ("ZBV", "zbv")):
        if name in (row.get("model") or ""):
            schedule = kind
    layout = Layout(
        tp=tp, pp=pp, dp=dp, cp=_whole(row, "cp") or 1, ep=_whole(row, "ep") or 1,
        virtual_stages=virtual, zero=_whole(row, "zero") or 0, micro_batch=micro,
        global_batch=batch, recompute=recompute.group() if recompute else "none",
        schedule=schedule,
    )  # fmt: skip
    if layout.num_chips != chips:
        flags.append(f"tp × cp × pp × dp is {layout.num_chips}, n_gpu {chips}")
    if batch % (dp * micro):
        flags.append(f"batch {batch} is not a multiple of dp × micro-batch {dp * micro}")
    model = _model(row, flags)
    if not model.supports_tp(tp) or not model.supports_ep(layout.ep):
        raise UnusableError(f"tp {tp} or ep {layout.ep} does not divide {row.get('model')}")
    pool = _pool(row.get("gpu") or "", chips)
    if re.search(r"nvfp4", row.get("precision") or "", re.I):
        doubled = {"fp8": 2 * pool.chip.matmul_flops("fp8") / 1e12}
        pool = replace(pool, chip=replace(pool.chip, measured_tflops=doubled | _wide(pool.chip)))
    precision = (row.get("precision") or "bf16").lower().split("-")[0].split("/")[0]
    precision = _PRECISIONS.get(precision, "bf16")
    if not row.get("zero") and dp > 1:
        flags.append("no ZeRO stage given, taken as 0")
    if virtual == 1 and row.get("vpp") in ("", None) and pp > 1:
        flags.append("no virtual stages given, taken as 1")
    if re.search(r"float8", text) and precision == "bf16":
        precision = "fp8"
    if not pool.chip.supports(precision):
        raise UnusableError(f"no known {precision} rate of {pool.chip.key}")
    group = f"{row.get('source') or '?'} [{row['file']}]"
    return Row(
        group=group,
        cluster=f"{group} {row.get('gpu')}",
        model=model,
        pool=pool,
        layout=layout,
        sequence_length=sequence,
        precision=precision,
        software=_software(row),
        seconds=None if out else _number(row, "iter_time_s"),
        memory_gb=float("inf") if out else _number(row, "peak_mem_gb"),
        flags=tuple(flags),
    )


def _wide(chip: Chip) -> dict[str, float]:
    return {k: v for k, v in chip.measured_tflops.items() if k != "fp8"}


def _number(row: Mapping[str, str], key: str) -> float | None:
    found = re.search(r"\d+(\.\d+)?([eE][-+]?\d+)?", row.get(key) or "")
    return float(found.group()) if found else None


def _whole(row: Mapping[str, str], key: str) -> int | None:
    """The first number of a cell such as ``3(FSDP2)``."""
    number = _number(row, key)
    return None if number is None else int(number)


def _model(row: Mapping[str, str], flags: list[str]) -> Model:
    layers, hidden = _whole(row, "layers"), _whole(row, "hidden")
    for pattern, config in _NAMED.items():
        if re.search(pattern, row.get("model") or "", re.I):
            depth = {"num_hidden_layers": layers} if layers else {}
            if layers and "first_k_dense_replace" in config:
                dense = config["first_k_dense_replace"] * layers / config["num_hidden_layers"]
                depth["first_k_dense_replace"] = max(1, round(dense))
            return _build(tuple({**config, **depth}.items()))
    if layers is None or hidden is None:
        raise UnusableError("no layers or hidden, and not a model known by name")
    heads = _whole(row, "heads")
    if heads is None:
        heads = max(1, hidden // 128)
        flags.append("no heads given, taken as hidden / 128")
    width = _whole(row, "ffn") or 4 * hidden
    keys = _whole(row, "kv_heads") or heads
    vocab = _whole(row, "vocab") or 51200
    if hidden % heads:
        raise UnusableError(f"hidden {hidden} is not a multiple of heads {heads}")
    if width != 4 * hidden or keys != heads:
        config = {
            "model_type": "llama", "hidden_size": hidden, "intermediate_size": width,
            "num_hidden_layers": layers, "num_attention_heads": heads,
            "num_key_value_heads": keys, "vocab_size": vocab,
        }  # fmt: skip
    else:
        config = {
            "model_type": "gpt2", "n_embd": hidden, "n_head": heads, "n_layer": layers,
            "vocab_size": vocab, "n_positions": _whole(row, "seq") or 2048,
        }  # fmt: skip
    return _build(tuple(config.items()))


@functools.lru_cache(maxsize=256)
def _build(config: tuple[tuple[str, object], ...]) -> Model:
    return Model.from_config(dict(config))


@functools.lru_cache(maxsize=256)
def _pool(gpu: str, chips: int) -> Pool:
    chip = _chip(gpu)
    family = next((name for name in sorted(_SYSTEMS, key=len)[::-1] if name in gpu.upper()), "")
    gbps, per_node = _SYSTEMS.get(family, (200.0, 8))
    if found := re.search(r"(\d+)\s*x\s*(?:[A-Za-z-]+\s*)?(\d{3})\b", gpu):
        gbps = int(found[1]) * int(found[2]) / per_node
    elif found := re.search(r"(\d+)\s*Gb(?:ps|/s)[^,)]*per GPU", gpu):
        gbps = float(found[1])
    elif found := re.search(r"(\d+)\s*Gb(?:ps|/s)", gpu):
        gbps = float(found[1]) / per_node
    nodes = max(1, -(-chips // per_node))
    return Pool(
        address="published/pool", chip=chip, nodes=nodes, chips_per_node=per_node, nic_gbps=gbps
    )


def _chip(gpu: str) -> Chip:
    """The catalogue's chip whose part number the text holds, nearest in memory."""
    text = gpu.upper().replace("-", " ")
    memory = re.search(r"(\d+)\s*GB\b", text)
    wanted = float(memory[1]) if memory else None
    fits = []
    for chip in load_catalogue().values():
        part = re.match(r"[a-z0-9]+-([a-z0-9]+)", chip.key)
        if part and re.search(rf"\b{part[1].upper()}\b", text):
            pcie = ("PCIE" in text) != ("pcie" in chip.key)
            fits.append((pcie, abs(chip.memory_gib - (wanted or chip.memory_gib)), chip))
    if not fits:
        raise UnusableError(f"unknown chip '{gpu}'")
    chip = min(fits, key=lambda fit: fit[:2])[2]
    changes: dict[str, float] = {}
    if wanted and abs(wanted - chip.memory_gib) > 1:
        changes["memory_gib"] = wanted
    if found := re.search(r"([\d.]+)\s*TB/S", text):
        changes["memory_gbytes_per_s"] = float(found[1]) * 1000
        changes["measured_memory_gbytes_per_s"] = None
    found = re.search(r"\b(\d{3})W\b", text)
    if found and chip.watts and float(found[1]) < 0.9 * chip.watts:
        # Clocks fall with about the 0.4th power of the board's power (P ~ f V², V ~ f).
        slower = (float(found[1]) / chip.watts) ** 0.4
        changes["watts"] = float(found[1])
        changes["measured_tflops"] = {
            dtype: chip.matmul_flops(dtype) * slower / 1e12 for dtype in chip.dtypes
        }
    return replace(chip, **changes) if changes else chip


def _software(row: Mapping[str, str]) -> Software:
    """The generation of training program a source used, by its date or name.

    Zero Bubble's peak memory shows the scores: it ran without flash attention in 2023.
    """
    source = f"{row.get('source')} {row.get('model')}"
    dated = re.search(r"arXiv:(\d{4})\.", source)
    before_flash = dated is not None and int(dated[1]) < 2206
    named = re.search(r"\(202[0-2]|vtrain|bigscience|mt-nlg|zero bubble", source, re.I)
    if before_flash or named:
        divided = "sequence-parallel" in (row.get("recompute") or "")
        return replace(MEGATRON_2021, sequence_parallel=divided)
    told = " ".join(row.get(k) or "" for k in ("table", "model", "note"))
    program = MEGATRON
    if re.search(r"megatron-bridge|nemo", f"{source} {told}", re.I):
        # Its recipes overlap tensor-parallel sums with matrix products.
        program = replace(MEGATRON, overlap_tensor=0.6)
    elif (_whole(row, "zero") or 0) >= 3:
        program = FSDP
        if re.search(r"compile", told, re.I):
            program = replace(program, eager_passes=1.0)
    if re.search(r"\blora\b", told, re.I):
        program = replace(program, frozen=True)
    if re.search(r"async.?tp", told, re.I):
        program = replace(program, overlap_tensor=0.3)
    return program
