"""How tensors of one kind of chip reach the host and come back.

`base` is the contract; one file per kind of chip.
"""
