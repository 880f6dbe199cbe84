"""From an operation on flat memory to a task for the engine: which algorithm, chunk and codec."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from pluribus.comm.algorithms import flat, relay
from pluribus.comm.algorithms.layout import Layout
from pluribus.comm.algorithms.registry import ALGORITHMS, compare_digests, program
from pluribus.comm.codecs.base import Codec
from pluribus.comm.codecs.registry import codec as codec_named
from pluribus.comm.codecs.residuals import Residuals
from pluribus.comm.codecs.slots import Slots
from pluribus.comm.costs import TYPICAL
from pluribus.comm.devices.copies import Copies, Staging
from pluribus.comm.devices.island import Island
from pluribus.comm.devices.staged import staged
from pluribus.comm.engine import Engine
from pluribus.comm.errors import Mismatch
from pluribus.comm.job import Task
from pluribus.comm.learning import Learning, Moment
from pluribus.comm.options import Options
from pluribus.comm.program import Builder, Program
from pluribus.comm.reduce import Op, reduction
from pluribus.comm.scratch import Scratch
from pluribus.comm.tuner import Tuner, coding_of
from pluribus.core.units import KIB, MIB, format_bytes

_PARTED = ("all_gather", "reduce_scatter", "all_to_all", "gather", "scatter")
_COUNTED = ("all_reduce", "all_gather", "reduce_scatter", "broadcast")
_LINEAR = (Op.SUM, Op.AVG, Op.PREMUL_SUM)
CHUNK_BYTES = MIB
_CODED_BYTES = 64 * KIB  # smaller sums are not worth encoding
_KEPT_PROGRAMS = 256

STAGING_BYTES = 64 * MIB  # of host memory per operation and rank, where the algorithm needs no more

End = Callable[[Exception | None], None]


class _Plan(NamedTuple):
    """What a program depends on."""

    operation: str
    name: str
    elements: int
    chunk: int
    root: int
    codec: Codec | None
    staged: bool
    by_library: bool
    element_size: int


class Collectives:
    """Starts the operations of one epoch of a group.

    Attributes:
        timeout: seconds for one operation.
        residuals: of the codec.
        tuner: chooses algorithms.
        relays: whether some island adds up by a library of its vendor.
        island: this rank's, if it is one of those.
        forced: an algorithm to use wherever it fits, for measurements; the same on every rank.
        learned: called when the tuner has learned something new.
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
        self.relays = False
        self.island: Island | None = None
        self.forced = options.algorithm
        self.learned: Callable[[], None] = lambda: None
        self._learning = Learning()
        self._engine = engine
        self._layout = layout
        self._rank = rank
        self._options = options
        self._codec, self._gather_codec = (
            None if name == "none" else codec_named(name)
            for name in (options.codec, options.gather_codec)
        )
        self._programs: dict[_Plan, Program] = {}
        self._scratch = Scratch()
        self._slots = Slots(self.residuals)

    def change(self, layout: Layout, tuner: Tuner) -> None:
        """Goes by other figures of the same ranks and islands; all ranks do at the same operation.

        Where rails are cut otherwise, what the codec owed is forgotten with the old cut.
        """
        self.tuner = tuner
        self.adapt()
        if layout != self._layout:
            self._layout = layout
            self._programs.clear()
            self._slots.forget()

    def adapt(self) -> None:
        """Lets paths suit their links, if those were measured."""
        links, layout = self.tuner.links, self._layout
        if links is TYPICAL:
            return
        home = layout.islands[layout.island_of(self._rank)]
        others = [peer for peer in range(layout.size) if peer != self._rank]
        self._engine.adapt({peer: links.near if peer in home else links.far for peer in others})

    def run(
        self,
        operation: str,
        given: torch.Tensor,
        output: torch.Tensor,
        end: End,
        op: Op | None = None,
        root: int = 0,
        key: torch.Tensor | None = None,
        staging: Staging | None = None,
    ) -> None:
        """Starts an operation.

        Args:
            given, output: flat memory, of the host or with ``staging`` of its chip; the same for
                operations in place.
            end: called when it is over.
            key: the caller's tensor, for sums that a codec may shorten: while its memory lives,
                what the codec loses waits for its next sum. None: no codec.
        """
        size = self._layout.size
        whole = given.numel() if operation in ("reduce_scatter", "all_to_all") else output.numel()
        if operation == "scatter":
            whole = output.numel() * size
        elif operation == "gather":
            whole = given.numel() * size
        elements = whole // size if operation in _PARTED else whole
        self._check(operation, given, output, elements, root)
        self._learn(operation)
        num_bytes = whole * output.element_size()
        codec = self._codec_for(operation, output.dtype, op, num_bytes, key)
        addable = self.tuner.aggregated and op in _LINEAR and output.dtype is torch.float32
        if codec is not None and not self.forced:
            # Of other widths less is saved, and whoever sums those wants it so.
            pays = self.tuner.worth_coding(operation, num_bytes, codec, addable)
            codec = codec if pays or output.dtype is not torch.float32 else None
        name = self._choose(operation, num_bytes, codec is not None, addable)
        if name != "islands":
            codec = None
        chunk = max(1, (self._options.chunk_bytes or CHUNK_BYTES) // output.element_size())
        # A coded all-gather is decoded from the same bytes everywhere, also by the neighbours.
        relayed = operation in relay.WRITTEN and not (operation == "all_gather" and codec)
        if self.relays and name == "islands" and relayed and elements:
            name = "relay"
        by_library = (
            name == "relay"
            and staging is not None
            and self.island is not None
            and self.island.can(op, output)
        )
        plan = _Plan(
            operation, name, elements, chunk, root, codec, staging is not None,
            by_library, output.element_size(),
        )  # fmt: skip
        steps = self._program(plan)
        residual = None
        if codec is not None and codec.feeds_back and key is not None:
            name = self._slots.name(operation, key, elements)
            residual = self.residuals.of(name, steps.residuals)
        if not by_library:
            copies = staging.copies() if staging is not None else None
            if codec is None and staging is None and not self.forced:
                model = self.tuner.model_seconds(operation, name, num_bytes)
                if model:  # a rank alone takes no time
                    note = partial(self.tuner.corrections.note, operation, name, num_bytes)
                    end = self._learning.timed(end, model, note)
            self._submit(operation, steps, given, output, op, codec, residual, end, copies)
            return

        def across(part: torch.Tensor, into: torch.Tensor, copies: Copies, ended: End) -> None:
            self._submit(operation, steps, part, into, op, codec, residual, ended, copies)

        assert self.island is not None
        align = codec.block if codec else 1
        self.island.start(operation, given, output, op, root, across, align, end)

    def _learn(self, operation: str) -> None:
        """Counts operations; at some of them, the same on all ranks, all tell each other what they
        measured, and a while later all choose by it."""
        if self.forced or operation not in _COUNTED or self._layout.size == 1:
            return
        match self._learning.count():
            case Moment.TELL:
                # The last figure says whether the aggregator was lost, as seen from here.
                lost = np.float32(0.0 if self._engine.mesh.lost_aggregator() else np.inf)
                noted = torch.from_numpy(np.append(self.tuner.corrections.noted, lost))
                reply = self._learning.asks(noted)
                name = "direct"
                plan = _Plan("all_reduce", name, noted.numel(), noted.numel(), 0, None, False,
                             False, 4)  # fmt: skip
                self._submit("all_reduce", self._program(plan), noted, noted, Op.MIN, None, None,
                             reply, None)  # fmt: skip
            case Moment.USE:
                self.adapt()  # by what they have lost since
                smallest = self._learning.answer(self.timeout)
                if smallest is None:
                    return
                changed = self.tuner.corrections.decide(smallest[:-1])
                if smallest[-1] == 0.0 and self.tuner.aggregated:
                    self.tuner.lose_aggregator()
                    changed = True
                if changed:
                    self.learned()

    def _program(self, plan: _Plan) -> Program:
        known = self._programs.get(plan)
        if known is not None:
            return known
        coding = None
        if plan.codec is not None:
            coding = coding_of(plan.codec, plan.element_size)
        verify = self._options.verify and plan.operation == "all_reduce"
        if plan.name == "relay":
            builder = Builder(self._rank, self._options.streams)
            write = relay.WRITTEN[plan.operation]
            write(builder, self._layout, plan.elements, plan.chunk, plan.root, coding,
                  plan.by_library)  # fmt: skip
            if verify:
                compare_digests(builder, self._layout.size)
            made = builder.build()
        else:
            made = program(
                plan.operation, plan.name, self._layout, self._rank, plan.elements, plan.chunk,
                plan.root, coding, self._options.streams, verify,
            )  # fmt: skip
        if plan.staged:
            made = staged(made, STAGING_BYTES // plan.element_size)
        if len(self._programs) >= _KEPT_PROGRAMS:
            self._programs.pop(next(iter(self._programs)))
        self._programs[plan] = made
        return made

    def all_to_all(
        self,
        given: torch.Tensor,
        output: torch.Tensor,
        sent: Sequence[int],
        received: Sequence[int],
        equal: bool,
        end: End,
        staging: Staging | None = None,
    ) -> None:
        """The same for parts of any size, in elements."""
        if equal:
            self.run("all_to_all", given, output, end, staging=staging)
            return
        if sum(sent) > given.numel() or sum(received) > output.numel():
            raise Mismatch("all_to_all: the parts do not fit the tensors")
        chunk = (self._options.chunk_bytes or CHUNK_BYTES) // output.element_size()
        builder = Builder(self._rank, self._options.streams)
        flat.direct_all_to_all(builder, sent, received, chunk)
        steps, copies = builder.build(), None
        if staging is not None:
            steps = staged(steps, STAGING_BYTES // output.element_size())
            copies = staging.copies()
        self._submit("all_to_all", steps, given, output, None, None, None, end, copies)

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

    def _choose(self, operation: str, num_bytes: int, coded: bool, addable: bool) -> str:
        known = ALGORITHMS[operation].get(self.forced)
        if (
            known is not None
            and (addable or not known.aggregated)
            and (not known.crosses or len(self._layout.islands) > 1)
        ):
            return known.name
        if coded:
            # Priced without codec, a flat algorithm may look cheaper; and among islands of one
            # rank each, this is the one that encodes.
            return "islands"
        return self.tuner.choose(operation, num_bytes, addable)

    def _codec_for(
        self,
        operation: str,
        dtype: torch.dtype,
        op: Op | None,
        num_bytes: int,
        key: torch.Tensor | None,
    ) -> Codec | None:
        """The codec of an operation on the hop between islands."""
        if len(self._layout.islands) < 2 or num_bytes < _CODED_BYTES:
            return None
        if operation == "all_gather":
            codec = self._gather_codec
        elif operation in ("all_reduce", "reduce_scatter") and op in _LINEAR and key is not None:
            codec = self._codec
        else:
            return None
        if codec is None or not dtype.is_floating_point:
            return None
        return None if codec.exact and dtype is not torch.float32 else codec

    def _submit(
        self,
        operation: str,
        steps: Program,
        given: torch.Tensor,
        output: torch.Tensor,
        op: Op | None,
        codec: Codec | None,
        residual: torch.Tensor | None,
        end: End,
        copies: Copies | None,
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
                self._scratch,
                self.timeout,
                end,
                copies,
            )
        )
