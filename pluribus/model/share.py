"""The share of one micro-batch that one rank computes."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """Sizes of a micro-batch and of the groups that divide its work.

    Attributes:
        micro_batch: sequences in the micro-batch.
        sequence_length: tokens per sequence, before context parallelism.
        tp: tensor-parallel ranks; heads and FFN columns are divided by it.
        cp: context-parallel ranks; the sequence is divided by it.
        ep: expert-parallel ranks, taken from the data-parallel ones.
        bytes_per_element: width of activations and weights in compute.
        sequence_parallel: whether tokens between tensor-parallel regions are divided by tp
            (Korthikanti et al. 2022, section 4.2.2).
    """

    micro_batch: int
    sequence_length: int
    tp: int = 1
    cp: int = 1
    ep: int = 1
    bytes_per_element: float = 2
    sequence_parallel: bool = True

    @property
    def tokens(self) -> int:
        """Tokens inside tensor-parallel regions."""
        return math.ceil(self.micro_batch * self.sequence_length / self.cp)

    @property
    def shard_tokens(self) -> int:
        """Tokens between tensor-parallel regions: norms, residuals, routers, low-rank inputs."""
        return math.ceil(self.tokens / self.tp) if self.sequence_parallel else self.tokens
