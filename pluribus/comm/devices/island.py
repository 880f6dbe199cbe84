"""A vendor's library inside an island, joined with the relay to the other islands."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from pluribus.comm.algorithms.layout import Layout
from pluribus.comm.algorithms.relay import others, shard_elements
from pluribus.comm.devices.base import Library, Mark
from pluribus.comm.devices.copies import Copies, Staging
from pluribus.comm.reduce import Op

_IN_ISLAND = {Op.AVG: Op.SUM, Op.PREMUL_SUM: Op.SUM}  # the relay divides; factors are in already
End = Callable[[Exception | None], None]
Relay = Callable[[torch.Tensor, torch.Tensor, Copies, End], None]


@dataclass(eq=False, slots=True)
class _Rest:
    """What is left of an operation once its part has been relayed.

    Attributes:
        before: marks to be reached as well.
        gathers: (whole, shard) for the library; None: nothing.
        move: puts results where the caller wants them.
    """

    end: End
    before: Sequence[Mark] = ()
    gathers: tuple[torch.Tensor, torch.Tensor] | None = None
    move: Callable[[], None] = lambda: None
    relayed: bool = False


class Island:
    """This rank's island.

    Two libraries, because two orders: what comes before a relay is started as the user calls it,
    what comes after in the order of the calls too, but when relays end. Which of the two comes
    first differs between members.

    Args:
        layout: of the group.
        rank: group rank of this process.
    """

    def __init__(
        self, staging: Staging, before: Library, after: Library, layout: Layout, rank: int
    ) -> None:
        self._staging = staging
        self._before = before
        self._after = after
        self._layout = layout
        self._home = layout.island_of(rank)
        self._members = layout.islands[self._home]
        self._position = self._members.index(rank)
        self._unfinished: deque[_Rest] = deque()

    def can(self, op: Op | None, tensor: torch.Tensor) -> bool:
        """Whether the library moves such tensors, and adds them up if there is an op."""
        return self._before.can(Op.SUM if op is None else _IN_ISLAND.get(op, op), tensor.dtype)

    def start(
        self, operation: str, given: torch.Tensor, output: torch.Tensor, op: Op | None, root: int,
        relay: Relay, align: int, end: End,
    ) -> None:  # fmt: skip
        """Starts an operation of `algorithms.relay`.

        Args:
            given, output: flat device tensors.
            relay: starts what goes over paths: (given, output, copies, end).
            align: shards of an all-reduce are multiples of it.
        """
        if operation == "all_reduce":
            assert op is not None
            self._all_reduce(output, op, relay, align, end)
        elif operation == "reduce_scatter":
            assert op is not None
            self._reduce_scatter(given, output, op, relay, end)
        elif operation == "all_gather":
            self._all_gather(given, output, relay, end)
        else:
            self._broadcast(output, root, relay, end)

    def _all_reduce(self, data: torch.Tensor, op: Op, relay: Relay, align: int, end: End) -> None:
        """Reduce-scatter in the library, all-reduce of the shards by ``relay``, all-gather."""
        n = data.numel()
        shard = shard_elements(n, len(self._members), align)
        whole = data
        if shard * len(self._members) != n:
            whole = data.new_zeros(shard * len(self._members))
            whole[:n] = data
        piece = data.new_empty(shard)
        scattered = self._scatter(piece, whole, op)
        own = piece[: self._length(shard, n)]
        rest = _Rest(end, gathers=(whole, piece), move=lambda: _head(data, whole))
        self._relay(relay, own, own, scattered, rest, ordered=True)

    def _reduce_scatter(
        self, given: torch.Tensor, output: torch.Tensor, op: Op, relay: Relay, end: End
    ) -> None:
        """In the library everybody's sum, and a shard of the sums for the other islands; those the
        relay exchanges."""
        n, members = output.numel(), list(self._members)
        shard, starts = others(self._layout, self._home, n)
        parts = given.view(-1, n)
        whole = given.new_zeros(len(members), n + shard)
        whole[:, :n] = parts[members]
        for_others = given.new_zeros(len(members) * shard)
        for_others[: n * len(starts)] = parts[list(starts)].view(-1)
        whole[:, n:] = for_others.view(len(members), shard)
        piece = given.new_empty(n + shard)
        scattered = self._scatter(piece, whole.view(-1), op)
        sums = piece[n : n + self._length(shard, n * len(starts))]
        rest = _Rest(end, move=lambda: output.copy_(piece[:n]))
        self._relay(relay, sums, piece[:n], scattered, rest)

    def _scatter(self, piece: torch.Tensor, whole: torch.Tensor, op: Op) -> Mark:
        options = dist.ReduceScatterOptions()
        options.reduceOp = dist.ReduceOp(_IN_ISLAND.get(op, op))
        return self._before.start(
            lambda backend: backend._reduce_scatter_base(piece, whole, options),
            self._staging.adapter.mark(),
            [piece, whole],
        )

    def _all_gather(
        self, given: torch.Tensor, output: torch.Tensor, relay: Relay, end: End
    ) -> None:
        """The members' parts in the library; of the others' a shard by ``relay``, and all shards in
        the library."""
        n, members = given.numel(), list(self._members)
        shard, starts = others(self._layout, self._home, n)
        near = given.new_empty(len(members) * n)
        far = given.new_empty(len(members) * shard)
        piece = given.new_empty(shard)
        start = self._staging.adapter.mark()
        gathered = self._before.start(
            lambda backend: backend._allgather_base(near, given), start, [near, given]
        )

        def place() -> None:
            rows = output.view(-1, n)
            rows[members] = near.view(-1, n)
            rows[list(starts)] = far[: n * len(starts)].view(-1, n)

        own = piece[: self._length(shard, n * len(starts))]
        rest = _Rest(end, [gathered], (far, piece), place)
        self._relay(relay, given, own, start, rest, ordered=True)

    def _broadcast(self, data: torch.Tensor, root: int, relay: Relay, end: End) -> None:
        """In the root's island by the library, from whose members the relay takes it on; in others
        a shard by ``relay``, and all shards in the library."""
        if root in self._members:
            options = dist.BroadcastOptions()
            options.rootRank = self._members.index(root)
            here = self._before.start(
                lambda backend: backend.broadcast([data], options),
                self._staging.adapter.mark(),
                [data],
            )
            self._relay(relay, data, data, here, _Rest(end, [here]))
            return
        n = data.numel()
        shard = shard_elements(n, len(self._members))
        whole = data.new_empty(shard * len(self._members))
        piece = data.new_empty(shard)
        own = piece[: self._length(shard, n)]
        rest = _Rest(end, gathers=(whole, piece), move=lambda: _head(data, whole))
        self._relay(relay, own, own, self._staging.adapter.mark(), rest, ordered=True)

    def _length(self, shard: int, n: int) -> int:
        """Of this member's shard of ``n`` elements, whose last ones may be short or empty."""
        return max(0, min(shard, n - shard * self._position))

    def _relay(
        self, relay: Relay, given: torch.Tensor, output: torch.Tensor, after: Mark, rest: _Rest,
        ordered: bool = False,
    ) -> None:  # fmt: skip
        if ordered:
            self._unfinished.append(rest)

        def relayed(error: Exception | None) -> None:
            """This rank's part is what it should be, or never will be; in the engine's thread."""
            if error is not None:
                self._unfinished.clear()  # the group has ended, and tells all of them so
                self.abort()
                rest.end(error)
                return
            rest.relayed = True
            if not ordered:
                self._finish(rest)
            while self._unfinished and self._unfinished[0].relayed:
                self._finish(self._unfinished.popleft())

        relay(given, output, self._staging.copies(after), relayed)

    def _finish(self, rest: _Rest) -> None:
        marks = list(rest.before)
        if rest.gathers is not None:
            whole, piece = rest.gathers
            try:
                marks.append(
                    self._after.start(
                        lambda backend: backend._allgather_base(whole, piece),
                        self._staging.adapter.mark(),
                        [piece, whole],
                    )
                )
            except RuntimeError as error:
                rest.end(error)
                return
        ended = self._staging.behind(rest.move, rest.end)
        for mark in reversed(marks):
            ended = self._reached(mark, ended)
        ended(None)

    def _reached(self, mark: Mark, then: End) -> End:
        def ended(error: Exception | None) -> None:
            if error is not None:
                then(error)
            else:
                self._staging.watch(mark, then)

        return ended

    def abort(self) -> None:
        """Ends what the library has under way."""
        self._before.abort()
        self._after.abort()


def _head(data: torch.Tensor, whole: torch.Tensor) -> None:
    if whole is not data:
        data.copy_(whole[: data.numel()])
