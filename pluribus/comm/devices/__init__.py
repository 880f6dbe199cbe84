"""Chips whose memory no socket sees: how tensors get to the host and back, and vendors' libraries.

`base` is the contract, one file per kind of chip, `registry` finds the right one. `staged` puts
copies into a program, `copies` runs them beside the engine, `island` joins a vendor's library
inside an island with the relay between islands.
"""
