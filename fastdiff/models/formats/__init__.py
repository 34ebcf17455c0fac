"""Checkpoints of other libraries: their configurations and the names and layouts of their tensors, in terms of ours."""
