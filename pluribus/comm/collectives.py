"""From an operation on flat memory to a task for the engine: which algorithm, chunk and codec."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from pluribus.comm.algorithms import flat
from pluribus.comm.algorithms.layout import Layout
from pluribus.comm.algorithms.registry import ALGORITHMS, program
from pluribus.comm.codecs.registry import codec as codec_named
from pluribus.comm.codecs.residuals import Residuals
from pluribus.comm.engine import Engine
from pluribus.comm.errors import Mismatch
from pluribus.comm.job import Task
from pluribus.comm.options import Options
from pluribus.comm.program import Builder, Program
from pluribus.comm.reduce import Op, reduction
from pluribus.comm.tuner import Tuner
from pluribus.core.units import KIB, MIB, format_bytes

_PARTED = ("all_gather", "reduce_scatter", "all_to_all", "gather", "scatter")
_LINEAR = (Op.SUM, Op.AVG, Op.PREMUL_SUM)
CHUNK_BYTES = MIB
_CODED_BYTES = 64 * KIB  # smaller sums are not worth encoding
_KEPT_PROGRAMS = 256

End = Callable[[Exception | None], None]


class Collectives:
    """Starts the operations of one epoch of a group.

    Attributes:
        timeout: seconds for one operation.
        residuals: of the codec.
        tuner: chooses algorithms.
    """

    def __init__(
        self,
        engine: Engine,
        tuner: Tuner,
        layout: Layout,
        rank: int,
        timeout: float,
        options: Options,
    ) -> None:
        self.timeout = timeout
        self.tuner = tuner
        self.residuals = Residuals()
        self._engine = engine
        self._layout = layout
        self._rank = rank
        self._options = options
        self._codec = None if options.codec == "none" else codec_named(options.codec)
        self._programs: dict[tuple, Program] = {}
        self._seen: dict[tuple[int, int], int] = {}

    def run(
        self,
        operation: str,
        given: torch.Tensor,
        output: torch.Tensor,
        end: End,
        op: Op | None = None,
        root: int = 0,
        key: int | None = None,
    ) -> None:
        """Starts an operation.

        Args:
            given, output: flat host memory; the same for operations in place.
            end: called when it is over.
            key: tells tensors apart whose codec residuals must not mix; None: no codec.
        """
        size = self._layout.size
        whole = given.numel() if operation in ("reduce_scatter", "all_to_all") else output.numel()
        if operation == "scatter":
            whole = output.numel() * size
        elif operation == "gather":
            whole = given.numel() * size
        elements = whole // size if operation in _PARTED else whole
        self._check(operation, given, output, elements, root)
        num_bytes = whole * output.element_size()
        addable = self.tuner.aggregated and op in _LINEAR and output.dtype is torch.float32
        name = self._choose(operation, num_bytes, addable)
        codec = self._codec if self._may_encode(name, output, op, num_bytes, key) else None
        chunk = max(1, (self._options.chunk_bytes or CHUNK_BYTES) // output.element_size())
        known = (operation, name, elements, chunk, root, codec is not None)
        if known not in self._programs:
            if len(self._programs) >= _KEPT_PROGRAMS:
                self._programs.pop(next(iter(self._programs)))
            self._programs[known] = program(
                operation, name, self._layout, self._rank, elements, chunk, root, codec,
                self._options.streams, self._options.verify and operation == "all_reduce",
            )  # fmt: skip
        steps = self._programs[known]
        residual = None
        if codec is not None and codec.feeds_back and key is not None:
            slot = self._seen.setdefault((key, elements), len(self._seen))
            residual = self.residuals.of(f"{operation}/{slot}", steps.residuals)
        self._submit(operation, steps, given, output, op, codec, residual, end)

    def all_to_all(
        self,
        given: torch.Tensor,
        output: torch.Tensor,
        sent: Sequence[int],
        received: Sequence[int],
        equal: bool,
        end: End,
    ) -> None:
        """The same for parts of any size, in elements."""
        if equal:
            self.run("all_to_all", given, output, end)
            return
        if sum(sent) > given.numel() or sum(received) > output.numel():
            raise Mismatch("all_to_all: the parts do not fit the tensors")
        chunk = (self._options.chunk_bytes or CHUNK_BYTES) // output.element_size()
        builder = Builder(self._rank, self._options.streams)
        flat.direct_all_to_all(builder, sent, received, chunk)
        self._submit("all_to_all", builder.build(), given, output, None, None, None, end)

    def _check(
        self, operation: str, given: torch.Tensor, output: torch.Tensor, elements: int, root: int
    ) -> None:
        size = self._layout.size
        if given.dtype != output.dtype:
            raise Mismatch(f"{operation}: input is {given.dtype}, output {output.dtype}")
        long_in = operation in ("reduce_scatter", "all_to_all") or (
            operation == "scatter" and root == self._rank
        )
        long_out = operation in ("all_gather", "all_to_all") or (
            operation == "gather" and root == self._rank
        )
        wanted = elements * (size if long_in else 1), elements * (size if long_out else 1)
        if (given.numel(), output.numel()) != wanted:
            raise Mismatch(
                f"{operation} over {size} ranks: {given.numel()} elements in and "
                f"{output.numel()} out do not fit together"
            )

    def _choose(self, operation: str, num_bytes: int, addable: bool) -> str:
        known = ALGORITHMS[operation].get(self._options.algorithm)
        if (
            known is not None
            and (addable or not known.aggregated)
            and not (known.crosses and self._layout.is_flat)
        ):
            return known.name
        if self._codec is not None and operation == "all_reduce" and num_bytes >= _CODED_BYTES:
            # Priced without codec, a flat algorithm may look cheaper; and among islands of one
            # rank each, this is the one that encodes.
            return "islands" if len(self._layout.islands) > 1 else "direct"
        return self.tuner.choose(operation, num_bytes, addable)

    def _may_encode(
        self, name: str, output: torch.Tensor, op: Op | None, num_bytes: int, key: int | None
    ) -> bool:
        return (
            self._codec is not None
            and name == "islands"
            and op in _LINEAR
            and output.dtype.is_floating_point
            and num_bytes >= _CODED_BYTES
            and key is not None
        )

    def _submit(
        self,
        operation: str,
        steps: Program,
        given: torch.Tensor,
        output: torch.Tensor,
        op: Op | None,
        codec: object,
        residual: torch.Tensor | None,
        end: End,
    ) -> None:
        size = format_bytes(max(given.numel(), output.numel()) * output.element_size())
        how = None if op is None else reduction(op, output.dtype)
        members = self._layout.size
        self._engine.submit(
            Task(
                f"{operation} of {size}",
                steps,
                given,
                output,
                members,
                how,
                codec,
                residual,
                self.timeout,
                end,
            )
        )
