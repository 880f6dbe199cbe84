"""Which training program made a published run, by what its row says: named, else by its age.

No source has a rule of its own. A program that a row names is looked up in `_NAMED`; without a
name, divided parameters mean fully sharded PyTorch and anything else Megatron, with a flag. How old
it is (flash attention, fused kernels) is told by the date of its source, by what had not been
invented (16-bit floats without range, gated networks), or by its chip.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from pluribus.predict.software import (
    FSDP,
    MEGATRON,
    MEGATRON_2021,
    MEGATRON_BRIDGE,
    MEGATRON_DEEPSPEED,
    UNFUSED_FRAGMENTATION,
    Software,
)

# Conferences name the year a paper appeared in; its runs are about this much older.
_BEFORE_CONFERENCE = 0.7

# vTrain's single-node runs, beside which it publishes the program: a GPT of its own out of
# Megatron's layers (VIA-Research/vTrain @f8dda84, src/model and src/trainer.py).
# It has no checkpointing, whatever the configuration says, updates 16-bit weights in place
# (weight read and written, gradient read and cleared, both fp32 moments read and written), takes
# the loss in 16 bits (14 bytes per logit, where fp32 moves 25), and has GPT-2's vocabulary without
# padding. The wait in its sums is fitted on half of its runs; nothing else here is.
OWN_GPT = replace(MEGATRON_2021, update_bytes=24, loss_passes=0.56, sum_wait_s=1.1e-4)
_GPT2_VOCABULARY = 50257

# Words of a row that name its program, the first that fits: its own name, or that of the collection
# it is published with. Projects that are built on a program count as it, and MegaScale (Jiang et
# al. 2024, arXiv 2402.15627), which runs every sum and message under products, as Megatron-Bridge.
_NAMED = (
    (r"vtrain.*ground_truth_single", OWN_GPT),
    (r"megatron-?bridge|\bnemo\b|megascale", MEGATRON_BRIDGE),
    (r"megatron-?deepspeed|\bmt-nlg|megatron-turing", MEGATRON_DEEPSPEED),
    (r"torchtitan|llm-foundry|\bfsdp2?\b", FSDP),
    (r"megatron|flagscale|modellink|mindspeed", MEGATRON),
)

# An undated run on a chip of 2020 or before is taken to be of its time, any other to be current.
_OLD_CHIPS = r"V100|A100"
_THEN, _NOW = 2021.5, 2025.0

# Megatron's kernels were rewritten, and flash attention became the default.
_REWRITTEN, _FLASH = 2022.5, 2024.0
# Megatron-LM sums the gradients of inputs under the products of weights
# (`--no-async-tensor-model-parallel-allreduce` switches it off); forks made before do not.
_SUMS_OVERLAPPED = 2021.8
# Since its release of June 2026 Megatron-Bridge exchanges experts' tokens under products inside an
# NVLink domain. How much of it is read off one model's runs of both sides on GB200 (Qwen3 30B).
_EXPERTS_OVERLAPPED, _EXPERTS_HIDDEN = 2026.4, 0.9
# Gated networks came with Llama; runs in fp16 end with the programs of before the rewriting.
_GATED = 2023.2

# Programs whose loss is one kernel: 16-bit logits and their gradient are all it keeps.
_FUSED_LOSS = r"llm-foundry"
# The compiler takes the loss as well: 16-bit logits and their fp32 gradient are what is left.
_LOSS_COMPILED = 2025.0
_COMPILED_LOGIT_BYTES = 6


def recomputes(row: Mapping[str, str]) -> bool:
    """Whether a run's program can do the recomputation that its row may name."""
    return _named(row) is not OWN_GPT


def interleaves(row: Mapping[str, str]) -> bool:
    """Whether a run's program can hold several runs of layers on a stage."""
    return _named(row) not in (OWN_GPT, MEGATRON_DEEPSPEED)


def vocabulary_of(row: Mapping[str, str], tp: int) -> int:
    """The vocabulary of a model whose row gives none: Megatron's, or that of vTrain's own program,
    which drops what its ranks do not share evenly."""
    if _named(row) is OWN_GPT:
        return _GPT2_VOCABULARY // tp * tp
    return 51200


def told(row: Mapping[str, str]) -> str:
    """Everything a row says in words."""
    return " ".join(row.get(k) or "" for k in ("source", "table", "model", "note", "recompute"))


def _named(row: Mapping[str, str]) -> Software | None:
    # A table may compare programs: what it says of the run counts before what its source does.
    own = " ".join(row.get(k) or "" for k in ("table", "model", "note"))
    for words in (own, told(row)):
        for name, found in _NAMED:
            if re.search(name, words, re.I):
                return found
    return None


