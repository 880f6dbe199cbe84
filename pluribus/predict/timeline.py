"""Times an action list: when does each stage start and end each action?

A list scheduler: every stage runs its actions in order; a receive ends when the message has
arrived, a reduce when its last member has come and the sum is done. Exact for the given
durations, whatever the schedule; raises if the lists deadlock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pluribus.predict.schedule import Action, ActionKind, GradientGroup

Lane = tuple[int, int]  # (pipeline, stage)

_MATCHING_SEND = {
    ActionKind.RECV_ACTIVATION: (ActionKind.SEND_ACTIVATION, -1),
    ActionKind.RECV_GRADIENT: (ActionKind.SEND_GRADIENT, +1),
}


@dataclass(frozen=True, slots=True)
class Span:
    """One action with its time, in seconds since the step began."""

    action: Action
    start: float
    end: float

    @property
    def seconds(self) -> float:
        return self.end - self.start


@dataclass(frozen=True)
class Timeline:
    """Every stage's spans, in order, keyed by (pipeline, stage)."""

    lanes: Mapping[Lane, tuple[Span, ...]]

    @property
    def end(self) -> float:
        """Seconds until the last stage has stepped."""
        return max(spans[-1].end for spans in self.lanes.values())

    def seconds(self, lane: Lane, *kinds: ActionKind) -> float:
        """Time a stage spends in actions of these kinds."""
        return sum(span.seconds for span in self.lanes[lane] if span.action.kind in kinds)


@dataclass(frozen=True)
class Durations:
    """What each action takes, in seconds.

    Attributes:
        compute: of FORWARD, BACKWARD and STEP: (lane, kind) -> seconds.
        transfer: of a message from one stage to its neighbour: (from, to) -> seconds.
        reduce: of a gradient group, once its last member has come.
        send: what a send costs the sender itself.
    """

    compute: Mapping[tuple[Lane, ActionKind], float]
    transfer: Callable[[Lane, Lane], float]
    reduce: Sequence[float]
    send: float = 0.0


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
    clock = {lane: start[lane] if start else 0.0 for lane in actions}
    position = dict.fromkeys(actions, 0)
    spans: dict[Lane, list[Span]] = {lane: [] for lane in actions}
    arrived: dict[tuple[Lane, Lane, Action], float] = {}
    link_free: dict[tuple[Lane, Lane], float] = {}
    waiting: dict[int, dict[Lane, float]] = {g: {} for g in range(len(groups))}
    reduced: dict[int, float] = {}

    def end_of(lane: Lane, action: Action) -> float | None:
        """When this stage's next action ends, or None while it cannot be known."""
        now = clock[lane]
        match action.kind:
            case ActionKind.SEND_ACTIVATION | ActionKind.SEND_GRADIENT:
                step = 1 if action.kind is ActionKind.SEND_ACTIVATION else -1
                peer = (lane[0], lane[1] + step)
                begin = max(now, link_free.get((lane, peer), 0.0))
                done = begin + durations.transfer(lane, peer)
                link_free[lane, peer] = done
                arrived[lane, peer, action] = done
                return now + durations.send
            case ActionKind.RECV_ACTIVATION | ActionKind.RECV_GRADIENT:
                kind, step = _MATCHING_SEND[action.kind]
                sent = arrived.pop(
                    ((lane[0], lane[1] + step), lane, Action(kind, action.index)), None
                )
                return None if sent is None else max(now, sent)
            case ActionKind.REDUCE:
                group = action.index
                waiting[group][lane] = now
                if len(waiting[group]) < len(groups[group].holders):
                    return None
                if group not in reduced:
                    reduced[group] = max(waiting[group].values()) + durations.reduce[group]
                return reduced[group]
            case _:
                return now + durations.compute[lane, action.kind]

    ready = list(actions)
    while ready:
        moved = False
        for lane in ready:
            program = actions[lane]
            while position[lane] < len(program):
                action = program[position[lane]]
                end = end_of(lane, action)
                if end is None:
                    break
                spans[lane].append(Span(action, clock[lane], end))
                clock[lane] = end
                position[lane] += 1
                moved = True
        ready = [lane for lane in ready if position[lane] < len(actions[lane])]
        assert moved or not ready, f"the action lists deadlock at {ready}"
    return Timeline({lane: tuple(items) for lane, items in spans.items()})
