"""Serving: what a mix of requests sees of an engine, and what it holds in memory.

A closed loop of requests: as one ends the next begins, prompts are computed in chunks beside the
tokens of running requests (Agrawal et al. 2024, Sarathi-Serve, arXiv 2403.02310). As many run as
have room in memory at their mean length; the others wait for a place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from pluribus.core.errors import PlanError
from pluribus.core.units import GIB
from pluribus.predict.serving_step import Deployment
from pluribus.spec.prediction import Interval

# What an engine gives to its cache of what weights and the process leave (TensorRT-LLM's default;
# vLLM and SGLang count the weights in and come to about as much), and what the process itself takes
# beside them (context, workspaces, graphs); typical figures.
USABLE_SHARE = 0.9
RUNTIME_BYTES = 3 * GIB

# Half-widths of the interval, from tables and by formula: each holds four of five of the 1,391
# measured runs of bench/serving.py.
TABLED_SPREAD = 0.25
FORMULA_SPREAD = 0.3


@dataclass(frozen=True, kw_only=True)
class Load:
    """A batch mix.

    Attributes:
        requests: running at the same time.
        prompts: tokens of each kind of prompt.
        generated: tokens of each kind of answer, as many as prompts.
        chunk_tokens: of a prompt in one step, at most.
    """

    requests: int
    prompts: tuple[int, ...]
    generated: tuple[int, ...]
    chunk_tokens: int = 8192

    def __post_init__(self) -> None:
        numbers = (self.requests, self.chunk_tokens, *self.prompts, *self.generated)
        if not self.prompts or len(self.prompts) != len(self.generated) or min(numbers) < 1:
            raise PlanError(
                f"a mix of {self.requests} requests, {len(self.prompts)} prompts and "
                f"{len(self.generated)} answers",
                do="Give as many prompts as answers, and whole numbers above zero.",
            )


@dataclass(frozen=True, kw_only=True)
class Serving:
    """What is predicted of an engine under a load.

    Attributes:
        prefill_s: the prompt of average length, alone.
        decode_s: one token for every running request, without prompts beside them.
        ttft_s, ttft_p95_s: time to the first token: mean and 95th percentile over the mix.
        ttft_burst_s: mean time to the first token when all requests come at once.
        tpot_s: mean time per further token.
        gap_p95_s: 95th percentile of the gaps between two tokens.
        tokens_per_s: generated tokens of all requests.
        interval: of tpot_s.
        weight_bytes, cache_bytes: on one chip, with every request at its mean length.
        cache_bytes_per_token: on one chip.
        largest_batch: requests of this mix that fit in memory at their full length.
        fits: whether the load's do.
    """

    prefill_s: float
    decode_s: float
    ttft_s: float
    ttft_p95_s: float
    ttft_burst_s: float
    tpot_s: float
    gap_p95_s: float
    tokens_per_s: float
    interval: Interval
    weight_bytes: float
    cache_bytes: float
    cache_bytes_per_token: float
    largest_batch: int
    fits: bool


def predict_serving(deployment: Deployment, load: Load) -> Serving:
    """Times and memory of a deployment under a load.

    Raises:
        PlanError: the model does not divide over tp chips, or the chip lacks the precision.
    """
    chip, model, tp = deployment.pool.chip, deployment.model, deployment.tp
    if not model.supports_tp(tp):
        raise PlanError(f"{model.name} does not divide over tp = {tp}", do="Take another degree.")
    chip.matmul_flops(deployment.precision)
    answer = fmean(load.generated)
    context = fmean(p + g / 2 for p, g in zip(load.prompts, load.generated, strict=True))
    room = (chip.memory_bytes - RUNTIME_BYTES - deployment.weight_bytes) * USABLE_SHARE
    places = math.floor(room / (context * deployment.cache_bytes_per_token))
    running = min(load.requests, places) if places > 0 else load.requests
    decode = deployment.step_seconds(decoding=running, context=context) + deployment.host_s
    beside = [_prefill(deployment, load, prompt, running - 1, context) for prompt in load.prompts]
    # While a request gets its tokens, every other request's successor has its prompt computed.
    extra = fmean(sum(steps) - len(steps) * decode for steps in beside)
    tpot = decode + max(0.0, extra) * (running - 1) / answer
    # A request comes in the middle of a step.
    served = fmean(map(sum, beside)) + decode / 2 + (answer - 1) * tpot
    waits = (load.requests / running - 1) * served
    firsts = [waits + sum(steps) + decode / 2 for steps in beside]
    prompt_steps = fmean(map(len, beside)) * running / answer
    chunk_step = max(max(steps) for steps in beside)
    ttft = fmean(firsts)
    tabled = bool(deployment.profile and deployment.profile.tables(chip.key))
    spread = TABLED_SPREAD if tabled else FORMULA_SPREAD
    full = fmean(p + g for p, g in zip(load.prompts, load.generated, strict=True))
    largest = max(0, math.floor(room / (full * deployment.cache_bytes_per_token)))
    prefill = fmean(sum(_prefill(deployment, load, p, 0, 0.0)) for p in load.prompts)
    return Serving(
        prefill_s=prefill,
        decode_s=decode,
        ttft_s=ttft,
        ttft_p95_s=_percentile(firsts, 0.95),
        ttft_burst_s=waits + prefill * (running + 1) / 2,
        tpot_s=tpot,
        gap_p95_s=chunk_step if prompt_steps > 0.05 else decode,
        tokens_per_s=running * answer / served,
        interval=Interval(mid=tpot, low=tpot * (1 - spread), high=tpot * (1 + spread)),
        weight_bytes=deployment.weight_bytes,
        cache_bytes=running * context * deployment.cache_bytes_per_token,
        cache_bytes_per_token=deployment.cache_bytes_per_token,
        largest_batch=largest,
        fits=largest >= load.requests,
    )


def _prefill(
    deployment: Deployment, load: Load, prompt: int, decoding: int, context: float
) -> list[float]:
    """Seconds of every step that computes a chunk of a prompt, beside running requests."""
    return [
        deployment.step_seconds(
            chunk=min(load.chunk_tokens, prompt - start),
            before=start, decoding=decoding, context=context,
        )
        + deployment.host_s
        for start in range(0, prompt, load.chunk_tokens)
    ]  # fmt: skip


def _percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of the values does not pass."""
    ordered = sorted(values)
    return ordered[math.ceil(share * len(ordered)) - 1]
