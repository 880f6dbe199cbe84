"""Floor 4: facts instead of formulas, taken from the machine it runs on.

`probe` looks at the machine and describes it as a Cluster; `profile` times a job's layers on
each chip and the links between the chips, and gives a Profile. Both start `worker` once per
chip. Nothing here predicts, plans or trains.
"""
