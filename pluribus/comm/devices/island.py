"""A vendor's library inside an island, joined with the relay to the other islands."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist

from pluribus.comm.algorithms.relay import shard_elements
from pluribus.comm.devices.base import Library
from pluribus.comm.devices.copies import Copies, Staging
from pluribus.comm.reduce import Op

_IN_ISLAND = {Op.AVG: Op.SUM, Op.PREMUL_SUM: Op.SUM}  # the relay divides; factors are in already
End = Callable[[Exception | None], None]


class Island:
    """This rank's island.

    Two libraries, because two orders: what comes before a relay is started as the user calls it,
    what comes after in the order of the calls too, but when relays end. Which of the two comes
    first differs between members.

    Args:
        members: group ranks of the island.
        rank: group rank of this process.
    """

    def __init__(
        self, staging: Staging, before: Library, after: Library, members: Sequence[int], rank: int
    ) -> None:
        self._staging = staging
        self._before = before
        self._after = after
        self._members = len(members)
        self._position = members.index(rank)
        self._unfinished: deque[_Gathering] = deque()

    def can(self, op: Op | None, tensor: torch.Tensor) -> bool:
        """Whether the library adds up such tensors."""
        return op is not None and self._before.can(_IN_ISLAND.get(op, op), tensor.dtype)

    def all_reduce(
        self,
        data: torch.Tensor,
        op: Op,
        relay: Callable[[torch.Tensor, Copies, End], None],
        align: int,
        end: End,
    ) -> None:
        """Reduce-scatter in the library, all-reduce of the shards by ``relay``, all-gather.

        Args:
            data: flat device tensor, in place.
            relay: starts the all-reduce of this member's shard: (shard, copies, end).
            align: shards are multiples of it.
        """
        n = data.numel()
        shard = shard_elements(n, self._members, align)
        whole = data
        if shard * self._members != n:
            whole = data.new_zeros(shard * self._members)
            whole[:n] = data
        piece = torch.empty(shard, dtype=data.dtype, device=data.device)
        options = dist.ReduceScatterOptions()
        options.reduceOp = dist.ReduceOp(_IN_ISLAND.get(op, op))
        scattered = self._before.start(
            lambda backend: backend._reduce_scatter_base(piece, whole, options),
            self._staging.adapter.mark(),
            [piece, whole],
        )
        gathering = _Gathering(data, whole, piece, end)
        self._unfinished.append(gathering)
        own = piece[: max(0, min(shard, n - shard * self._position))]
        relay(own, self._staging.copies(scattered), lambda error: self._relayed(gathering, error))

    def _relayed(self, gathering: _Gathering, error: Exception | None) -> None:
        """A shard is what it should be on all islands, or never will be; in the engine's thread."""
        gathering.relayed = True
        if error is not None:
            self._unfinished.clear()  # the group has ended, and tells all of them so
            self.abort()
            gathering.end(error)
            return
        while self._unfinished and self._unfinished[0].relayed:
            self._gather(self._unfinished.popleft())

    def _gather(self, gathering: _Gathering) -> None:
        data, whole, piece, end = gathering.data, gathering.whole, gathering.piece, gathering.end
        try:
            mark = self._after.start(
                lambda backend: backend._allgather_base(whole, piece),
                self._staging.adapter.mark(),
                [piece, whole],
            )
        except RuntimeError as error:
            end(error)
            return
        if whole is data:
            self._staging.watch(mark, end)
        else:
            self._staging.watch(mark, self._staging.behind(lambda: _head(data, whole), end))

    def abort(self) -> None:
        """Ends what the library has under way."""
        self._before.abort()
        self._after.abort()


def _head(data: torch.Tensor, whole: torch.Tensor) -> None:
    data.copy_(whole[: data.numel()])


class _Gathering:
    """What is left of an all-reduce once its shard has been relayed."""

    def __init__(
        self, data: torch.Tensor, whole: torch.Tensor, piece: torch.Tensor, end: End
    ) -> None:
        self.data = data
        self.whole = whole
        self.piece = piece
        self.end = end
        self.relayed = False
