"""The c10d process group: what `dist.all_reduce` and the rest, DDP, FSDP and DTensor call."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import torch
import torch.distributed as dist

from pluribus.comm import meeting, tuner
from pluribus.comm.algorithms.layout import Layout
from pluribus.comm.buffers import as_bytes, elements, flatten, overlap
from pluribus.comm.collectives import CHUNK_BYTES, Collectives
from pluribus.comm.costs import Links
from pluribus.comm.engine import Engine
from pluribus.comm.errors import CollectiveError, PeerDied
from pluribus.comm.options import Options
from pluribus.comm.reduce import Op
from pluribus.comm.transports.base import TransportError
from pluribus.comm.tuner import Tuner
from pluribus.comm.work import Work

_CALLBACK_THREADS = 16  # callbacks may wait for collectives whose callbacks wait in turn
Tensors = Sequence[torch.Tensor]


class Group(dist.ProcessGroup):
    """A group of ranks on unlike chips.

    Args:
        store: of this group only.
        rank, size: of this process in the group, and of the group.
        timeout: seconds for one operation.
        ranks: global ranks, for messages.
    """

    def __init__(
        self,
        store: dist.Store,
        rank: int,
        size: int,
        timeout: float,
        ranks: tuple[int, ...],
        options: Options,
    ) -> None:
        super().__init__(rank, size)
        self._store = store
        self._rank = rank
        self._size = size
        self._timeout = timeout
        self._ranks = ranks or tuple(range(size))
        self.options = options
        self._group_name = self._group_desc = ""
        self._address = options.address or meeting.own_address(store)
        self._callbacks = ThreadPoolExecutor(_CALLBACK_THREADS, "pluribus-callback")
        self._engine = Engine(options.stall_seconds, self._name)
        self._collectives = self._connect(0)

    def _name(self, rank: int) -> str:
        return f"rank {self._ranks[rank]}" if rank < len(self._ranks) else "the aggregator"

    def _connect(self, epoch: int) -> Collectives:
        store = dist.PrefixStore(f"epoch{epoch}", self._store)
        try:
            mesh, places = meeting.meet(
                store, self._rank, self._size, epoch, self.options, self._address, self._timeout
            )
        except TransportError as error:
            raise PeerDied(f"{self._name(error.peer)}: {error}", [error.peer]) from error
        self._engine.connect(mesh)
        self.layout = Layout.of([place.island for place in places])
        self._topology = tuner.digest(self.layout, [place.host for place in places])
        if self._rank == 0:  # all must choose alike, so one rank's links are everybody's
            known = tuner.load(tuner.cache_folder(), self._topology) or tuner.TYPICAL
            store.set("links", json.dumps(asdict(known)))
        links = Links.from_json(json.loads(store.get("links")))
        chunk = self.options.chunk_bytes or CHUNK_BYTES
        chooser = Tuner(
            self.layout, links, chunk, aggregated=max(mesh.data, default=0) >= self._size
        )
        return Collectives(self._engine, chooser, self.layout, self._rank, self._timeout,
                           self.options)  # fmt: skip

    def probe(self) -> Links:
        """Measures the links and chooses algorithms by them from now on; all members call it.

        Rank 0 keeps the figures for later groups on the same hosts.
        """
        links = tuner.probe(self, self.layout)
        if self._rank == 0:
            tuner.save(links, tuner.cache_folder(), self._topology)
        chunk = self.options.chunk_bytes or CHUNK_BYTES
        aggregated = self._collectives.tuner.aggregated
        self._collectives.tuner = Tuner(self.layout, links, chunk, aggregated)
        return links

    # Who we are.

    def rank(self) -> int:
        return self._rank

    def size(self) -> int:
        return self._size

    def name(self) -> str:
        return "pluribus"

    getRank, getSize, getBackendName = rank, size, name  # noqa: N815

    def getGroupName(self) -> str:  # noqa: N802
        return self._group_name

    def setGroupName(self, name: str) -> None:  # noqa: N802
        self._group_name = name

    def getGroupDesc(self) -> str:  # noqa: N802
        return self._group_desc

    def setGroupDesc(self, desc: str) -> None:  # noqa: N802
        self._group_desc = desc

    _set_group_name, _set_group_desc = setGroupName, setGroupDesc
    group_name = property(getGroupName)
    group_desc = property(getGroupDesc)

    def set_timeout(self, timeout: Any) -> None:
        self._timeout = self._collectives.timeout = timeout.total_seconds()

    # Ends and beginnings.

    def abort(self) -> None:
        """Ends every pending operation, here and on all peers, with `Aborted`."""
        self._engine.abort(f"{self._name(self._rank)} aborted the group")

    def shutdown(self) -> None:
        """Leaves the group; peers that need nothing more of this rank go on."""
        self._engine.close()
        self._callbacks.shutdown(wait=False)

    def reconfigure(self, members: Sequence[int], epoch: int) -> None:
        """Makes the group anew of some of its ranks, in the same processes.

        All of ``members`` call it, with the same arguments, after a failure or at rest. Ranks
        are counted anew in the order of ``members``; what the old epoch had under way has ended
        with an error, and nothing of it is ever taken for the new one's.

        Args:
            members: ranks of the group as it is now.
            epoch: higher than any before.
        """
        members = list(members)
        if self._rank not in members:
            raise CollectiveError(f"{self._name(self._rank)} is none of the members {members}")
        self._ranks = tuple(self._ranks[member] for member in members)
        self._rank, self._size = members.index(self._rank), len(members)
        residuals = self._collectives.residuals
        self._collectives = self._connect(epoch)
        residuals.forget()

    @property
    def residuals(self) -> Any:
        """What the codec has not said yet; belongs into checkpoints (``state_dict``)."""
        return self._collectives.residuals

    # Collectives of one tensor.

    def allreduce(self, tensors: Tensors, opts: Any = None) -> Work:
        return self._joined([self._all_reduce(tensor, opts) for tensor in tensors], list(tensors))

    def allreduce_coalesced(self, tensors: Tensors, opts: Any = None) -> Work:
        return self.allreduce(tensors, opts)

    def _all_reduce(self, tensor: torch.Tensor, opts: Any) -> Work:
        op = _op(opts)
        flat = flatten([tensor], read=True)
        _premultiply(flat.data, op)
        work = self._work([tensor], flat.back)
        self._collectives.run(
            "all_reduce", flat.data, flat.data, work.end, op=op.op, key=tensor.data_ptr()
        )
        return work

    def reduce(self, tensors: Tensors, opts: Any) -> Work:
        op = _op(opts)
        flat = flatten(tensors, read=True)
        is_root = opts.rootRank == self._rank
        data = flat.data if is_root else flat.data.clone()
        _premultiply(data, op)
        work = self._work(list(tensors), flat.back if is_root else None)
        self._collectives.run("all_reduce", data, data, work.end, op=op.op)
        return work

    def broadcast(self, tensors: Tensors, opts: Any) -> Work:
        flat = flatten(tensors, read=opts.rootRank == self._rank)
        back = None if opts.rootRank == self._rank else flat.back
        work = self._work(list(tensors), back)
        self._collectives.run("broadcast", flat.data, flat.data, work.end, root=opts.rootRank)
        return work

    def all_gather_single(
        self, output: torch.Tensor, input: torch.Tensor, opts: Any = None
    ) -> Work:
        given = flatten([input], read=True).data
        flat = flatten([output], read=False)
        work = self._work([output], flat.back)
        self._collectives.run("all_gather", given, flat.data, work.end)
        return work

    _allgather_base = all_gather_single

    def reduce_scatter_single(
        self, output: torch.Tensor, input: torch.Tensor, opts: Any = None
    ) -> Work:
        op = _op(opts)
        given = flatten([input], read=True).data
        flat = flatten([output], read=False)
        if op.op == Op.PREMUL_SUM or overlap(given, flat.data):
            given = given.clone()
            _premultiply(given, op)
        work = self._work([output], flat.back)
        self._collectives.run("reduce_scatter", given, flat.data, work.end, op=op.op)
        return work

    _reduce_scatter_base = reduce_scatter_single

    def all_to_all_single(
        self,
        output: torch.Tensor,
        input: torch.Tensor,
        output_split_sizes: Sequence[int] = (),
        input_split_sizes: Sequence[int] = (),
        opts: Any = None,
    ) -> Work:
        given, flat = flatten([input], read=True).data, flatten([output], read=False)
        work = self._work([output], flat.back)
        self._collectives.all_to_all(
            given,
            flat.data,
            elements(given.numel(), input, input_split_sizes, self._size),
            elements(flat.data.numel(), output, output_split_sizes, self._size),
            not (output_split_sizes or input_split_sizes),
            work.end,
        )
        return work

    alltoall_base = all_to_all_single

    def barrier(self, opts: Any = None) -> Work:
        data = torch.zeros(1, dtype=torch.uint8)
        work = self._work([])
        self._collectives.run("all_reduce", data, data, work.end, op=Op.MAX)
        return work

    # Collectives of lists.

    def allgather(self, outputs: Sequence[Tensors], inputs: Tensors, opts: Any = None) -> Work:
        works = []
        for parts, given in zip(outputs, inputs, strict=True):
            if any(part.numel() != given.numel() for part in parts):
                works += self._gather_unequal(parts, given)
                continue
            flat = flatten(parts, read=False)
            works.append(self._work(list(parts), flat.back))
            data = flatten([given], read=True).data
            self._collectives.run("all_gather", data, flat.data, works[-1].end)
        return self._joined(works, [part for parts in outputs for part in parts])

    def _gather_unequal(self, parts: Tensors, given: torch.Tensor) -> list[Work]:
        parts[self._rank].copy_(given)
        works = []
        for root, part in enumerate(parts):
            options = dist.BroadcastOptions()
            options.rootRank = root
            works.append(self.broadcast([part], options))
        return works

    def allgather_coalesced(
        self, outputs: Sequence[Tensors], inputs: Tensors, opts: Any = None
    ) -> Work:
        # One list per rank here, one list per tensor there.
        return self.allgather([list(parts) for parts in zip(*outputs, strict=True)], inputs, opts)

    def all_gather_single_coalesced(
        self, outputs: Tensors, inputs: Tensors, opts: Any = None
    ) -> Work:
        pairs = zip(outputs, inputs, strict=True)
        return self._joined([self.all_gather_single(o, i, opts) for o, i in pairs], list(outputs))

    allgather_into_tensor_coalesced = all_gather_single_coalesced

    def reduce_scatter_single_coalesced(
        self, outputs: Tensors, inputs: Tensors, opts: Any = None
    ) -> Work:
        pairs = zip(outputs, inputs, strict=True)
        works = [self.reduce_scatter_single(o, i, opts) for o, i in pairs]
        return self._joined(works, list(outputs))

    reduce_scatter_tensor_coalesced = reduce_scatter_single_coalesced

    def reduce_scatter(self, outputs: Tensors, inputs: Sequence[Tensors], opts: Any = None) -> Work:
        works = []
        for output, parts in zip(outputs, inputs, strict=True):
            if any(part.numel() != output.numel() for part in parts):
                raise CollectiveError("reduce_scatter needs parts of one size")
            whole = flatten(parts, read=True).data
            whole = whole.clone() if len(parts) == 1 else whole
            real = torch.view_as_real(output) if output.is_complex() else output
            works.append(self.reduce_scatter_single(real, whole, opts))
        return self._joined(works, list(outputs))

    def gather(self, outputs: Sequence[Tensors], inputs: Tensors, opts: Any) -> Work:
        given = flatten(inputs, read=True).data
        is_root = opts.rootRank == self._rank
        parts = list(outputs[0]) if is_root else []
        flat = flatten(parts, read=False) if is_root else None
        work = self._work(parts, flat.back if flat else None)
        output = flat.data if flat else given
        self._collectives.run("gather", given, output, work.end, root=opts.rootRank)
        return work

    def scatter(self, outputs: Tensors, inputs: Sequence[Tensors], opts: Any) -> Work:
        flat = flatten(outputs, read=False)
        is_root = opts.rootRank == self._rank
        given = flatten(list(inputs[0]), read=True).data if is_root else flat.data
        work = self._work(list(outputs), flat.back)
        self._collectives.run("scatter", given, flat.data, work.end, root=opts.rootRank)
        return work

    def alltoall(self, outputs: Tensors, inputs: Tensors, opts: Any = None) -> Work:
        given, flat = flatten(inputs, read=True).data, flatten(outputs, read=False)
        work = self._work(list(outputs), flat.back)
        width = 2 if inputs[0].is_complex() else 1
        self._collectives.all_to_all(
            given,
            flat.data,
            [tensor.numel() * width for tensor in inputs],
            [tensor.numel() * width for tensor in outputs],
            False,
            work.end,
        )
        return work

    # Point to point.

    def send(self, tensors: Tensors, dst: int, tag: int = 0) -> Work:
        flat = flatten(tensors, read=True)
        work = self._work([])
        work.keep = flat.data
        self._engine.send(dst, tag, as_bytes(flat.data), work.end)
        return work

    def recv(self, tensors: Tensors, src: int, tag: int = 0) -> Work:
        return self._receive(tensors, src, tag)

    def recv_anysource(self, tensors: Tensors, tag: int = 0) -> Work:
        return self._receive(tensors, None, tag)

    def _receive(self, tensors: Tensors, src: int | None, tag: int) -> Work:
        flat = flatten(tensors, read=False)
        work = self._work(list(tensors), flat.back)
        work.keep = flat.data
        self._engine.receive(src, tag, as_bytes(flat.data), self._timeout, work.end)
        return work

    def _work(self, result: list[torch.Tensor], after: Any = None) -> Work:
        return Work(result, self._callbacks, after)

    def _joined(self, works: list[Work], result: list[torch.Tensor]) -> Work:
        """One work for several; they end in the order they began, or all with one error."""
        if len(works) == 1:
            return works[0]
        whole = self._work(result)
        left = [len(works)]

        def one_ended(error: Exception | None) -> None:
            left[0] -= 1
            if error is not None or not left[0]:
                whole.end(error)

        if not works:
            whole.end(None)
        for work in works:
            work.then(one_ended)
        return whole


def _op(opts: Any) -> dist.ReduceOp:
    op = getattr(opts, "reduceOp", None)
    return dist.ReduceOp(Op.SUM) if op is None else op


def _premultiply(data: torch.Tensor, op: dist.ReduceOp) -> None:
    if op.op == Op.PREMUL_SUM:
        data.mul_(op.factor)
