"""One forward step of an inference engine: a chunk of a prompt, new tokens of running requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from pluribus.core.units import DTYPE_BYTES
from pluribus.hardware.pool import Pool
from pluribus.model.attention import GroupedQueryAttention
from pluribus.model.block import Block
from pluribus.model.experts import Experts
from pluribus.model.latent_attention import LatentAttention
from pluribus.model.model import Model
from pluribus.model.operator import Operator
from pluribus.model.share import Share
from pluribus.predict.algorithms import ALL_REDUCE, SEND, GroupShape
from pluribus.predict.collectives import collective_seconds
from pluribus.predict.link_classes import links_of
from pluribus.predict.operator_tables import OperatorTimes, operator_times
from pluribus.predict.operators import ELEMENTWISE_EFFICIENCY
from pluribus.spec.profile import Profile

# A block's kernels besides products, attention and experts, as engines fuse them: two norms with
# their residual sums, rotation with the write to the cache, the activation; and what each takes
# in a recorded graph, where launches hide behind one another. Typical figures, written down after a
# look at runs of bench/serving.py and not fitted.
FUSED_KERNELS = 4
FUSED_KERNEL_S = 1.5e-6

# Seconds a step takes beside its kernels: scheduling, sampling, detokenising. A typical figure.
STEP_HOST_S = 1.0e-3

# Rows that a product with fewer may be padded to. Tables have kernels for few rows that take longer
# than those for more (fp8 on B200: 4 rows half as long again as 64), which no engine has to choose.
_PADDED = (8, 16, 32, 64)

# Projections of the same input, which engines store as one matrix.
_ONE_INPUT = ("q_proj", "kv_proj", "q_a_proj", "kv_a_proj")


@dataclass(frozen=True, kw_only=True, eq=False)
class Deployment:
    """A model on chips of one pool, as one engine serves it.

    Attributes:
        tp: tensor-parallel chips of a stage; experts are divided over them as well, whole or in
            parts.
        pp: pipeline stages, with blocks divided evenly.
        precision: of matrix products.
        weight_precision: of weights in memory; None is ``precision``.
        cache_precision: of cached keys and values; None is bf16, or fp32 where products are.
        host_s: seconds a step takes beside its kernels; 0 where the engine does it during the step
            before.
        profile: whose operator tables are used; formulas where it has none.
    """

    model: Model
    pool: Pool
    tp: int = 1
    pp: int = 1
    precision: str = "bf16"
    weight_precision: str | None = None
    cache_precision: str | None = None
    host_s: float = STEP_HOST_S
    profile: Profile | None = None

    @property
    def weights_in(self) -> str:
        return self.weight_precision or self.precision

    @property
    def cache_in(self) -> str:
        return self.cache_precision or self.states_in

    @property
    def states_in(self) -> str:
        """Dtype of what is not a matrix of a block: states, attention, embedding and head."""
        return self.precision if DTYPE_BYTES[self.precision] >= 2 else "bf16"

    @cached_property
    def times(self) -> OperatorTimes:
        return operator_times(self.profile, self.pool.chip) or OperatorTimes((), self.pool.chip)

    @cached_property
    def blocks(self) -> dict[str, tuple[Block, int]]:
        """One block of each signature, and how many the model has."""
        found: dict[str, tuple[Block, int]] = {}
        for layer in self.model.layers[1:-1]:
            assert isinstance(layer, Block), layer.name
            block, count = found.get(layer.signature, (layer, 0))
            found[layer.signature] = (block, count + 1)
        return found

    @cached_property
    def weight_bytes(self) -> float:
        """Of the fullest stage's weights on one chip."""
        narrow, wide = DTYPE_BYTES[self.weights_in], DTYPE_BYTES[self.states_in]
        blocks = sum(
            count * block.parameters_per_rank(tp=self.tp) for block, count in self.blocks.values()
        )
        first, last = self.model.layers[0], self.model.layers[-1]
        ends = [layer.parameters_per_rank(tp=self.tp) * wide for layer in (first, last)]
        if self.model.tied and self.pp > 1:
            ends[1] += last.tied_parameters / self.tp * wide
        return blocks * narrow / self.pp + (sum(ends) if self.pp == 1 else max(ends))

    @cached_property
    def cache_bytes_per_token(self) -> float:
        """On one chip of one stage; on all chips of the engine it is tp x pp times as much."""
        total = sum(
            count * _cached_elements(block, self.tp) for block, count in self.blocks.values()
        )
        return total * DTYPE_BYTES[self.cache_in] / self.pp

    def step_seconds(
        self, *, chunk: int = 0, before: int = 0, decoding: int = 0, context: float = 0
    ) -> float:
        """Seconds of one step through all stages.

        Args:
            chunk: tokens of a prompt.
            before: tokens of that prompt that earlier steps have cached.
            decoding: requests that get one token each.
            context: tokens each of those has cached, on average.
        """
        tokens = chunk + decoding
        if not tokens:
            return 0.0
        total = 0.0
        for block, count in self.blocks.values():
            once = self._attend(block, chunk, before, decoding, context)
            operators = block.operators(self._share(tokens))
            once += self._fused(operators)
            if isinstance(block.feed_forward, Experts):
                once += self._experts(block.feed_forward, tokens)
            total += count * (once + 2 * self._sum(tokens))
        total += self._ends(tokens, decoding + (chunk > 0))
        return total + (self.pp - 1) * self._message(tokens)

    @property
    def _element(self) -> float:
        return DTYPE_BYTES[self.states_in]

    def _share(self, tokens: int) -> Share:
        return Share(1, tokens, self.tp, bytes_per_element=self._element, sequence_parallel=False)

    def _fused(self, operators: Sequence[Operator]) -> float:
        """Products and memory traffic of one block as engines run it: projections of one input
        are one product, and everything else is a handful of fused kernels in a recorded graph.
        Attention and routed experts are priced apart."""
        moved = seconds = 0.0
        shared: dict[tuple[int, int], int] = {}
        for operator in operators:
            m, n, k = operator.m, operator.n * operator.count, operator.k
            if operator.kind == "gemm" and operator.name in _ONE_INPUT:
                shared[m, k] = shared.get((m, k), 0) + n
            elif operator.kind == "gemm":
                seconds += self._product(m, n, k)
            elif operator.kind != "attention" and not operator.name.startswith("experts."):
                moved += operator.bytes
        seconds += sum(self._product(m, n, k) for (m, k), n in shared.items())
        rate = self.pool.chip.memory_bytes_per_s * ELEMENTWISE_EFFICIENCY
        return seconds + moved / rate + FUSED_KERNELS * FUSED_KERNEL_S

    def _product(self, m: int, n: int, k: int) -> float:
        precision = self.precision
        table = self.times.table("gemm", precision)
        most = table.largest[0] if table else 0
        rows = [m, *(padded for padded in _PADDED if m < padded <= most)]
        seconds = min(self.times.price("gemm", precision, each, n, k) for each in rows)
        saved = DTYPE_BYTES[precision] - DTYPE_BYTES[self.weights_in]
        if saved <= 0:
            return seconds
        # Narrower weights are read in less time and multiplied in the same.
        least = 2.0 * m * n * k / self.pool.chip.matmul_flops(precision)
        read = saved * n * k / self.pool.chip.memory_bytes_per_s
        return max(least, seconds - read, seconds * (1 - saved / DTYPE_BYTES[precision]))

    def _attend(
        self, block: Block, chunk: int, before: int, decoding: int, context: float
    ) -> float:
        attention, seconds = block.attention, 0.0
        if isinstance(attention, LatentAttention):
            heads, width = attention.num_heads // self.tp, attention.qk_nope_head_dim
            width += attention.qk_rope_head_dim
            prompt = heads, heads, width
            # Decoding works on the latent itself: one key for all heads (DeepSeek-V2,
            # arXiv 2405.04434, §2.1.2).
            cached = heads, 1, attention.kv_lora_rank + attention.qk_rope_head_dim
            window = None
        else:
            assert isinstance(attention, GroupedQueryAttention), attention.signature
            kv_heads = max(1, attention.num_kv_heads // self.tp)
            prompt = cached = attention.num_heads // self.tp, kv_heads, attention.head_dim
            window = attention.window
        if chunk:
            # What a whole prompt takes up to here, less what it took up to the last chunk.
            end = before + chunk
            seconds += self.times.price("attention", self.states_in, 1, *prompt, end)
            if before:
                seconds -= self.times.price("attention", self.states_in, 1, *prompt, before)
        if decoding:
            length = max(1, round(min(context, window) if window else context))
            seconds += self.times.price(
                "decode_attention", self.cache_in, decoding, *cached, length
            )
        return max(0.0, seconds)

    def _experts(self, experts: Experts, tokens: int) -> float:
        """Routed experts of one block: whole ones on each chip, or a part of every one, whichever
        is quicker (parts that are narrower than a kernel's tile are slow)."""
        rows, count, width = tokens * experts.top_k, experts.num_experts, experts.intermediate_size
        splits = [(rows, max(1, width // self.tp), count)]
        if self.tp > 1 and count % self.tp == 0:
            splits.append((max(1, rows // self.tp), width, count // self.tp))
        if not self.times.table("experts", self.precision):
            # Only experts that a token visits are read: of E with k visits per token and routing
            # without preference, E (1 − (1 − k / E)^tokens) are.
            visited = 1 - (1 - experts.top_k / count) ** tokens
            splits = [(rows, width, max(1, round(held * visited))) for rows, width, held in splits]
        return min(
            self.times.price("experts", self.precision, rows, experts.hidden_size, width, held)
            for rows, width, held in splits
        )

    def _ends(self, tokens: int, sampled: int) -> float:
        """The embedding of all tokens, and logits of those that something is drawn from."""
        first, last = self.model.layers[0], self.model.layers[-1]
        rate = self.pool.chip.memory_bytes_per_s * ELEMENTWISE_EFFICIENCY
        seconds = 0.0
        for layer, rows in ((first, tokens), (last, sampled)):
            for operator in layer.operators(self._share(rows)):
                if operator.kind == "gemm":
                    shape = operator.m, operator.n, operator.k
                    seconds += self.times.price("gemm", self.states_in, *shape)
                elif operator.name != "cross_entropy":
                    seconds += operator.bytes / rate + FUSED_KERNEL_S
        return seconds

    def _sum(self, tokens: int) -> float:
        """One tensor-parallel sum of the hidden states."""
        if self.tp == 1:
            return 0.0
        size = tokens * self.model.hidden_size * self._element
        measured = self.times.collective(ALL_REDUCE, self.tp, size)
        if measured is not None:
            return measured
        group = GroupShape(self.tp)
        return collective_seconds(ALL_REDUCE, size, group, links_of(self.pool)).seconds

    def _message(self, tokens: int) -> float:
        size = tokens * self.model.hidden_size * self._element
        inside = self.tp * self.pp <= self.pool.chips_per_node
        group = GroupShape(2) if inside else GroupShape(1, 2)
        return collective_seconds(SEND, size, group, links_of(self.pool)).seconds


def _cached_elements(block: Block, tp: int) -> int:
    """Numbers one token leaves in the cache of one block on one chip."""
    attention = block.attention
    if isinstance(attention, LatentAttention):
        return attention.kv_lora_rank + attention.qk_rope_head_dim
    assert isinstance(attention, GroupedQueryAttention), attention.signature
    return 2 * max(1, attention.num_kv_heads // tp) * attention.head_dim
