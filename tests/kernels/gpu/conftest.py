"""The GPU's kernels: on a GPU if there is one, else through the Triton language's interpreter."""

import os

import torch

# Before anything imports triton, which looks at it once.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
