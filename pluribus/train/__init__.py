"""Floor 5: executes a Plan.

`run` starts one rank per chip and keeps the run's record; `worker` is what a rank does;
`interpreter` executes its action list; `gradients` sums over every stage that holds a layer;
`state` saves and restores. The result is the training one process would do.
"""
