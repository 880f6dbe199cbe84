"""Reads published measured runs: a CSV row becomes a model, a pool, a layout and a program."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from published_cells import number, peak_gib, recompute_kind, step_seconds, whole, zero_stage
from published_chips import UnusableError, pool_of
from published_guess import least_layout, likely_chunks, likely_layout
from published_memory import ran_out
from published_models import looks_mixed, named_config
from published_programs import interleaves, program_of, recomputes, told, vocabulary_of

from pluribus.core.errors import PluribusError
from pluribus.hardware.chip import Chip
from pluribus.hardware.pool import Pool
from pluribus.model.model import Model
from pluribus.predict.regular import Layout
from pluribus.predict.software import Software
from pluribus.spec.plan import ScheduleName

_PRECISIONS = (
    ("fp8", "fp8"), ("float8", "fp8"), ("e4m3", "fp8"), ("fp4", "fp8"), ("bf16", "bf16"),
    ("bfloat16", "bf16"), ("fp16", "fp16"), ("float16", "fp16"), ("half", "fp16"),
    ("fp32", "fp32"), ("float32", "fp32"), ("tf32", "fp32"),
)  # fmt: skip

# The zero-bubble paper's names beside the usual ones.
_SCHEDULES: tuple[tuple[str, ScheduleName], ...] = (
    (r"\bZB-?(1p|H1)\b", "zb-h1"), (r"\bZB-?(2p|H2)\b", "zb-h2"), (r"\bZB-?V\b", "zbv"),
    (r"\bgpipe\b", "gpipe"),
)  # fmt: skip

_MOST_LAYERS = 2000


@dataclass(frozen=True)
class Row:
    """One published run.

    Attributes:
        group: its source, within its file.
        cluster: rows that may calibrate one another.
        seconds: None where only memory is known.
        memory_gb: peak of a chip as published, infinite where it ran out.
        room_known: whether it says all that decides whether it fits: recompute, and a chip's
            memory without a question mark.
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
    room_known: bool
    flags: tuple[str, ...]


