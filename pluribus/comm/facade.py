"""What c10d asks of a process group beside its collectives.

c10d thinks of a group as one backend per kind of device. This group is a whole one, for all
devices: asked for a device's backend it gives itself.
"""

from __future__ import annotations

import contextlib
import types
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from pluribus.comm.backend import NAME


class Facade(dist.ProcessGroup):
    """Names, devices and coalescing of a group.

    Attributes:
        supports_splitting: `dist.split_group` may ask for `split_group`.
    """

    supports_splitting = True
    supports_coalescing = supports_time_estimate = supports_shrinking = False

    def __init__(self, store: dist.Store, rank: int, size: int) -> None:
        super().__init__(rank, size)
        self._store = store
        self._rank = rank
        self._size = size
        self._group_name = self._group_desc = ""
        self._coalesced: list[dist.Work] | None = None

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        unseen_by_compilers(cls)

    def rank(self) -> int:
        return self._rank

    def size(self) -> int:
        return self._size

    def name(self) -> str:
        return NAME

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

    def get_group_store(self) -> dist.Store:
        return self._store

    @property
    def _device_types(self) -> list[torch.device]:
        chip = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return [torch.device("cpu"), *([chip] if chip is not None else [])]

    def _get_backend(self, device: torch.device) -> Facade:
        return self

    def supports_tensor_alloc(self, device: torch.device) -> bool:
        return False

    # What NCCL needs before it is split, and this does not.

    def eager_connect_single_device(self, device: torch.device) -> None:
        pass

    def perform_nocolor_split(self, device: torch.device) -> None:
        pass

    def _set_sequence_number_for_group(self) -> None:
        pass

    def split_group(
        self,
        ranks: list[int],
        timeout: timedelta | None = None,
        opts: Any = None,
        group_name: str | None = None,
        group_desc: str | None = None,
        device_types: Any = None,
    ) -> Facade | None:
        """A group of some of this one's ranks; all of them call it. None on the others."""
        if self._rank not in ranks:
            return None
        part = self._part(list(ranks), dist.PrefixStore(f"split/{group_name}", self._store),
                          timeout, opts)  # fmt: skip
        part.setGroupName(group_name or "")
        part.setGroupDesc(group_desc or "")
        return part

    def _part(
        self, ranks: list[int], store: dist.Store, timeout: timedelta | None, opts: Any
    ) -> Facade:
        """A group of these ranks, which meet at a store; the subclass's to make."""
        raise NotImplementedError

    # Coalescing, the old way: what is begun in between ends as one.

    def _start_coalescing(self, device: torch.device) -> None:
        self._coalesced = []

    def _end_coalescing(self, device: torch.device) -> dist.Work:
        works, self._coalesced = self._coalesced or [], None
        return self._joined(works, [])

    def _joined(self, works: list[Any], result: list[torch.Tensor]) -> dist.Work:
        """Work that is done when all of these are; the subclass's to make."""
        raise NotImplementedError

    def _begun(self, work: Any) -> Any:
        if self._coalesced is not None:
            self._coalesced.append(work)
        return work


def unseen_by_compilers(cls: type) -> type:
    """Keeps `torch.compile` from translating a class's methods: C++ calls them in the midst of
    compiled regions, as DDP's reducer does."""
    with contextlib.suppress(AttributeError):  # a PyTorch that does this otherwise
        eval_frame = torch._C._dynamo.eval_frame
        skip = eval_frame._FrameAction.SKIP
        strategy = eval_frame._FrameExecStrategy(skip, skip)
        for method in vars(cls).values():
            if isinstance(method, types.FunctionType):
                eval_frame.set_code_exec_strategy(method.__code__, strategy)
    return cls
