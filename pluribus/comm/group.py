"""The c10d process group: what `dist.all_reduce` and the rest, DDP, FSDP and DTensor call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from pluribus.comm.buffers import as_bytes, elements, overlap
from pluribus.comm.errors import CollectiveError
from pluribus.comm.joining import by_library
from pluribus.comm.member import Member, Tensors
from pluribus.comm.reduce import Op, reduction
from pluribus.comm.work import Work


class Group(Member):
    """A group of ranks on unlike chips, as c10d's callers know it."""

    # Collectives of one tensor.

    @by_library
    def allreduce(self, tensors: Tensors, opts: Any = None) -> Work:
        return self._joined([self._all_reduce(tensor, opts) for tensor in tensors], list(tensors))

    def allreduce_coalesced(self, tensors: Tensors, opts: Any = None) -> Work:
        return self.allreduce(tensors, opts)

    def _all_reduce(self, tensor: torch.Tensor, opts: Any) -> Work:
        op = _op(opts, tensor)
        flat = self._flat([tensor], read=True)
        _premultiply(flat.data, op)
        work, end = self._work([tensor], flat)
        self._collectives.run(
            "all_reduce", flat.data, flat.data, end, op=op.op, key=tensor,
            staging=flat.staging,
        )  # fmt: skip
        return work

    @by_library
    def reduce(self, tensors: Tensors, opts: Any) -> Work:
        op = _op(opts, tensors[0])
        flat = self._flat(tensors, read=True)
        is_root = opts.rootRank == self._rank
        data = flat.data if is_root else flat.data.clone()
        _premultiply(data, op)
        work, end = self._work(list(tensors), flat, write=is_root)
        self._collectives.run("all_reduce", data, data, end, op=op.op, staging=flat.staging)
        return work

    @by_library
    def broadcast(self, tensors: Tensors, opts: Any) -> Work:
        is_root = opts.rootRank == self._rank
        flat = self._flat(tensors, read=is_root)
        work, end = self._work(list(tensors), flat, write=not is_root)
        self._collectives.run(
            "broadcast", flat.data, flat.data, end, root=opts.rootRank, staging=flat.staging
        )
        return work

    @by_library
    def all_gather_single(
        self, output: torch.Tensor, input: torch.Tensor, opts: Any = None
    ) -> Work:
        given = self._flat([input], read=True).data
        flat = self._flat([output], read=False)
        work, end = self._work([output], flat)
        self._collectives.run("all_gather", given, flat.data, end, staging=flat.staging)
        return work

    _allgather_base = all_gather_single

    @by_library
    def reduce_scatter_single(
        self, output: torch.Tensor, input: torch.Tensor, opts: Any = None
    ) -> Work:
        op = _op(opts, input)
        given = self._flat([input], read=True).data
        flat = self._flat([output], read=False)
        if op.op == Op.PREMUL_SUM or overlap(given, flat.data):
            given = given.clone()
            _premultiply(given, op)
        work, end = self._work([output], flat)
        self._collectives.run(
            "reduce_scatter", given, flat.data, end, op=op.op, key=input, staging=flat.staging
        )
        return work

    _reduce_scatter_base = reduce_scatter_single

    @by_library
    def all_to_all_single(
        self,
        output: torch.Tensor,
        input: torch.Tensor,
        output_split_sizes: Sequence[int] = (),
        input_split_sizes: Sequence[int] = (),
        opts: Any = None,
    ) -> Work:
        given, flat = self._flat([input], read=True).data, self._flat([output], read=False)
        work, end = self._work([output], flat)
        self._collectives.all_to_all(
            given,
            flat.data,
            elements(given.numel(), input, input_split_sizes, self._size),
            elements(flat.data.numel(), output, output_split_sizes, self._size),
            not (output_split_sizes or input_split_sizes),
            end,
            flat.staging,
        )
        return work

    alltoall_base = all_to_all_single

    def barrier(self, opts: Any = None) -> Work:
        data = torch.zeros(1, dtype=torch.uint8)
        work, end = self._work([])
        self._collectives.run("all_reduce", data, data, end, op=Op.MAX)
        return work

    # Collectives of lists.

    @by_library
    def allgather(self, outputs: Sequence[Tensors], inputs: Tensors, opts: Any = None) -> Work:
        works = []
        for parts, given in zip(outputs, inputs, strict=True):
            if any(part.numel() != given.numel() for part in parts):
                works += self._gather_unequal(parts, given)
                continue
            flat = self._flat(parts, read=False)
            work, end = self._work(list(parts), flat)
            works.append(work)
            data = self._flat([given], read=True).data
            self._collectives.run("all_gather", data, flat.data, end, staging=flat.staging)
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

    @by_library
    def reduce_scatter(self, outputs: Tensors, inputs: Sequence[Tensors], opts: Any = None) -> Work:
        works = []
        for output, parts in zip(outputs, inputs, strict=True):
            if any(part.numel() != output.numel() for part in parts):
                raise CollectiveError("reduce_scatter needs parts of one size")
            whole = self._flat(parts, read=True).data
            whole = whole.clone() if len(parts) == 1 else whole
            real = torch.view_as_real(output) if output.is_complex() else output
            works.append(self.reduce_scatter_single(real, whole, opts))
        return self._joined(works, list(outputs))

    @by_library
    def gather(self, outputs: Sequence[Tensors], inputs: Tensors, opts: Any) -> Work:
        given = self._flat(inputs, read=True)
        is_root = opts.rootRank == self._rank
        parts = list(outputs[0]) if is_root else []
        flat = self._flat(parts, read=False) if is_root else given
        work, end = self._work(parts, flat, write=is_root)
        self._collectives.run(
            "gather", given.data, flat.data, end, root=opts.rootRank, staging=flat.staging
        )
        return work

    @by_library
    def scatter(self, outputs: Tensors, inputs: Sequence[Tensors], opts: Any) -> Work:
        flat = self._flat(outputs, read=False)
        is_root = opts.rootRank == self._rank
        given = self._flat(list(inputs[0]), read=True).data if is_root else flat.data
        work, end = self._work(list(outputs), flat)
        self._collectives.run(
            "scatter", given, flat.data, end, root=opts.rootRank, staging=flat.staging
        )
        return work

    @by_library
    def alltoall(self, outputs: Tensors, inputs: Tensors, opts: Any = None) -> Work:
        given, flat = self._flat(inputs, read=True).data, self._flat(outputs, read=False)
        work, end = self._work(list(outputs), flat)
        width = 2 if inputs[0].is_complex() else 1
        self._collectives.all_to_all(
            given,
            flat.data,
            [tensor.numel() * width for tensor in inputs],
            [tensor.numel() * width for tensor in outputs],
            False,
            end,
            flat.staging,
        )
        return work

    # Point to point.

    @by_library
    def send(self, tensors: Tensors, dst: int, tag: int = 0) -> Work:
        flat = self._flat(tensors, read=True)
        work, _ = self._work([])
        staging = flat.staging
        if staging is None:
            work.keep = flat.data
            self._engine.send(dst, tag, as_bytes(flat.data), work.end)
            return work
        host = staging.host(flat.data)
        work.keep = host

        def fetched(error: Exception | None) -> None:
            if error is not None:
                work.end(error)
                return
            self._engine.send(dst, tag, as_bytes(host), work.end)

        staging.fetch(host, flat.data, staging.adapter.mark(), fetched)
        return work

    @by_library
    def recv(self, tensors: Tensors, src: int, tag: int = 0) -> Work:
        return self._receive(tensors, src, tag)

    @by_library
    def recv_anysource(self, tensors: Tensors, tag: int = 0) -> Work:
        return self._receive(tensors, None, tag)

    def _receive(self, tensors: Tensors, src: int | None, tag: int) -> Work:
        flat = self._flat(tensors, read=False)
        work, end = self._work(list(tensors), flat)
        staging = flat.staging
        host = flat.data if staging is None else staging.host(flat.data)
        work.keep = host
        if staging is None:
            done = work.end
        else:
            after = staging.adapter.mark()

            def done(error: Exception | None, source: int = -1) -> None:
                work.source = source
                if error is not None:
                    work.end(error)
                    return
                staging.store(flat.data, host, after, end)

        self._engine.receive(src, tag, as_bytes(host), self._timeout, done)
        return work


def _op(opts: Any, tensor: torch.Tensor) -> dist.ReduceOp:
    """Raises where the op is not defined on the tensor's numbers, before any rank has begun."""
    given = getattr(opts, "reduceOp", None)
    op = dist.ReduceOp(Op.SUM) if given is None else given
    reduction(op.op, tensor.dtype)
    return op


def _premultiply(data: torch.Tensor, op: dist.ReduceOp) -> None:
    if op.op == Op.PREMUL_SUM:
        data.mul_(op.factor)
