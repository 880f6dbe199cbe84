"""The adapter of a tensor's chip: our own, or one that an installed package registers."""

from __future__ import annotations

import importlib.metadata

import torch

from pluribus.comm.devices.base import Adapter
from pluribus.core.errors import ConfigError

GROUP = "pluribus.devices"


class Devices:
    """The adapters of one process's group, made when they are first needed.

    Args:
        pretended: ``fake-…`` makes host tensors those of a fake chip; empty: they are host tensors.
    """

    def __init__(self, pretended: str = "") -> None:
        self._pretended = pretended
        self._known: dict[torch.device, Adapter | None] = {}

    def of(self, device: torch.device) -> Adapter | None:
        """The adapter; None for the host's own memory, and for chips that nobody registered: they
        pass through the host as a whole, by plain copies."""
        if device.type == "cpu" and not self._pretended:
            return None
        if device not in self._known:
            self._known[device] = self._make(device)
        return self._known[device]

    def own(self) -> Adapter | None:
        """Of the chip this process computes on, as far as can be told before it has used one."""
        if self._pretended:
            return self.of(torch.device("cpu"))
        if not torch.accelerator.is_available():
            return None
        kind = torch.accelerator.current_accelerator()
        assert kind is not None
        return self.of(torch.device(kind.type, torch.accelerator.current_device_index()))

    def _make(self, device: torch.device) -> Adapter | None:
        if device.type == "cpu":
            from pluribus.comm.devices.fake import PREFIX, Fake

            if not self._pretended.startswith(PREFIX):
                raise ConfigError(
                    f"device = '{self._pretended}'",
                    where="comm options",
                    do=f"Only a pretended device is named, e.g. {PREFIX}a; real ones are seen.",
                )
            return Fake(self._pretended)
        for point in importlib.metadata.entry_points(group=GROUP, name=device.type):
            return point.load()(device)
        if device.type == "cuda":
            from pluribus.comm.devices.cuda import Cuda

            return Cuda(device)
        return None

    def close(self) -> None:
        for adapter in self._known.values():
            if adapter is not None:
                adapter.close()
