"""Decides: which sequences run, with which blocks. Standard library only, no tensors."""