def parse_row(row: Mapping[str, str]) -> Row:
    """Builds what `predict` needs.

    Raises:
        UnusableError: it is not fully specified, or its chip is not in the catalogue.
    """
    flags: list[str] = []
    words = told(row)
    tp, pp, cp = whole(row, "tp"), whole(row, "pp"), whole(row, "cp")
    dp, chips = whole(row, "dp"), whole(row, "n_gpu")
    if dp and dp == chips and not (tp and pp):
        tp, pp = tp or 1, pp or 1
        flags.append("no tp or pp given, taken as 1: dp is all of n_gpu")
    if cp is None and tp and pp and dp and chips and chips % (tp * pp * dp) == 0:
        cp = chips // (tp * pp * dp)
        if cp > 1:
            flags.append("no cp given, taken as what n_gpu leaves")
    cp = cp or 1
    if tp and pp and chips and dp is None and chips % (tp * pp * cp) == 0:
        dp = chips // (tp * pp * cp)
        flags.append("no dp given, taken as what n_gpu leaves")
    if tp and pp and dp and chips is None:
        chips = tp * pp * cp * dp
    sequence, batch = whole(row, "seq"), whole(row, "global_batch")
    seconds, memory = step_seconds(row, flags), peak_gib(row, flags)
    rate = number(row, "tokens_per_s")
    if (
        batch
        and sequence
        and batch >= sequence
        and "tok" in (row.get("global_batch") or "").lower()
    ):
        batch //= sequence
        flags.append("global batch given in tokens")
    if batch is None and sequence and seconds and rate:
        batch = max(1, round(rate * seconds / sequence))
        flags.append("no global batch given, taken from tokens/s and the time")
    found = {"tp": tp, "pp": pp, "dp": dp, "n_gpu": chips, "seq": sequence, "global_batch": batch}
    if missing := [name for name, value in found.items() if value is None]:
        raise UnusableError(f"no {', '.join(missing)}")
    out = ran_out(row, flags, timed=bool(seconds or rate))
    if seconds is None and not out and rate:
        seconds = batch * sequence / rate
        flags.append("time taken from tokens/s")
    elif seconds and rate and not 0.95 < rate * seconds / (batch * sequence) < 1.05:
        flags.append("time, batch and tokens/s disagree; the time is taken")
    if seconds is None and memory is None and not out:
        raise UnusableError("neither time nor memory")
    if re.search(r"\blora\b", words, re.I):
        flags.append("adapters only, predicted as training with frozen weights")
    elif re.search(r"\bsft\b", words, re.I):
        flags.append("fine-tuning, predicted as pretraining")
    micro, zero = whole(row, "micro_batch"), zero_stage(row)
    schedule, virtual = _schedule(row, pp, batch // (dp * (micro or 1)), words, flags)
    given = recompute_kind(row)
    recompute = given or "none"
    if given is None:
        flags.append("no recompute given, taken as none")
    if recompute != "none" and not recomputes(row):
        flags.append("its program does not recompute, whatever the row says")
        recompute = "none"
    unsure = "?" in (row.get("gpu") or "")
    if unsure:
        flags.append("chip given with a question mark")
    layout = Layout(
        tp=tp, pp=pp, dp=dp, cp=cp, ep=whole(row, "ep") or 1,
        virtual_stages=virtual, zero=zero or 0, micro_batch=micro or 1,
        global_batch=batch, recompute=recompute,
        schedule=schedule,
    )  # fmt: skip
    if layout.num_chips != chips:
        flags.append("n_gpu is not tp × cp × pp × dp, which is taken")
    if batch % (dp * layout.micro_batch):
        flags.append("the batch is not a multiple of dp × micro-batch")
    model = _model(row, tp, flags)
    if not model.supports_tp(tp) or not model.supports_ep(layout.ep):
        raise UnusableError(f"tp {tp} or ep {layout.ep} does not divide {row.get('model')}")
    if pp > len(model.layers) - 2:
        raise UnusableError(f"{pp} stages of {len(model.layers) - 2} blocks")
    pool, doubts = pool_of(row.get("gpu") or "", chips)
    flags += doubts
    precision = _precision(row, words, flags)
    if "fp4" in (row.get("precision") or "").lower():
        flags.append("4-bit, predicted as 8-bit at twice the rate")
        if pool.chip.supports("fp8"):
            doubled = {"fp8": 2 * pool.chip.matmul_flops("fp8") / 1e12}
            pool = replace(
                pool, chip=replace(pool.chip, measured_tflops=doubled | _wide(pool.chip))
            )
    if not pool.chip.supports(precision):
        raise UnusableError(f"no known {precision} rate of {pool.chip.key}")
    software = program_of(
        row, precision, sharded=layout.zero >= 3, gated=model.config["model_type"] != "gpt2",
        tp=tp, flags=flags,
    )  # fmt: skip
    unknown = [k for k, v in (("micro_batch", micro), ("zero", zero if dp > 1 else 0)) if v is None]
    if unknown:
        run = (sequence, precision, software)
        if out:
            layout, guessed = least_layout(layout, unknown)
        else:
            layout, guessed = likely_layout(layout, model, pool, run, unknown, memory)
        flags += guessed
    # Forward, and the backward's two parts, of which adapters need one.
    needed = (2 if software.frozen else 3) * model.forward_flops_per_token(sequence)
    if seconds and needed * batch * sequence > seconds * chips * _peak(pool.chip, precision):
        flags.append("quicker than its chips' peak allows")
    group = f"{row.get('source') or '?'} [{row['file']}]"
    return Row(
        group=group,
        cluster=f"{group} {row.get('gpu')}",
        model=model,
        pool=pool,
        layout=layout,
        sequence_length=sequence,
        precision=precision,
        software=software,
        seconds=None if out else seconds,
        memory_gb=math.inf if out else memory,
        room_known=given is not None and not unsure,
        flags=tuple(flags),
    )


def _peak(chip: Chip, precision: str) -> float:
    return max(chip.peak_tflops.get(precision, 0.0) * 1e12, chip.matmul_flops(precision))


def _wide(chip: Chip) -> dict[str, float]:
    return {k: v for k, v in chip.measured_tflops.items() if k != "fp8"}


def _precision(row: Mapping[str, str], words: str, flags: list[str]) -> str:
    """The arithmetic of a row's products."""
    said = (row.get("precision") or "").lower()
    found = next((kind for word, kind in _PRECISIONS if word in said), None)
    if found is None:
        flags.append(f"precision '{said}' unknown, taken as bf16" if said.strip()
                     else "no precision given, taken as bf16")  # fmt: skip
        found = "bf16"
    return "fp8" if found == "bf16" and "float8" in words else found


def _schedule(
    row: Mapping[str, str], pp: int, micro_batches: int, words: str, flags: list[str]
) -> tuple[ScheduleName, int]:
    """The schedule a row names, and its virtual stages."""
    virtual = whole(row, "vpp")
    if pp == 1:
        return "1f1b", virtual or 1
    for pattern, schedule in _SCHEDULES:
        if re.search(pattern, words, re.I):
            return schedule, virtual or 1
    if virtual is None:
        virtual = 2 if re.search(r"interleaved", words, re.I) else 1
        if interleaves(row) and not re.search(r"1f1b|interleaved", words, re.I):
            virtual = likely_chunks(pp, micro_batches, whole(row, "layers") or pp)
        flags.append(f"no virtual stages given, taken as {virtual}")
    return ("interleaved" if virtual > 1 else "1f1b"), virtual


def _model(row: Mapping[str, str], tp: int, flags: list[str]) -> Model:
    layers, hidden = whole(row, "layers"), whole(row, "hidden")
    if layers and layers > _MOST_LAYERS:
        raise UnusableError(f"{layers} layers")
    if config := named_config(row, layers, hidden):
        if not hidden:
            flags.append("sizes looked up by the model's name")
        return _build(tuple(config.items()))
    if looks_mixed(row):
        flags.append("experts not described, predicted as a dense model")
    vocab = whole(row, "vocab") or vocabulary_of(row, tp)
    size = re.search(r"(\d+(?:\.\d+)?)\s*B\b", row.get("model") or "", re.I)
    if layers is None and hidden and size:
        width, keys = whole(row, "ffn") or 4 * hidden, whole(row, "kv_heads")
        shared = keys / (whole(row, "heads") or keys) if keys else 1.0
        gated = width != 4 * hidden
        block = (2 + 2 * shared) * hidden**2 + (3 if gated else 2) * hidden * width
        layers = round((float(size[1]) * 1e9 - (1 + gated) * vocab * hidden) / block)
        flags.append("no layers given, taken from the size in the model's name")
    if not hidden or not layers or not 1 <= layers <= _MOST_LAYERS:
        raise UnusableError("no layers or hidden, and not a model known by name")
    heads = whole(row, "heads")
    if heads is None:
        fitting = [n for n in range(tp, hidden + 1, tp) if hidden % n == 0]
        heads = min(fitting or [1], key=lambda n: abs(n - hidden / 128))
        flags.append("no heads given, taken as about hidden / 128")
    width = whole(row, "ffn") or 4 * hidden
    keys = whole(row, "kv_heads") or heads
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
            "vocab_size": vocab, "n_positions": whole(row, "seq") or 2048,
        }  # fmt: skip
    return _build(tuple(config.items()))


@functools.lru_cache(maxsize=256)
def _build(config: tuple[tuple[str, object], ...]) -> Model:
    try:
        return Model.from_config(dict(config))
    except PluribusError as error:
        raise UnusableError(f"no such model: {error}") from error
