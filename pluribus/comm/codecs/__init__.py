"""What a chunk looks like on a slow hop: bf16, int8 blocks, int4, top-k.

`base` is the contract; one file per codec.
"""
