"""Which training program made a published run, by the facts its row gives."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from pluribus.predict.software import (
    FSDP,
    MEGATRON,
    MEGATRON_2021,
    MEGATRON_BRIDGE,
    UNFUSED_FRAGMENTATION,
    Software,
)

# Conferences name the year a paper appeared in; its runs are about this much older.
_BEFORE_CONFERENCE = 0.7

# Megatron-LM sums the gradients of inputs under the products of weights since autumn 2021
# (`--no-async-tensor-model-parallel-allreduce` switches it off); forks made before do not.
_SUMS_OVERLAPPED = 2021.8

# Forks of the Megatron of 2021, whenever their runs were published.
_FORKS_OF_2021 = r"vtrain|bigscience|bloom|mt-nlg"

# vTrain's single-node runs, beside which it publishes the program: a GPT of its own out of
# Megatron's layers (VIA-Research/vTrain @f8dda84, src/model and src/trainer.py).
_OWN_GPT = r"vtrain.*ground_truth_single"
# It has no checkpointing, whatever the configuration says, updates 16-bit weights in place
# (weight read and written, gradient read and cleared, both fp32 moments read and written), takes
# the loss in 16 bits (14 bytes per logit, where fp32 moves 25), and has GPT-2's vocabulary without
# padding. The wait in its sums is fitted on half of its runs; nothing else here is.
OWN_GPT = replace(MEGATRON_2021, update_bytes=24, loss_passes=0.56, sum_wait_s=1.1e-4)
_GPT2_VOCABULARY = 50257


def recomputes(row: Mapping[str, str]) -> bool:
    """Whether a run's program can do the recomputation that its row may name."""
    return not re.search(_OWN_GPT, told(row), re.I)


def vocabulary_of(row: Mapping[str, str], tp: int) -> int:
    """The vocabulary of a model whose row gives none: Megatron's, or that of vTrain's own program,
    which drops what its ranks do not share evenly."""
    if re.search(_OWN_GPT, told(row), re.I):
        return _GPT2_VOCABULARY // tp * tp
    return 51200


def told(row: Mapping[str, str]) -> str:
    """Everything a row says in words."""
    return " ".join(row.get(k) or "" for k in ("source", "table", "model", "note", "recompute"))


def _date(source: str) -> float | None:
    """The year of a source's runs, with its fraction."""
    if found := re.search(r"arXiv:(\d\d)(\d\d)\.", source):
        return 2000 + int(found[1]) + int(found[2]) / 12
    if found := re.search(r"\((20[12]\d)\b", source):
        return float(found[1])
    if found := re.search(r"\b(?:SC|ICLR|ICML|NeurIPS|MICRO|NSDI|OSDI|MLSys)'?(\d\d)\b", source):
        return 2000 + int(found[1]) - _BEFORE_CONFERENCE
    return None


def program_of(row: Mapping[str, str], precision: str, sharded: bool) -> Software:
    """The training program of a row, by the facts it gives: its date, whether a micro-batch's
    parameters are divided (ZeRO-3), and what its note says is switched on."""
    source = f"{row.get('source')} {row.get('model')}"
    words = told(row)
    if re.search(_OWN_GPT, words, re.I):
        return OWN_GPT
    date = _date(source)
    if re.search(_FORKS_OF_2021, source, re.I) or (date is not None and date < 2022.5):
        divided = bool(re.search(r"sequence-parallel", words, re.I))
        overlapped = date is not None and date > _SUMS_OVERLAPPED
        program = replace(MEGATRON_2021, sequence_parallel=divided, overlap_backward=overlapped)
        if precision == "bf16":
            # Megatron sums bf16 gradients in fp32.
            program = replace(program, gradient_sync_bytes=4, accumulate_bytes=10)
        return program
    if re.search(r"megatron-bridge|nemo", words, re.I):
        program = MEGATRON_BRIDGE
    elif sharded:
        compiled = re.search(r"compile", words, re.I)
        program = replace(FSDP, eager_passes=1.0) if compiled else FSDP
    else:
        # Until 2024 flash attention had to be asked for.
        program = MEGATRON
        if date is not None and date < 2024:
            program = replace(MEGATRON, flash_attention=False, fragmentation=UNFUSED_FRAGMENTATION)
    if re.search(r"\blora\b", words, re.I):
        program = replace(program, frozen=True)
    if re.search(r"async.?tp", words, re.I):
        # Read off torchtitan's two runs that differ by it alone.
        program = replace(program, overlap_tensor=0.3)
    if re.search(r"overlap-grad-reduce|dp comm(unication)? overlap", words, re.I):
        program = replace(program, overlap_gradients=True)
    return program
