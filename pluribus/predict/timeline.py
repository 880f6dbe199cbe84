"""Times an action list: when does each stage start and end each action?

A list scheduler: every stage runs its actions in order; a receive ends when the message has
arrived, a reduce when its last member has come and the sum is done. Exact for the given
durations, whatever the schedule; raises if the lists deadlock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from pluribus.predict.schedule import Action, ActionKind, GradientGroup

Lane = tuple[int, int]  # (pipeline, stage)

# A message by its sender: (lane, whether it is a gradient, micro-batch, chunk).
_Message = tuple[Lane, bool, int, int]

# Names of this file: the loop below asks for them once per action.
_SEND_ACTIVATION, _RECV_ACTIVATION = ActionKind.SEND_ACTIVATION, ActionKind.RECV_ACTIVATION
_SEND_GRADIENT, _RECV_GRADIENT = ActionKind.SEND_GRADIENT, ActionKind.RECV_GRADIENT
_PASSES = (
    ActionKind.FORWARD, ActionKind.BACKWARD, ActionKind.BACKWARD_INPUT,
    ActionKind.BACKWARD_WEIGHT, ActionKind.STEP,
)  # fmt: skip


class Span(NamedTuple):
    """One action with its time, in seconds since the step began."""

    action: Action
    start: float
    end: float

    @property
    def seconds(self) -> float:
        return self.end - self.start


@dataclass(frozen=True, eq=False)
class Course:
    """One stage's actions without a gap: each begins where the one before it ends.

    Attributes:
        begin: of the first action.
        ends: of each action.
        before: what the stage did until then.
    """

    actions: Sequence[Action]
    begin: float
    ends: Sequence[float]
    before: Course | None = None

    @property
    def end(self) -> float:
        return float(self.ends[-1]) if len(self.ends) else self.begin

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Course) and self.spans == other.spans

    @cached_property
    def spans(self) -> tuple[Span, ...]:
        ends = [float(end) for end in self.ends]
        mine = map(Span, self.actions, (self.begin, *ends), ends)
        return (*(self.before.spans if self.before else ()), *mine)

    def followed_by(self, later: Course) -> Course:
        """Both, where the later one begins as this one ends."""
        return replace(later, before=self)


@dataclass(frozen=True)
class Timeline:
    """When every stage does what, keyed by (pipeline, stage)."""

    courses: Mapping[Lane, Course]

    @cached_property
    def lanes(self) -> Mapping[Lane, tuple[Span, ...]]:
        """Every stage's spans, in order."""
        return {lane: course.spans for lane, course in self.courses.items()}

    @property
    def end(self) -> float:
        """Seconds until the last stage has stepped."""
        return max(course.end for course in self.courses.values())

    def seconds(self, lane: Lane, *kinds: ActionKind) -> float:
        """Time a stage spends in actions of these kinds."""
        return sum(span.seconds for span in self.courses[lane].spans if span.action.kind in kinds)


@dataclass(frozen=True)
class Durations:
    """What each action takes, in seconds.

    Attributes:
        compute: of FORWARD, BACKWARD (or its halves) and STEP: (lane, kind) -> seconds; of a
            stage with several chunks, the seconds of each.
        transfer: of a message from one stage to its neighbour: (from, to) -> seconds.
        reduce: of a gradient group, once its last member has come.
        blocking: whether a send holds its sender until the message has come.
        rendezvous: whether a receive takes as long as its message, even if that was sent before.
    """

    compute: Mapping[tuple[Lane, ActionKind], float | tuple[float, ...]]
    transfer: Callable[[Lane, Lane], float]
    reduce: Sequence[float]
    blocking: bool = False
    rendezvous: bool = False


