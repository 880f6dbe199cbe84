"""Loops too hot for Python, compiled from C at first use, each with a Python or torch twin.

`build` compiles and caches `kernel.c`; `crc32c` is the checksum of every header. The quantising
loops are called from `pluribus.comm.codecs`.
"""
