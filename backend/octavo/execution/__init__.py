"""Computes: forward batches, KV memory, sampling. Knows tensors, decides nothing."""
