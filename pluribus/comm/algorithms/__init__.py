"""How each collective moves its chunks: one function per algorithm, written with a `Builder`.

`flat` treats all ranks alike, `islands` crosses slow hops as seldom as can be, `registry` lists
what there is per operation. Pure: no clock, no network, no torch.
"""