def simulate(
    actions: Mapping[Lane, Sequence[Action]],
    durations: Durations,
    groups: Sequence[GradientGroup] = (),
    start: Mapping[Lane, float] | None = None,
) -> Timeline:
    """The timeline of these action lists.

    Messages of one direction between two stages share the link and so follow one another.

    Args:
        start: when each stage begins; zero by default.
    """
    begin = start or dict.fromkeys(actions, 0.0)
    run = _Run(actions, durations, groups, begin)
    while run.ready:
        run.advance(run.ready.pop())
    stuck = [lane for lane, ends in run.ends.items() if len(ends) < len(actions[lane])]
    assert not stuck, f"the action lists deadlock at {stuck}"
    return Timeline(
        {lane: Course(actions[lane], begin[lane], tuple(ends)) for lane, ends in run.ends.items()}
    )


class _Run:
    """A simulation on its way: lanes go on in any order until each is done or waits."""

    def __init__(
        self,
        actions: Mapping[Lane, Sequence[Action]],
        durations: Durations,
        groups: Sequence[GradientGroup],
        begin: Mapping[Lane, float],
    ) -> None:
        self._actions, self._durations, self._groups = actions, durations, groups
        self._clock = dict(begin)
        self._compute = {lane: _own(lane, durations) for lane in actions}
        self.ends: dict[Lane, list[float]] = {lane: [] for lane in actions}
        self.ready = list(actions)
        self._arrived: dict[_Message, float] = {}
        self._link_free: dict[tuple[Lane, Lane], float] = {}
        self._waiting: dict[_Message, Lane] = {}
        self._members: list[dict[Lane, float]] = [{} for _ in groups]
        self._reduced: dict[int, float] = {}

    def advance(self, lane: Lane) -> None:
        """Runs a lane until its next action's end cannot be known yet."""
        pipeline, stage = lane
        actions, compute, ends = self._actions[lane], self._compute[lane], self.ends[lane]
        transfer, blocking = self._durations.transfer, self._durations.blocking
        rendezvous = self._durations.rendezvous
        now = self._clock[lane]
        for position in range(len(ends), len(actions)):
            action = actions[position]
            kind = action.kind
            if kind in compute:
                end = now + compute[kind][action.chunk]
            elif kind is _RECV_ACTIVATION or kind is _RECV_GRADIENT:
                gradient = kind is _RECV_GRADIENT
                peer = (pipeline, stage + action.hop if gradient else stage - action.hop)
                message = (peer, gradient, action.index, action.chunk)
                sent = self._arrived.pop(message, None)
                if sent is None:
                    self._waiting[message] = lane
                    break
                ready = now + transfer(peer, lane) if rendezvous else now
                end = sent if sent > ready else ready
            elif kind is _SEND_ACTIVATION or kind is _SEND_GRADIENT:
                gradient = kind is _SEND_GRADIENT
                peer = (pipeline, stage - action.hop if gradient else stage + action.hop)
                begin = max(now, self._link_free.get((lane, peer), 0.0))
                message = (lane, gradient, action.index, action.chunk)
                done = self._link_free[lane, peer] = begin + transfer(lane, peer)
                self._arrived[message] = done
                if message in self._waiting:
                    self.ready.append(self._waiting.pop(message))
                end = done if blocking else now
            else:
                summed = self._reduce(lane, action.index, now)
                if summed is None:
                    break
                end = summed
            ends.append(end)
            now = end
        self._clock[lane] = now

    def _reduce(self, lane: Lane, group: int, now: float) -> float | None:
        """When this group's sum is done; None until its last member has come."""
        if group not in self._reduced:
            members = self._members[group]
            members[lane] = now
            if len(members) < len(self._groups[group].holders):
                return None
            self._reduced[group] = max(members.values()) + self._durations.reduce[group]
            self.ready += [member for member in members if member != lane]
        return self._reduced[group]


def _own(lane: Lane, durations: Durations) -> dict[ActionKind, tuple[float, ...]]:
    """What a lane's own passes take, by chunk."""
    own = {}
    for kind in _PASSES:
        seconds = durations.compute.get((lane, kind))
        if seconds is not None:
            own[kind] = seconds if isinstance(seconds, tuple) else (seconds,)
    return own
