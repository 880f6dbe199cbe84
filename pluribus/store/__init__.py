"""Floor 1: what lies on disk: token shards and their order, tokenizers, checkpoints.

`tokens` and `order` say which tokens step s trains on; `tokenizer` makes token shards of text;
`checkpoint` writes and reads tensors (the only file here that imports torch) and `manifest` the
files around them. Who holds which tensor, and when to write, is `train`'s business.
"""
