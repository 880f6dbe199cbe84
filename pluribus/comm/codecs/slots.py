"""Which residual belongs to a sum: by the memory of its tensor while that lives, else by its place
in the step.

DDP's buckets live from step to step. FSDP hands in new memory for each reduce-scatter; there, the
sum that comes at the same place of a step, after sums of the same sizes, is taken to be the same
layer's. Where that is not so (layers of one size of which any may be skipped), a layer gets what
another is owed: one step's rounding.
"""

from __future__ import annotations

import threading
import weakref
import zlib
from dataclasses import dataclass

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.optim.optimizer import register_optimizer_step_post_hook

from pluribus.comm.codecs.residuals import Residuals

_KEPT_STEPS = 16  # that a residual waits for its place to come again, as in steps that alternate


@dataclass(slots=True)
class _Slot:
    """A residual's name and the memory it goes by.

    Attributes:
        step: when it was last used.
        lasting: whether the memory came again in a later step: what comes after it is something
            else. Memory that is new each time may outlive its step a little.
    """

    name: str
    memory: StorageWeakRef
    step: int
    lasting: bool = False


class Slots:
    """Names of residuals. A step ends with any optimizer's; as long as none has, in a run that
    begins, places do not count."""

    def __init__(self, residuals: Residuals) -> None:
        self._residuals = residuals
        self._by_memory: dict[tuple, _Slot] = {}
        self._orphans: dict[str, int] = {}  # by name, when they were last used
        self._generations: dict[str, int] = {}  # by place, of memory that outlived steps
        self._lock = threading.Lock()
        self._step = self._count = self._digest = 0
        own = weakref.ref(self)
        self._hook = register_optimizer_step_post_hook(lambda *_: _end_step(own))
        weakref.finalize(self, self._hook.remove)

    def name(self, operation: str, tensor: torch.Tensor, elements: int) -> str:
        """Of a sum's residual; called once for each sum."""
        memory = StorageWeakRef(tensor.untyped_storage())
        key = (operation, memory.cdata, tensor.storage_offset(), elements)
        with self._lock:
            self._count += 1
            what = f"{operation} {elements} {tensor.dtype}"
            self._digest = zlib.crc32(what.encode(), self._digest)
            self._forget_the_dead()
            slot = self._by_memory.get(key)
            if slot is None:
                slot = self._by_memory[key] = _Slot(self._new_name(operation), memory, self._step)
            slot.lasting |= slot.step < self._step
            slot.step = self._step
            return slot.name

    def _new_name(self, operation: str) -> str:
        place = f"{operation}/{self._count}/{self._digest:08x}"
        name = f"{place}/{self._generations.get(place, 0)}"
        taken = {slot.name: key for key, slot in self._by_memory.items()}
        while name in taken:
            before = self._by_memory[taken[name]]
            if before.step < self._step and self._passes_on(before):
                del self._by_memory[taken[name]]
                break
            name += "+"
        self._orphans.pop(name, None)
        return name

    def end_step(self) -> None:
        """An optimizer has made a step."""
        with self._lock:
            self._forget_the_dead()
            self._step += 1
            self._count = self._digest = 0
            for name, step in list(self._orphans.items()):
                if self._step - step > _KEPT_STEPS:
                    del self._orphans[name]
                    self._residuals.drop(name)

    def forget(self) -> None:
        """All are cut otherwise from now on."""
        with self._lock:
            self._by_memory.clear()
            self._orphans.clear()
            self._generations.clear()
            self._residuals.forget()

    def _forget_the_dead(self) -> None:
        for key, slot in list(self._by_memory.items()):
            if not slot.memory.expired():
                continue
            del self._by_memory[key]
            if self._passes_on(slot):
                self._orphans[slot.name] = slot.step
                continue
            self._residuals.drop(slot.name)
            if self._step:
                place = slot.name.rstrip("+").rpartition("/")[0]
                self._generations[place] = self._generations.get(place, 0) + 1

    def _passes_on(self, slot: _Slot) -> bool:
        """Whether what comes at the same place is taken for the same. Not of what came in the
        first step only: DDP cuts its buckets anew after that."""
        return not slot.lasting and (slot.step > 0 or self._residuals.loaded)


def _end_step(slots: weakref.ref[Slots]) -> None:
    found = slots()
    if found is not None:
        found.end_step()
