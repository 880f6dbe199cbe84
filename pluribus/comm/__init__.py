"""Floor 3: processes that talk: starting one per rank, and the groups they exchange tensors in.

`launch` starts and watches rank processes, `rank` is their side of that line, `fabric` is the
object a rank sends, receives and sums tensors with. `backend` makes ``"pluribus"`` a
torch.distributed backend; docs/comm.md says which file does what. Knows nothing of plans or
models.
"""
