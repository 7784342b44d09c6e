"""The operators of `kernels.reference` in the Triton language, for NVIDIA GPUs."""
