"""Ways to move framed bytes between ranks: shared memory, TCP, UDP.

`base` is the contract and the frame header; one file per transport. A transport knows nothing of
tensors or collectives.
"""
