"""Starts one process per rank on this machine, listens to them, and never leaves one behind."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pluribus.comm.rank import PEER_LOST
from pluribus.core.errors import PluribusError, RankError
from pluribus.core.units import GIB, MIB

_SETTLE_SECONDS = 1.0  # after a death, how long to wait for the other ranks' last words


@dataclass(frozen=True, kw_only=True)
class RankProcess:
    """One rank to start.

    Attributes:
        chip: its chip's address, for messages.
        environment: added to this process's environment; makes the chip what it is.
        cores: CPU cores to pin it to; empty leaves it unpinned.
        config: what the rank reads first.
    """

    rank: int
    chip: str
    environment: Mapping[str, str] = field(default_factory=dict)
    cores: Sequence[int] = ()
    config: Mapping[str, Any] = field(default_factory=dict)


class Ranks:
    """The running processes of one module; a context manager that stops them on the way out.

    Args:
        module: run as ``python -m module``; its main is `rank_main`.
        processes: the ranks.
        log_folder: gets ``rank-N.log`` with what each rank printed.
    """

    def __init__(self, module: str, processes: Sequence[RankProcess], log_folder: Path) -> None:
        self._specs = list(processes)
        self._logs = [log_folder / f"rank-{spec.rank}.log" for spec in processes]
        self._events: queue.Queue[tuple[int, dict[str, Any] | None]] = queue.Queue()
        self._processes: list[subprocess.Popen[str]] = []
        self._readers: list[threading.Thread] = []
        log_folder.mkdir(parents=True, exist_ok=True)
        for position, spec in enumerate(self._specs):
            self._start(module, position, spec)

    def _start(self, module: str, position: int, spec: RankProcess) -> None:
        # The package may be run from a source tree that is not installed.
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        threads = {"OMP_NUM_THREADS": str(len(spec.cores))} if spec.cores else {}
        # Memory a micro-batch frees stays with the process: the next one takes it again, without
        # the page faults of fetching it back from the kernel (glibc; others ignore these).
        keep = {"MALLOC_MMAP_THRESHOLD_": str(32 * MIB), "MALLOC_TRIM_THRESHOLD_": str(64 * GIB)}
        loopback = {"GLOO_SOCKET_IFNAME": "lo" if sys.platform == "linux" else "lo0"}
        with self._logs[position].open("w") as log:
            process = subprocess.Popen(
                # -P: a profile.py in the user's folder must not hide the standard library's.
                [sys.executable, "-P", "-m", module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=os.environ
                | {"PYTHONPATH": path, **keep, **loopback, **threads, **spec.environment},
                start_new_session=True,  # Ctrl-C reaches the launcher alone, which then decides
            )
        self._processes.append(process)
        config = {**spec.config, "rank": spec.rank, "cores": list(spec.cores)}
        assert process.stdin is not None
        process.stdin.write(json.dumps(config) + "\n")
        process.stdin.flush()
        reader = threading.Thread(target=self._read, args=(position, process), daemon=True)
        reader.start()
        self._readers.append(reader)

    def _read(self, position: int, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                self._events.put((position, json.loads(line)))
        process.wait()
        self._events.put((position, None))

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def tell(self, rank: int, message: str) -> None:
        """Sends a message to one rank; a rank that is gone does not hear it."""
        process = self._processes[rank]
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError, ValueError):
            process.stdin.write(message + "\n")
            process.stdin.flush()

    def events(self, timeout: float | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
        """(rank, event) as they come, until every rank is done.

        Args:
            timeout: seconds without any event after which the ranks count as hung.

        Raises:
            RankError: a rank died or hung; names it. The others are stopped first.
            PluribusError: a rank reported a user's mistake.
        """
        running = set(range(len(self._specs)))
        errors: dict[int, dict[str, Any]] = {}
        failed: dict[int, int] = {}
        settled: float | None = None
        while running:
            limit = timeout if settled is None else max(0.0, settled - time.monotonic())
            try:
                position, event = self._events.get(timeout=limit)
            except queue.Empty:
                if settled is not None:
                    break
                self.kill()
                names = ", ".join(f"{self._specs[p].rank} ({self._specs[p].chip})" for p in running)
                raise RankError(
                    f"no word from ranks {names} for {timeout:.0f} s; all ranks were stopped",
                    do=f"Look into {self._logs[min(running)]}.",
                ) from None
            if event is None:
                running.discard(position)
                code = self._processes[position].returncode
                if code != 0:
                    failed[position] = code
                    settled = settled or time.monotonic() + _SETTLE_SECONDS
            elif event["event"] in ("error", PEER_LOST):
                errors[position] = event
                settled = settled or time.monotonic() + _SETTLE_SECONDS
            elif event["event"] != "done":
                yield self._specs[position].rank, event
        if failed or errors:
            self.kill()
            raise self._verdict(failed, errors)

    def _verdict(
        self, failed: Mapping[int, int], errors: Mapping[int, dict[str, Any]]
    ) -> PluribusError:
        """Who is to blame: a rank that said what was wrong, else one that died without a word."""
        for position, event in errors.items():
            if event["event"] == "error":
                where = event["where"] or self._name(position)
                do = event["do"] or f"Its log: {self._logs[position]}."
                return RankError(event["what"], where=where, do=do)
        silent = [position for position in failed if position not in errors]
        if silent:
            code = failed[silent[0]]
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"left with {code}"
            return RankError(
                f"{self._name(silent[0])} {how}; the other ranks were stopped",
                do=f"Its log: {self._logs[silent[0]]}.",
            )
        position = min(errors)
        return RankError(
            f"{self._name(position)} lost its connection: {errors[position]['what']}",
            do=f"Its log: {self._logs[position]}.",
        )

    def _name(self, position: int) -> str:
        return f"rank {self._specs[position].rank} ({self._specs[position].chip})"

    def kill(self) -> None:
        """Ends every rank at once and waits for it."""
        for process in self._processes:
            if process.poll() is None:
                process.kill()
        for process in self._processes:
            process.wait()
            if process.stdin is not None:
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()
        for reader in self._readers:
            reader.join()
