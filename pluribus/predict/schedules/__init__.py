"""Part of `predict`: in which order each stage runs its passes, one schedule per file.

`base` has what all of them share: actions, placement of chunks, and the messages between passes.
Times are not known here but for the relative ones that zero-bubble orders are made for.
"""
