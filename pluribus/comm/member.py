"""A rank's membership of a group: who it is, how the group ends and begins anew."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from pluribus.comm import meeting, probe, tuner
from pluribus.comm.buffers import Flat, flatten
from pluribus.comm.collectives import CHUNK_BYTES, End
from pluribus.comm.costs import Links
from pluribus.comm.devices.base import Library
from pluribus.comm.devices.copies import Staging
from pluribus.comm.engine import Engine
from pluribus.comm.errors import Aborted, CollectiveError, PeerDied
from pluribus.comm.facade import Facade
from pluribus.comm.health import stall_deadline
from pluribus.comm.joining import Chips, join
from pluribus.comm.options import Options
from pluribus.comm.porter import Porter
from pluribus.comm.transports.base import TransportError
from pluribus.comm.tuner import Tuner
from pluribus.comm.work import Together, Work

_CALLBACK_THREADS = 16  # callbacks may wait for collectives whose callbacks wait in turn
Tensors = Sequence[torch.Tensor]


class Member(Facade):
    """A rank of a group on unlike chips; `group.Group` adds the collectives.

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
        super().__init__(store, rank, size)
        self._timeout = timeout
        self._ranks = ranks or tuple(range(size))
        self.options = options
        self._address = options.address or meeting.own_address(store)
        self._porter = Porter(self._address)
        self._doors: tuple[str, ...] = ()
        self._reached: set[str] = set()
        self._callbacks = ThreadPoolExecutor(_CALLBACK_THREADS, "pluribus-callback")
        self._engine = Engine(self._name)
        self._chips = Chips(options, self._engine)
        try:
            self._connect(0)
        except BaseException:
            self.shutdown()
            raise

    def _name(self, rank: int) -> str:
        return f"rank {self._ranks[rank]}" if rank < len(self._ranks) else "the aggregator"

    def _connect(self, epoch: int) -> None:
        store = dist.PrefixStore(f"epoch{epoch}", self._store)
        try:
            joined = join(
                store, self._rank, self._size, epoch, self.options, self._address, self._timeout,
                self._engine, self._chips, self._porter, self._doors,
                self._reached,
            )  # fmt: skip
        except TransportError as error:
            died = PeerDied(f"{self._name(error.peer)}: {error}", [error.peer])
            self._engine.fail(died)
            raise died from error
        except CollectiveError as error:
            self._engine.fail(error)
            raise
        self._collectives, self.layout, self._topology, self._whole, unknown, doors = joined
        self._doors = doors
        self._collectives.learned = self._keep
        if unknown and self.options.probe:
            self.probe()

    def probe(self) -> Links:
        """Measures the links and chooses algorithms by them from now on; all members call it.

        Rank 0 keeps the figures for later groups on the same hosts.
        """
        links = probe.links(self)
        self._engine.expect(self.options.stall_seconds or stall_deadline(links))
        self.layout = replace(self.layout, rates=probe.rails(self))
        chunk = self.options.chunk_bytes or CHUNK_BYTES
        aggregated = self._collectives.tuner.aggregated
        chooser = Tuner(self.layout, links, chunk, aggregated=aggregated)
        self._collectives.change(self.layout, chooser)
        self._keep()
        return links

    def _keep(self) -> None:
        """Rank 0 keeps what is known for later groups."""
        if self._rank == 0:
            with contextlib.suppress(OSError):  # a home that cannot be written to
                known = self._collectives.tuner
                said = tuner.to_json(known.links, known.corrections, self.layout.rates)
                tuner.save(said, tuner.cache_folder(), self._topology)

    @property
    def tuner(self) -> Tuner:
        """Chooses this group's algorithms."""
        return self._collectives.tuner

    @contextlib.contextmanager
    def forced(self, algorithm: str) -> Iterator[None]:
        """Operations begun meanwhile use this algorithm wherever it fits, for measurements; all
        members do the same."""
        before = self._collectives.forced
        self._collectives.forced = algorithm
        try:
            yield
        finally:
            self._collectives.forced = before

    def sent_packets(self, peer: int) -> tuple[int, int]:
        """(sent again, sent) of the path that messages to a peer take."""
        return self._engine.mesh.packets(peer)

    def staging(self, tensor: torch.Tensor) -> Staging | None:
        """The way of a tensor's chip to the engine; None where it needs none."""
        return self._chips.staging(tensor)

    def set_timeout(self, timeout: Any) -> None:
        self._timeout = self._collectives.timeout = timeout.total_seconds()

    def _part(
        self, ranks: list[int], store: dist.Store, timeout: timedelta | None, opts: Any
    ) -> Member:
        limit = self._timeout if timeout is None else timeout.total_seconds()
        options = opts if isinstance(opts, Options) else self.options
        names = tuple(self._ranks[rank] for rank in ranks)
        return type(self)(store, ranks.index(self._rank), len(ranks), limit, names, options)

    # Ends and beginnings.

    def abort(self) -> None:
        """Ends every pending operation, here and on all peers, with `Aborted`."""
        self._engine.fail(Aborted(f"{self._name(self._rank)} aborted the group"))
        self._end_library()

    def shutdown(self) -> None:
        """Leaves the group; peers that need nothing more of this rank go on."""
        self._engine.close()
        self._porter.close()
        self._chips.close()
        self._callbacks.shutdown(wait=False)

    def _end_library(self) -> None:
        if self._whole is not None:
            self._whole.abort()
        if self._collectives.island is not None:
            self._collectives.island.abort()

    def reconfigure(self, members: Sequence[int], epoch: int) -> None:
        """Makes the group anew of some of its ranks, in the same processes.

        All of ``members`` call it, with the same arguments, after a failure or at rest. Ranks
        are counted anew in the order of ``members``; what the old epoch had under way has ended
        with an error, and nothing of it is ever taken for the new one's.

        Args:
            members: ranks of the group as it is now.
            epoch: higher than any before.

        Raises:
            PeerDied: a member died before all had met; its rank is of the new count, from which
                the next call goes on.
        """
        members = list(members)
        if self._rank not in members:
            raise CollectiveError(f"{self._name(self._rank)} is none of the members {members}")
        self._ranks = tuple(self._ranks[member] for member in members)
        self._doors = tuple(self._doors[member] for member in members)
        self._rank, self._size = members.index(self._rank), len(members)
        self._end_library()
        self._connect(epoch)

    @property
    def residuals(self) -> Any:
        """What the codec has not said yet; belongs into checkpoints (``state_dict``)."""
        return self._collectives.residuals

    # For the collectives.

    def _flat(self, tensors: Tensors, read: bool) -> Flat:
        return flatten(tensors, read, self._chips.staging(tensors[0]))

    def _work(
        self, result: list[torch.Tensor], flat: Flat | None = None, write: bool = True
    ) -> tuple[Work, End]:
        """The work, and what ends it once results are in ``flat``; they are copied to where the
        caller wants them if ``write``."""
        back = flat.back if flat is not None and write else None
        if flat is None or flat.staging is None or back is None:
            work = self._begun(Work(result, self._callbacks, back))
            return work, work.end
        work = self._begun(Work(result, self._callbacks))
        return work, flat.staging.behind(back, work.end)

    def _suits(self, library: Library, given: Sequence[Any]) -> bool:
        """Whether the vendor's library takes a call with these arguments."""
        tensor = _first_tensor(given)
        if tensor is None or self._chips.staging(tensor) is None:
            return False
        op = next((x.reduceOp for x in given if hasattr(x, "reduceOp")), None)
        return op is None or library.can(op.op, tensor.dtype)

    def _joined(self, works: list[Work], result: list[torch.Tensor]) -> Work:
        """One work for several; they end in the order they began, or all with one error."""
        if len(works) == 1:
            return works[0]
        if not all(isinstance(work, Work) for work in works):
            return Together(works)
        whole, _ = self._work(result)
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


def _first_tensor(given: Sequence[Any]) -> torch.Tensor | None:
    """Also inside lists of lists; None if they are empty, as where only the root has some."""
    for x in given:
        if isinstance(x, torch.Tensor):
            return x
        if isinstance(x, Sequence) and (found := _first_tensor(x)) is not None:
            return found
    return None