def program_of(
    row: Mapping[str, str], precision: str, *, sharded: bool, gated: bool, tp: int, flags: list[str]
) -> Software:
    """The training program of a row.

    Args:
        sharded: whether a micro-batch's parameters are divided (ZeRO-3).
        gated: whether its network is not the plain one of GPT.
        tp: tensor-parallel ranks.
        flags: gets what had to be guessed.
    """
    words = told(row)
    program = _named(row)
    if program is None:
        program = FSDP if sharded else MEGATRON
        flags.append(f"no program named, taken as {'fully sharded' if sharded else 'Megatron'}")
    date = _date(row, precision, gated)
    if program in (MEGATRON, MEGATRON_DEEPSPEED):
        program = _megatron(program, date, precision, words)
    elif program == FSDP:
        program = _sharded(date, tp, words)
    elif program == MEGATRON_BRIDGE and date > _EXPERTS_OVERLAPPED:
        program = replace(program, overlap_experts=_EXPERTS_HIDDEN)
    if re.search(r"\blora\b", words, re.I):
        program = replace(program, frozen=True)
    if re.search(r"async.?tp", words, re.I):
        # Read off torchtitan's two runs that differ by it alone: gathered states are never whole.
        program = replace(program, overlap_tensor=0.3, gathered=max(0, program.gathered - 2))
    if re.search(r"overlap-grad-reduce|dp comm(unication)? overlap", words, re.I):
        program = replace(program, overlap_gradients=True)
    return program


def by_driver(software: Software) -> bool:
    """Whether the peaks such a program's users publish are the driver's, the process included."""
    return software.cache_share > 0


def _megatron(program: Software, date: float, precision: str, words: str) -> Software:
    """Megatron of that time, or its fork that DeepSpeed drives."""
    if date < _REWRITTEN:
        found = MEGATRON_2021
        if precision == "bf16":
            # It sums bf16 gradients in fp32.
            found = replace(found, gradient_sync_bytes=4, accumulate_bytes=10)
        divided = bool(re.search(r"sequence-parallel", words, re.I))
        given = _given_date(words)
        overlapped = given is not None and given > _SUMS_OVERLAPPED
        found = replace(
            found, sequence_parallel=divided,
            overlap_backward=overlapped and program != MEGATRON_DEEPSPEED,
        )  # fmt: skip
    elif date < _FLASH:
        # Flash attention had to be asked for.
        found = replace(MEGATRON, flash_attention=False, fragmentation=UNFUSED_FRAGMENTATION)
    else:
        found = MEGATRON
    if program != MEGATRON_DEEPSPEED:
        return found
    if precision == "bf16":
        # `BF16_Optimizer.update_hp_grads`: a gradient is copied to fp32 and the copy then added.
        found = replace(found, accumulate_bytes=18)
    return replace(
        found, blocking_messages=True, rendezvous=program.rendezvous,
        message_byte_s=program.message_byte_s, sum_byte_s=program.sum_byte_s,
        cache_share=program.cache_share, loss_copies=program.loss_copies, drag=program.drag,
    )  # fmt: skip


def _sharded(date: float, tp: int, words: str) -> Software:
    """Fully sharded PyTorch of that time, with or without a compiler."""
    program = FSDP if date >= _FLASH else replace(FSDP, flash_generation=1)
    if re.search(_FUSED_LOSS, words, re.I):
        program = replace(program, logit_bytes=4)
    if tp > 1:
        # A loss over a divided vocabulary is taken in steps: shifted logits and exponentials too.
        program = replace(program, loss_copies=2.0)
    if not re.search(r"compile", words, re.I):
        # Read off the peaks of one pair of torchtitan's runs with and without a compiler.
        return replace(program, selective_kept=0.78)
    program = replace(program, eager_passes=1.0)
    if date >= _LOSS_COMPILED:
        fewer = min(program.logit_bytes, _COMPILED_LOGIT_BYTES)
        program = replace(program, logit_bytes=fewer)
    return program


def _date(row: Mapping[str, str], precision: str, gated: bool) -> float:
    """The year of a run, with its fraction: given by its source, or by what it is made of."""
    given = _given_date(f"{row.get('source')} {row.get('table')}")
    if given is None:
        old = bool(re.search(_OLD_CHIPS, row.get("gpu") or "", re.I))
        return _THEN if old and not gated else _NOW
    if precision == "fp16" and not gated and given < _FLASH:
        return min(given, _THEN)
    return max(given, _GATED) if gated else given


def _given_date(words: str) -> float | None:
    if found := re.search(r"arXiv:(\d\d)(\d\d)\.", words):
        return 2000 + int(found[1]) + (int(found[2]) - 0.5) / 12
    if found := re.search(r"(?<!\d)(20[12]\d)-?(0\d|1[0-2])(?!\d)", words):
        return int(found[1]) + (int(found[2]) - 0.5) / 12
    if found := re.search(r"\b(2\d)\.(0\d|1[0-2])(?:\.\d\d)? NeMo", words):
        return 2000 + int(found[1]) + (int(found[2]) - 0.5) / 12
    if found := re.search(r"\((20[12]\d)\b", words):
        return float(found[1])
    if found := re.search(r"\b(?:SC|ICLR|ICML|NeurIPS|MICRO|NSDI|OSDI|MLSys)'?(\d\d)\b", words):
        return 2000 + int(found[1]) - _BEFORE_CONFERENCE
    return None
