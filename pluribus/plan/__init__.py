"""Floor 3: searches the Plan. Pure: no torch, no clock.

`table` prices runs of layers, `split` cuts the layers over unlike stages, `share` deals
micro-batches to unlike pipelines, `shapes` finds the best pipelines of a team of pools,
`search` weighs teams against each other and scores the best by `predict`.
"""
