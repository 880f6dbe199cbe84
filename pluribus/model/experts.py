"""Mixture of experts: a router, routed experts, and experts shared by all tokens."""

from __future__ import annotations

from dataclasses import dataclass

from pluribus.model.feed_forward import DenseFeedForward, FeedForward
from pluribus.model.layer import Recompute
from pluribus.model.operator import Operator, elementwise, gemm, grouped_gemm
from pluribus.model.share import Share

_ROUTER_BYTES = 4  # routers work in fp32


@dataclass(frozen=True)
class Experts(FeedForward):
    """Routed SwiGLU experts of which each token visits `top_k`, with balanced routing.

    Experts are divided over ep (whole experts) and each expert over tp (its columns). The
    router is whole on every rank and runs on the rank's part of the sequence.

    Attributes:
        hidden_size: width of its input and output.
        num_experts: routed experts.
        top_k: routed experts per token.
        intermediate_size: width of one routed expert.
        shared: the experts every token visits, as one network (DeepSeek, Qwen2-MoE), or None.
        shared_gate: a sigmoid gate on the shared output (Qwen2-MoE).
    """

    hidden_size: int
    num_experts: int
    top_k: int
    intermediate_size: int
    shared: DenseFeedForward | None = None
    shared_gate: bool = False

    @property
    def signature(self) -> str:
        text = f"e{self.num_experts}-t{self.top_k}-f{self.intermediate_size}"
        if self.shared:
            text += f"-shared-{self.shared.signature}"
        return text + ("-sgate" if self.shared_gate else "")

    @property
    def active_parameters(self) -> int:
        idle = (self.num_experts - self.top_k) * self._expert_parameters
        return self.parameters_per_rank(1, 1) - idle

    @property
    def _expert_parameters(self) -> int:
        return 3 * self.hidden_size * self.intermediate_size

    def parameters_per_rank(self, tp: int, ep: int) -> int:
        assert self.supports_tp(tp), f"tp={tp} does not divide {self.signature}"
        router = self.num_experts * self.hidden_size
        routed = self._local(ep) * self._expert_parameters // tp
        shared = self.shared.parameters_per_rank(tp, ep) if self.shared else 0
        return router + routed + shared + (self.hidden_size if self.shared_gate else 0)

    def operators(self, share: Share) -> tuple[Operator, ...]:
        h, f, e = self.hidden_size, self.intermediate_size // share.tp, share.bytes_per_element
        part, local = share.shard_tokens, self._local(share.ep)
        # Each of the ep ranks sends away as many token-expert pairs as it receives.
        rows = share.tokens * self.top_k
        steps = [
            gemm("router", part, self.num_experts, h, e),
            elementwise("route", 2 * part * self.num_experts, _ROUTER_BYTES),
            elementwise("dispatch", 2 * rows * h, e),
            grouped_gemm("experts.gate_up_proj", rows, 2 * f, h, local, e),
            elementwise("experts.activation", 3 * rows * f, e),
            grouped_gemm("experts.down_proj", rows, h, f, local, e),
            elementwise("combine", (rows + part) * h, e),
        ]
        if self.shared:
            steps += self.shared.operators(share)
            steps.append(elementwise("add_shared", 3 * part * h, e))
        if self.shared_gate:
            steps.append(gemm("shared_gate", part, 1, h, e))
        return tuple(steps)

    def saved_bytes(self, share: Share, recompute: Recompute) -> float:
        h, f = self.hidden_size, self.intermediate_size // share.tp
        routes = share.shard_tokens * self.num_experts * _ROUTER_BYTES
        # Per pair: the dispatched input, the output before weighting, and gate, up, act(gate)
        # and their product of the expert (selective: gate and up).
        pair = 2 * h + (2 if recompute == "selective" else 4) * f
        kept = share.tokens * self.top_k * pair * share.bytes_per_element
        if self.shared:
            kept += self.shared.saved_bytes(share, recompute)
        if self.shared_gate:
            kept += share.shard_tokens * h * share.bytes_per_element
        return routes + kept

    def supports_tp(self, tp: int) -> bool:
        shared = self.shared is None or self.shared.supports_tp(tp)
        return tp >= 1 and self.intermediate_size % tp == 0 and shared

    def supports_ep(self, ep: int) -> bool:
        return ep >= 1 and self.num_experts % ep == 0

    def _local(self, ep: int) -> int:
        assert self.supports_ep(ep), f"ep={ep} does not divide {self.num_experts} experts"
        return self.num_experts // ep
