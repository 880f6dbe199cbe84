"""One forward step of an inference engine: a chunk of a prompt, new tokens of running requests."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from pluribus.core.units import DTYPE_BYTES
from pluribus.hardware.pool import Pool
from pluribus.model.attention import GroupedQueryAttention
from pluribus.model.block import Block
from pluribus.model.experts import Experts
from pluribus.model.latent_attention import LatentAttention
from pluribus.model.layer import Layer
from pluribus.model.model import Model
from pluribus.model.operator import Operator
from pluribus.predict.algorithms import ALL_REDUCE, SEND, GroupShape
from pluribus.predict.collectives import collective_seconds
from pluribus.predict.link_classes import links_of
from pluribus.predict.operator_tables import OperatorTimes, operator_times
from pluribus.spec.profile import Profile


@dataclass(frozen=True, kw_only=True, eq=False)
class Deployment:
    """A model on chips of one pool, as one engine serves it.

    Attributes:
        tp: tensor-parallel chips of a stage; experts are divided over them as well.
        pp: pipeline stages, with blocks divided evenly.
        precision: of matrix products.
        weight_precision: of weights in memory; None is ``precision``.
        cache_precision: of cached keys and values; None is bf16, or fp32 where products are.
        profile: whose operator tables are used; formulas where it has none.
    """

    model: Model
    pool: Pool
    tp: int = 1
    pp: int = 1
    precision: str = "bf16"
    weight_precision: str | None = None
    cache_precision: str | None = None
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
            for operator in block.operators(1, tokens, tp=self.tp, bytes_per_element=self._element):
                once += self._operator(operator, self.precision)
            if isinstance(block.feed_forward, Experts):
                once += self._experts(block.feed_forward, tokens)
            total += count * (once + 2 * self._sum(tokens))
        total += self._ends(tokens, decoding + (chunk > 0))
        return total + (self.pp - 1) * self._message(tokens)

    @property
    def _element(self) -> float:
        return DTYPE_BYTES[self.states_in]

    def _operator(self, operator: Operator, precision: str) -> float:
        """Products and memory traffic of one layer; attention and experts are priced apart."""
        if operator.kind == "gemm":
            return self._product(operator.m, operator.n * operator.count, operator.k, precision)
        if operator.kind in ("elementwise", "lookup") and "." not in operator.name:
            size = max(1, round(operator.bytes))
            return self.times.price("elementwise", self.states_in, size)
        return 0.0

    def _product(self, m: int, n: int, k: int, precision: str) -> float:
        seconds = self.times.price("gemm", precision, m, n, k)
        saved = DTYPE_BYTES[precision] - DTYPE_BYTES[self.weights_in]
        if precision != self.precision or saved <= 0:
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
        """Routed experts of one block: each chip has its part of every expert."""
        rows = tokens * experts.top_k
        width = max(1, experts.intermediate_size // self.tp)
        if self.times.table("experts", self.precision):
            shape = (rows, experts.hidden_size, width, experts.num_experts)
            return self.times.price("experts", self.precision, *shape)
        # Only experts that a token visits are read: of E with k visits per token and routing
        # without preference, E (1 − (1 − k / E)^tokens) are.
        idle = (1 - experts.top_k / experts.num_experts) ** tokens
        touched = max(1, round(experts.num_experts * (1 - idle)))
        shape = (rows, experts.hidden_size, width, touched)
        return self.times.price("experts", self.precision, *shape)

    def _ends(self, tokens: int, sampled: int) -> float:
        """The embedding of all tokens, and logits of those that something is drawn from."""
        first, last = self.model.layers[0], self.model.layers[-1]
        seconds = 0.0
        for layer, rows in ((first, tokens), (last, sampled)):
            seconds += sum(
                self._operator(operator, self.states_in)
                for operator in self._operators_of_end(layer, rows)
            )
        return seconds

    def _operators_of_end(self, layer: Layer, rows: int) -> tuple[Operator, ...]:
        operators = layer.operators(1, rows, tp=self.tp, bytes_per_element=self._element)
        return tuple(operator for operator in operators if operator.name != "cross_entropy")

    def _sum(self, tokens: int) -> float:
        """One tensor-parallel sum of the hidden states."""
        if self.tp == 1:
            return 0.0
        size = round(tokens * self.model.hidden_size * self._element)
        measured = self.times.seconds(ALL_REDUCE, "", self.tp, size)
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
