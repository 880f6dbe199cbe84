"""Floor 2: seconds, bytes and money of a Plan, before anything runs. Pure: no torch, no clock.

`schedule` makes the action list of a plan from the orders in `schedules`, `timeline` times any
action list and `waves` one pipeline under many durations at once; `compute`, `memory` and
`collectives` give the durations and sizes, `predict` puts them together. The runtime executes
the same action list, and the report draws it.
"""
