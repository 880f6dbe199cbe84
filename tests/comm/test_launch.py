"""Starting ranks, hearing them, and naming the one that ended badly."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pluribus.comm.launch import RankProcess, Ranks
from pluribus.core.errors import RankError

ROOT = Path(__file__).resolve().parents[2]


def start(folder: Path, *deeds: str) -> Ranks:
    return Ranks(
        "tests.comm.odd_rank",
        [
            RankProcess(rank=rank, chip=f"here/p{rank}/0/0", config={"deed": deed})
            for rank, deed in enumerate(deeds)
        ],
        folder,
    )


def listen(ranks: Ranks, pids: list[int], timeout: float) -> None:
    """Hears the ranks out; their process numbers go into ``pids``."""
    for _, event in ranks.events(timeout=timeout):
        pids.append(event["pid"])


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    # A process nobody has waited for yet is still listed, as a zombie.
    return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] == "Z"


def test_events_end_when_every_rank_is_done(tmp_path: Path) -> None:
    with start(tmp_path, "fine", "fine") as ranks:
        ranks_heard = sorted(rank for rank, event in ranks.events() if event["event"] == "pid")
    assert ranks_heard == [0, 1]
    assert "not into the line" in (tmp_path / "rank-0.log").read_text()


def test_a_rank_hears_what_it_is_told(tmp_path: Path) -> None:
    with start(tmp_path, "wait") as ranks:
        for rank, _ in ranks.events(timeout=30):
            ranks.tell(rank, "go")


@pytest.mark.parametrize(
    ("deeds", "words"),
    [
        (("wait", "mistake"), ["a.bin: is empty", "Write it again."]),
        (("wait", "bug"), ["rank 1 (here/p1/0/0)", "ValueError: seven", "rank-1.log"]),
        (("wait", "exit"), ["rank 1 (here/p1/0/0) left with 7", "rank-1.log"]),
        (("lost", "exit"), ["rank 1 (here/p1/0/0) left with 7"]),
        (("lost", "bug"), ["ValueError: seven"]),
        (("lost", "wait"), ["rank 0 (here/p0/0/0) lost its connection: connection closed"]),
    ],
)
def test_whoever_is_to_blame_is_named(
    tmp_path: Path, deeds: tuple[str, str], words: list[str]
) -> None:
    pids: list[int] = []
    with start(tmp_path, *deeds) as ranks, pytest.raises(RankError) as caught:
        listen(ranks, pids, timeout=30)
    for word in words:
        assert word in str(caught.value)
    assert all(gone(pid) for pid in pids)


def test_ranks_without_a_word_are_named_and_stopped(tmp_path: Path) -> None:
    pids: list[int] = []
    with start(tmp_path, "wait") as ranks, pytest.raises(RankError) as caught:
        listen(ranks, pids, timeout=3)
    assert "no word from ranks 0 (here/p0/0/0)" in str(caught.value)
    assert gone(pids[0])


def test_ranks_leave_when_their_launcher_is_killed(tmp_path: Path) -> None:
    program = (
        "import os, signal; from pathlib import Path\n"
        "from tests.comm.test_launch import start\n"
        f"ranks = start(Path({str(tmp_path)!r}), 'wait')\n"
        "_, event = next(ranks.events())\n"
        "print(event['pid'], flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, text=True, capture_output=True)
    pid = int(done.stdout)
    until = time.monotonic() + 10
    while not gone(pid) and time.monotonic() < until:
        time.sleep(0.02)
    assert gone(pid)
